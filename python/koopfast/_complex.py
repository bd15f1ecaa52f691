# SPDX-License-Identifier: BSD-3-Clause
"""Complex weights: a complex linear operator a block, with Hermitian inner products.

The passes over the snapshots S_b (m, n_b) are torch's, tile by tile in complex128, where the
snapshots are: one for the inner products of the rows, one to form all horizons from coefficients of
the snapshots. What lies between is the readable twin's (:mod:`koopfast._reference`), which works in
either field: on the weights of a block of at most m, else on the coordinates of its snapshots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from koopfast._blocks import UNUSABLE_SPECTRUM, USABLE_SPECTRUM, FittedBlocks, starts
from koopfast._ops import ESTIMATOR_NAMES, estimator_code
from koopfast._options import FitOptions
from koopfast._reference import DEFAULT_TOLERANCE, OK, BlockFit, fit_block, gather, predict_block
from koopfast._reference_choice import Recipe
from koopfast._reference_reduced import Reduction, eigenbasis
from koopfast.partition import Partition

# Numbers of a tile: 8 MiB in complex128.
_TILE = 1 << 19
# Coordinates below this share of the largest hold nothing but rounding.
_ROUNDING = {"gram": 1e-8, "qr": 1e-15}

_Segments = Sequence[tuple[int, int]]


def operator_fit(snapshots: Tensor, partition: Partition, options: FitOptions) -> FittedBlocks:
    """Fit every block: the dual form where it has more weights than snapshots, else the primal.

    Raises:
        ConfigError: snapshots are to be averaged, or more than the rank is to be chosen.
    """
    options.check_given("of complex weights")
    m = snapshots.shape[0]
    fits, dual = [], []
    for block in range(partition.n_blocks):
        segments = partition.block(block)
        size = sum(length for _, length in segments)
        dual.append(size > m)
        if dual[-1]:
            fits.append(_dual_fit(snapshots, segments, size, options))
        else:
            fits.append(_twin(gather(snapshots, segments).cpu(), options, size))
    return _packed(fits, torch.tensor(dual, device="cpu"), snapshots.shape[0], options)


def predict(
    snapshots: Tensor,
    partition: Partition,
    fitted: FittedBlocks,
    horizons: Sequence[float],
    out: Tensor,
    *,
    observables: str,
) -> None:
    """Write the weights at each horizon (recorded intervals) to the rows of ``out`` (k, n)."""
    m = snapshots.shape[0]
    for block in range(partition.n_blocks):
        segments = partition.block(block)
        if not fitted.dual[block]:
            last = gather(snapshots[-1:], segments)[0].cpu()
            rows = predict_block(_unpacked(fitted, block, last, observables), horizons).to(out)
            column = 0
            for start, length in segments:
                out[:, start : start + length] = rows[:, column : column + length]
                column += length
            continue
        # In coefficients of the snapshots, the last one is a unit vector.
        now = torch.zeros(m, dtype=torch.complex128, device="cpu")
        now[-1] = 1
        rows = predict_block(_unpacked(fitted, block, now, observables), horizons)
        stands = (rows == now).all(dim=1).to(out.device)
        coefficients = rows.to(out.device)
        # Increments only ever add to the last snapshot; rounding must not scale it.
        base = coefficients.sum(1) if observables == "state" else torch.ones_like(rows[:, 0])
        base = torch.where(rows.isnan().any(dim=1), rows[:, 0], base.cpu()).to(out.device)
        for start, end in _tiles(segments, m):
            tile = snapshots[:, start:end].to(torch.complex128)
            last = tile[-1]
            values = base[:, None] * last + coefficients[:, :-1] @ (tile[:-1] - last)
            out[:, start:end] = torch.where(stands[:, None], last, values).to(out.dtype)


def _tiles(segments: _Segments, m: int) -> Iterator[tuple[int, int]]:
    """Ranges of weights, each small enough to be widened."""
    step = max(1, _TILE // m)
    for start, length in segments:
        for first in range(start, start + length, step):
            yield first, min(first + step, start + length)


def _factor(snapshots: Tensor, segments: _Segments, options: FitOptions) -> tuple[Tensor, Tensor]:
    """S (s,) and V (m, s) of E^T = Q S V^H, the rows of E the observables o_t (without delays)."""
    rows = snapshots.shape[0] - options.increments
    accurate = options.method == "qr"
    total = torch.zeros(rows, rows, dtype=torch.complex128, device=snapshots.device)
    for start, end in _tiles(segments, snapshots.shape[0]):
        tile = snapshots[:, start:end].to(torch.complex128)
        observed = tile.diff(dim=0) if options.increments else tile
        if accurate:  # the R of a QR, row block by row block (TSQR)
            total = torch.linalg.qr(torch.cat((total, observed.T)), mode="r").R
        else:
            total += observed.conj() @ observed.T
    total = total.cpu()
    if not bool(total.isfinite().all()):
        nothing = torch.full((rows,), torch.nan, dtype=torch.float64, device="cpu")
        return nothing, torch.full_like(total, torch.nan)
    if accurate:
        _, sigma, vh = torch.linalg.svd(total)
        return sigma, vh.mH
    values, vectors = torch.linalg.eigh(total)
    return values.clamp(min=0).sqrt().flip(0), vectors.flip(1)


def _dual_fit(snapshots: Tensor, segments: _Segments, size: int, options: FitOptions) -> BlockFit:
    """A fit whose lift holds coefficients of the snapshots, (m, k)."""
    sigma, v = _factor(snapshots, segments, options)
    kept = ~(sigma <= _ROUNDING[options.method] * sigma[0])
    kept[0] = True  # where nothing moves
    sigma, v = sigma[kept], v[:, kept]
    coordinates = v.conj() * sigma  # (rows, s), those of o_t in row t
    if options.increments:
        states = torch.cat((coordinates.new_zeros(1, len(sigma)), coordinates.cumsum(0)))
    else:
        states = coordinates
    fit = _twin(states, options, size)
    combining = v @ (fit.lift / sigma[:, None])  # E^T X = Q lift
    lift = combining
    if options.increments:
        none = combining.new_zeros(1, combining.shape[1])
        lift = torch.cat((none, combining)) - torch.cat((combining, none))
    return dataclasses.replace(fit, lift=lift)


def _twin(states: Tensor, options: FitOptions, size: int) -> BlockFit:
    tolerance = options.tolerance
    return fit_block(
        states,
        observables=options.observables,
        rank=options.rank,
        tolerance=DEFAULT_TOLERANCE[options.method] if tolerance is None else tolerance,
        delays=int(options.delays),
        ridge=options.ridge,
        symmetric=options.symmetric,
        estimator=options.estimator,
        unstable=options.unstable,
        weights=size,
    )


def _packed(fits: list[BlockFit], dual: Tensor, m: int, options: FitOptions) -> FittedBlocks:
    """All blocks as one, their numbers one block after another."""
    rank = torch.tensor([fit.rank for fit in fits], device="cpu")
    rows = torch.tensor([fit.lift.shape[0] for fit in fits], device="cpu")
    bases = [eigenbasis(fit.operator) for fit in fits]
    usable = [ok and fit.status == OK for fit, (_, _, ok) in zip(fits, bases, strict=True)]
    amplitudes = [
        torch.linalg.solve(vectors, fit.start) if ok else torch.zeros_like(fit.start)
        for fit, ok, (_, vectors, _) in zip(fits, usable, bases, strict=True)
    ]
    most = rank if isinstance(options.rank, int) else torch.full_like(rank, m)
    shown = [fit.singular_values[: int(k)] for fit, k in zip(fits, most, strict=True)]
    counts = torch.tensor([0] + [len(sigma) for sigma in shown], device="cpu")
    return FittedBlocks(
        dual=dual,
        rows=rows,
        capacity=rank,
        vector_offsets=starts(rank),
        matrix_offsets=starts(rank**2),
        lift_offsets=starts(rows * rank),
        status=torch.tensor([fit.status for fit in fits], dtype=torch.int32, device="cpu"),
        rank=rank,
        spectrum=torch.tensor(
            [
                USABLE_SPECTRUM if ok or fit.status != OK else UNUSABLE_SPECTRUM
                for fit, ok in zip(fits, usable, strict=True)
            ],
            dtype=torch.int32,
            device="cpu",
        ),
        hindcast_error=_reals([fit.hindcast_error for fit in fits]),
        trusted_horizon=_reals([fit.trusted_horizon for fit in fits]),
        increments=torch.full_like(rank, int(options.increments), dtype=torch.int32),
        delays=torch.full_like(rank, int(options.delays)),
        block_average=torch.ones_like(rank),
        estimator=torch.full_like(rank, estimator_code(options), dtype=torch.int32),
        mixture=torch.zeros((len(rank), 0, 4), dtype=torch.float64, device="cpu"),
        origin_offsets=torch.zeros_like(rank),
        singular_values=torch.cat(shown),
        singular_offsets=counts.cumsum(0),
        operators=torch.cat([fit.operator.flatten() for fit in fits]),
        start=torch.cat([fit.start for fit in fits]),
        lifts=torch.cat([fit.lift.flatten() for fit in fits]),
        grams=torch.empty(0, dtype=torch.float64, device="cpu"),
        origins=torch.empty(0, dtype=torch.complex128, device="cpu"),
        eigenvalues=torch.cat([values for values, _, _ in bases]),
        eigenvectors=torch.cat([vectors.flatten() for _, vectors, _ in bases]),
        amplitudes=torch.cat(amplitudes),
    )


def _reals(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _unpacked(fitted: FittedBlocks, block: int, last: Tensor, observables: str) -> BlockFit:
    """One block, from ``last`` on: in weights, or in coefficients of the snapshots."""
    k, rows = int(fitted.rank[block]), int(fitted.rows[block])
    at, matrix_at = int(fitted.vector_offsets[block]), int(fitted.matrix_offsets[block])
    lift_at = int(fitted.lift_offsets[block])
    first, end = fitted.singular_offsets[block : block + 2].tolist()
    delays, estimator = int(fitted.delays[block]), ESTIMATOR_NAMES[int(fitted.estimator[block])]
    given = Reduction(rows, rows, observables, k, 0.0, 0.0, estimator, "keep")
    return BlockFit(
        int(fitted.status[block]),
        Recipe(observables, delays, 1, estimator, k, given),
        last,
        torch.zeros_like(last),
        fitted.singular_values[first:end],
        fitted.operators[matrix_at : matrix_at + k * k].reshape(k, k),
        fitted.start[at : at + k],
        fitted.lifts[lift_at : lift_at + rows * k].reshape(rows, k),
        fitted.eigenvalues[at : at + k],
        float(fitted.hindcast_error[block]),
        float(fitted.trusted_horizon[block]),
    )
