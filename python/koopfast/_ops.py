# SPDX-License-Identifier: BSD-3-Clause
"""The native fits and powers: memory, batches and device dispatch.

Native code gets addresses and sizes; every array it reads or writes is a torch tensor made here, so
torch's allocator, streams and thread count stay in charge. The passes over the snapshots run where
these are: `_device.py` calls the CUDA kernels, `_torch_passes.py` stands in where they cannot run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from koopfast import _device, _native, _torch_passes
from koopfast._blocks import (
    BlockTable,
    FittedBlocks,
    Layout,
)
from koopfast._options import FitOptions
from koopfast._reference import DEFAULT_TOLERANCE
from koopfast._views import DTYPE_CODES, View, sent, thread_count, view
from koopfast.errors import ConfigError

# Estimator of operator_fit.h; 1 is the self-adjoint one.
ESTIMATOR_NAMES = ("least_squares", "symmetric", "forward_backward", "total_least_squares")
_ESTIMATORS = {"least_squares": 0, "forward_backward": 2, "total_least_squares": 3}
# Chosen of operator_fit.h.
_CHOSEN = {"observables": 1, "delays": 2, "block_average": 4, "estimator": 8}
# SnapshotRows of tensor_view.h.
ROWS = {"states": 0, "increments": 1, "increments_and_last": 2}
# The delays that a hindcast tries, the rank, and the most directions of what it chooses.
_DELAYS, _RANK_OF_MEMBERS, _MOST_RANK = (1, 2, 4, 8), 16, 96
# Unstable of operator_fit.h.
UNSTABLE = {"keep": 0, "clip": 1, "damp": 2, "slow": 3}
# RankRule of operator_fit.h.
_RANK_RULES, _ENERGY = {"auto": 1, "gavish-donoho": 3}, 2
# The most snapshots whose Gram matrices are fitted eight at a time.
_MOST_LANE_ORDER = 64
# Coefficients of one pass stay below this where a pass of one horizon does; more horizons take more
# passes, and more blocks more batches.
_PASS_BYTES = 1 << 28
# Beyond this, doubles no longer count single intervals.
_FARTHEST = 2.0**53


def _rows_of(options: FitOptions) -> str:
    """What the fit reads, as `rows_of` of operator_fit.h."""
    if options.observables == "auto":
        return "increments_and_last"
    return "increments" if options.increments else "states"


def rank_capacity(options: FitOptions, m: int, sizes: Tensor) -> Tensor:
    """The rank that blocks of these sizes can have at most, (n_blocks,) int64."""
    least, most_delays = (1, _DELAYS[-1]) if options.delays == "auto" else (options.delays,) * 2
    groups = m if options.block_average == "auto" else m // options.block_average
    pairs = groups - (1 if options.observables == "increments" else 0) - least
    most = (sizes.clamp(max=m) * most_delays).clamp(max=pairs)
    if isinstance(options.rank, int):
        return most.clamp(max=min(options.rank, m))
    if not options.chosen or options.rank != "auto":
        return most
    if options.delays == "auto" and options.observables != "state":
        most = torch.maximum(most, _capacity_of_mean(options, m, sizes))
    return most.clamp(max=_MOST_RANK)


def _capacity_of_mean(options: FitOptions, m: int, sizes: Tensor) -> Tensor:
    """The rank of a mean of operators, one for each number of delays, and of the constant in it.

    A negative eigenvalue of averaged snapshots takes two directions in recorded intervals.
    """
    copies = 1 if options.block_average == 1 else 2
    total = torch.ones_like(sizes)
    for delays in _DELAYS:
        pairs = max(0, m - 1 - delays)
        total += copies * (sizes.clamp(max=m) * delays).clamp(max=min(_RANK_OF_MEMBERS, pairs))
    return total


def estimator_code(options: FitOptions) -> int:
    """Estimator of operator_fit.h; what is to be chosen counts as least squares."""
    return 1 if options.symmetric else _ESTIMATORS.get(options.estimator, 0)


def packed_options(
    options: FitOptions,
) -> tuple[bool, int, int, int, int, float, float, float, int, int, bool]:
    """As `FitOptions` of operator_fit.h."""
    cut, rank = options.tolerance, options.rank
    rule, energy = (
        (_ENERGY, rank) if isinstance(rank, float) else (_RANK_RULES.get(str(rank), 0), 1)
    )
    return (
        options.increments,
        1 if options.delays == "auto" else options.delays,
        1 if options.block_average == "auto" else options.block_average,
        sum(_CHOSEN[field] for field in options.chosen),
        rule,
        energy,
        DEFAULT_TOLERANCE[options.method] if cut is None else cut,
        options.ridge,
        estimator_code(options),
        UNSTABLE[options.unstable],
        options.method == "qr",
    )


def _in_place(snapshots: Tensor) -> bool:
    """Whether the passes read the snapshots where they are; else from a copy on the host."""
    return snapshots.device.type in ("cpu", "cuda")


def snapshot_gram(snapshots: Tensor, table: BlockTable, blocks: Tensor, *, rows: str) -> Tensor:
    """Gram matrices of the blocks' rows, (len(blocks), m, m) float64 on their device."""
    device, m = snapshots.device, snapshots.shape[0]
    if _device.usable(device):
        plan = _device.ChunkPlan.of(table.sizes, blocks, m, device)
        return _device.snapshot_gram(snapshots, table, plan, ROWS[rows])
    if device.type != "cpu":
        return _torch_passes.snapshot_gram(snapshots, table, blocks, rows)
    grams = torch.empty((len(blocks), m, m), dtype=torch.float64, device="cpu")
    _native.snapshot_gram(
        view(snapshots),
        table.addresses(),
        blocks.data_ptr(),
        len(blocks),
        ROWS[rows],
        grams.data_ptr(),
        thread_count(),
    )
    return grams


def snapshot_svd(
    snapshots: Tensor, table: BlockTable, blocks: Tensor, *, rows: str, method: str = "gram"
) -> tuple[Tensor, Tensor]:
    """Thin SVD of each block's snapshots, tall-skinny: what a fit needs of the n_b weights.

    With E (m, n_b) the block's ``rows``, that is "states", "increments" and a last row of zeros,
    or "increments_and_last", where this is the last state, and E^T = Q S V^T: the singular values
    (len(blocks), m), zero from s = min(m, n_b) on, and the coordinates S V^T in the first s rows of
    (len(blocks), m, m); both float64, CPU. A block with a
    non-finite weight has NaN in both. A last state is no part of the factorisation: its column of
    the coordinates gets its components along Q, and below them its distance from that span.

    ``method="gram"`` reads the snapshots once, and is exact down to about 1e-8 of the largest
    singular value; ``"qr"`` (TSQR, Demmel et al. 2012, on the CPU) down to 1e-15, for about four
    times the work.
    """
    m, count = snapshots.shape[0], len(blocks)
    sigma = torch.empty((count, m), dtype=torch.float64, device="cpu")
    threads = thread_count()
    if method == "gram":
        source = snapshots if _in_place(snapshots) else snapshots.cpu()
        coordinates = snapshot_gram(source, table, blocks, rows=rows).cpu()
        return _gram_svd(coordinates, table, blocks, rows=rows), coordinates
    host = snapshots.cpu()
    coordinates = torch.empty((count, m, m), dtype=torch.float64, device="cpu")
    _native.snapshot_qr(
        view(host),
        table.addresses(),
        blocks.data_ptr(),
        count,
        ROWS[rows],
        coordinates.data_ptr(),
        sigma.data_ptr(),
        threads,
    )
    return sigma, coordinates


def _gram_svd(grams: Tensor, table: BlockTable, blocks: Tensor, *, rows: str) -> Tensor:
    """Singular values from Gram matrices, which become the coordinates; see `snapshot_svd`."""
    count, m = grams.shape[:2]
    sigma, sizes = torch.empty((count, m), dtype=torch.float64, device="cpu"), table.sizes[blocks]
    _native.gram_svd(
        grams.data_ptr(),
        sizes.data_ptr(),
        count,
        m,
        ROWS[rows],
        sigma.data_ptr(),
        thread_count(),
    )
    return sigma


def gram_batch(m: int) -> int:
    """How many Gram matrices (m, m) there may be at a time."""
    return max(1, _PASS_BYTES // (8 * m * m))


def horizons_at_once(n: int) -> int:
    """How many horizons of n weights one pass predicts."""
    return max(1, _PASS_BYTES // (8 * n))


def room_for(options: FitOptions, m: int, sizes: Tensor, dual: Tensor) -> FittedBlocks:
    """Room for what a fit with these options leaves of blocks of these sizes and forms."""
    return _layout(options, m, sizes, dual).room()


def _layout(options: FitOptions, m: int, sizes: Tensor, dual: Tensor) -> Layout:
    return Layout.of(
        dual,
        torch.where(dual, m, sizes),
        rank_capacity(options, m, sizes),
        averaged=options.block_average != 1,
        mixed=bool(options.chosen),
        # As `wants_all` of definite_fit.cpp.
        shared=not bool(dual.all())
        and fits_from_moments(options)
        and not isinstance(options.rank, (float, str)),
    )


@dataclass(frozen=True)
class _FitPlan:
    """Which blocks are fitted in which form: the same for every window of as many snapshots."""

    layout: Layout
    dual: Sequence[Tensor]  # batches
    small: Tensor  # blocks whose moments are the smaller form
    others: Tensor

    @classmethod
    def of(cls, table: BlockTable, options: FitOptions, m: int) -> _FitPlan:
        dual = table.sizes > m
        # Moments are the smaller form where there are as many pairs as stacked weights.
        small = torch.zeros_like(dual)
        if fits_from_moments(options) and options.delays != "auto":
            small = ~dual & (table.sizes * options.delays <= m - options.least_snapshots + 1)
        return cls(
            layout=_layout(options, m, table.sizes, dual),
            dual=dual_batches(torch.nonzero(dual).flatten(), m),
            small=torch.nonzero(small).flatten(),
            others=torch.nonzero(~dual & ~small).flatten(),
        )


def operator_fit(snapshots: Tensor, table: BlockTable, options: FitOptions) -> FittedBlocks:
    """Fit every block: the dual form where it has more weights than snapshots, else the primal."""
    m = snapshots.shape[0]
    plan = table.plan((m, options), lambda: _FitPlan.of(table, options, m))
    fitted = plan.layout.room()
    # Where a host copy is needed, it is made once, not again for every batch.
    in_place = options.method == "gram" and _in_place(snapshots)
    all_dual = len(plan.small) + len(plan.others) == 0
    host = snapshots if in_place and all_dual else snapshots.cpu()
    source = snapshots if in_place else host
    # Gram matrices of dual blocks, (m, m) each, are dropped once a batch of them is fitted.
    for blocks in plan.dual:
        if options.method == "gram":
            grams = snapshot_gram(source, table, blocks, rows=_rows_of(options)).cpu()
            fit_grams(grams, table, blocks, options, fitted)
            continue
        _, coordinates = snapshot_svd(
            source, table, blocks, rows=_rows_of(options), method=options.method
        )
        _fit_blocks(view(source), table, blocks, True, coordinates, options, fitted)
    if len(plan.small) > 0:
        _fit_primal(host, table, plan.small, options, fitted)
    if len(plan.others) > 0:
        none = torch.empty(0, dtype=torch.float64, device="cpu")
        _fit_blocks(view(host), table, plan.others, False, none, options, fitted)
    return fitted.repacked()


def dual_batches(blocks: Tensor, m: int) -> Sequence[Tensor]:
    """Blocks in batches whose Gram matrices, (m, m) each, fit into memory together."""
    # (Splitting nothing gives one empty batch: no launch is to see it.)
    return torch.split(blocks, gram_batch(m)) if len(blocks) > 0 else ()


def all_dual(m: int, table: BlockTable, options: FitOptions) -> FittedBlocks:
    """Room for the fit of every block in its dual form, for :func:`fit_grams`."""
    return room_for(options, m, table.sizes, torch.ones_like(table.sizes, dtype=torch.bool))


def dual_fit(snapshots: Tensor, table: BlockTable, options: FitOptions) -> FittedBlocks:
    """As :func:`operator_fit`, every block in its dual form.

    What it predicts is a combination of snapshots, so :func:`predict` can make the same of other
    rows (m, n) that were recorded at the same moments.
    """
    m = snapshots.shape[0]
    fitted = all_dual(m, table, options)
    for blocks in dual_batches(torch.arange(len(table.sizes)), m):
        grams = observed_grams(snapshots, table, blocks, options)
        fit_grams(grams, table, blocks, options, fitted)
    return fitted.repacked()


def observed_grams(
    snapshots: Tensor, table: BlockTable, blocks: Tensor, options: FitOptions
) -> Tensor:
    """Gram matrices of what a fit observes, as :func:`fit_grams` takes them."""
    source = snapshots if _in_place(snapshots) else snapshots.cpu()
    return snapshot_gram(source, table, blocks, rows=_rows_of(options)).cpu()


def fit_grams(
    grams: Tensor, table: BlockTable, blocks: Tensor, options: FitOptions, fitted: FittedBlocks
) -> None:
    """Fit dual blocks from their Gram matrices (len(blocks), m, m), which may be overwritten."""
    m = grams.shape[1]
    if fits_from_moments(options) and m <= _MOST_LANE_ORDER:
        _fit_grams(grams, table, blocks, options, fitted)
        return
    _gram_svd(grams, table, blocks, rows=_rows_of(options))
    # Of the snapshots, the dual form reads the shape alone.
    shape = (grams.data_ptr(), DTYPE_CODES[torch.float64], m, 1, 1)
    _fit_blocks(shape, table, blocks, True, grams, options, fitted)


def fits_from_moments(options: FitOptions) -> bool:
    """Whether second moments are enough: `fits_from_moments` of operator_lanes.h."""
    return (
        options.method == "gram"
        and not options.chosen
        and options.block_average == 1
        and options.rank != "auto"
        and options.estimator == "least_squares"
    )


def _fit_grams(
    grams: Tensor, table: BlockTable, blocks: Tensor, options: FitOptions, fitted: FittedBlocks
) -> None:
    """Fit dual blocks from their Gram matrices (len(blocks), m, m)."""
    own, addresses = fitted.selected(blocks)
    sizes = table.sizes[blocks]
    _native.operator_fit_grams(
        grams.data_ptr(),
        sizes.data_ptr(),
        len(blocks),
        grams.shape[1],
        packed_options(options),
        addresses,
        thread_count(),
    )
    fitted.keep(blocks, own)


def _fit_primal(
    host: Tensor, table: BlockTable, blocks: Tensor, options: FitOptions, fitted: FittedBlocks
) -> None:
    """Fit some primal blocks from the second moments of their snapshots."""
    own, addresses = fitted.selected(blocks)
    _native.operator_fit_primal(
        view(host),
        table.addresses(),
        blocks.data_ptr(),
        len(blocks),
        packed_options(options),
        addresses,
        thread_count(),
    )
    fitted.keep(blocks, own)


def _fit_blocks(
    source: View,
    table: BlockTable,
    blocks: Tensor,
    dual: bool,
    coordinates: Tensor,
    options: FitOptions,
    fitted: FittedBlocks,
) -> None:
    """Fit some blocks of one form. The dual form reads the `m` of `source` alone."""
    own, addresses = fitted.selected(blocks)
    _native.operator_fit(
        source,
        table.addresses(),
        blocks.data_ptr(),
        len(blocks),
        dual,
        coordinates.data_ptr(),
        packed_options(options),
        addresses,
        thread_count(),
    )
    fitted.keep(blocks, own)


def operator_power(
    fitted: FittedBlocks, blocks: Tensor, horizons: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, their offsets a block, and the bases (len(blocks), k), as operator_power.h says."""
    k = len(horizons)
    rows = fitted.rows.numpy()[blocks.numpy()]
    ends = np.cumsum(rows * k)
    value_offsets = torch.from_numpy(ends - rows * k)
    values = torch.empty(int(ends[-1]), dtype=torch.float64, device="cpu")
    base = torch.empty((len(blocks), k), dtype=torch.float64, device="cpu")
    # `own` must outlive the call: it owns the memory behind the addresses.
    own, addresses = fitted.selected(blocks)
    _native.operator_power(
        addresses,
        rows.ctypes.data,
        len(blocks),
        bool(fitted.dual.numpy()[int(blocks[0])]),
        horizons.data_ptr(),
        k,
        value_offsets.data_ptr(),
        values.data_ptr(),
        base.data_ptr(),
        thread_count(),
    )
    del own
    return values, value_offsets, base


def predict(
    snapshots: Tensor,
    table: BlockTable,
    fitted: FittedBlocks,
    horizons: Sequence[float],
    out: Tensor,
) -> None:
    """Write the weights at each horizon (recorded intervals) to the rows of ``out`` (k, n)."""
    if not _in_place(snapshots):
        host = torch.empty(out.shape, dtype=out.dtype, device="cpu")
        predict(snapshots.cpu(), table, fitted, horizons, host)
        out.copy_(host)
        return
    # Infinity is no integer; the mean of a group lies between its snapshots.
    if not all(h.is_integer() for h in horizons) or bool((fitted.block_average > 1).any()):
        fitted = fitted.with_spectrum
    step = horizons_at_once(out.shape[1])
    for first in range(0, len(horizons), step):
        some = torch.tensor(horizons[first : first + step], dtype=torch.float64, device="cpu")
        for form, blocks in fitted.forms:
            values = operator_power(fitted, blocks, some)
            _combine(snapshots, table, blocks, form, values, out[first : first + step])


def predict_cells(
    snapshots: Tensor,
    cells: BlockTable,
    block: Tensor,
    fitted: FittedBlocks,
    horizons: Sequence[float],
    out: Tensor,
) -> None:
    """As :func:`predict`, of dual blocks of which the snapshots hold parts, the ``cells``.

    ``block`` (n_cells,) says whose part each is.
    """
    if not _in_place(snapshots):
        host = torch.empty(out.shape, dtype=out.dtype, device="cpu")
        predict_cells(snapshots.cpu(), cells, block, fitted, horizons, host)
        out.copy_(host)
        return
    if not all(h.is_integer() for h in horizons) or bool((fitted.block_average > 1).any()):
        fitted = fitted.with_spectrum
    own, of_own = torch.unique_consecutive(block, return_inverse=True)
    step = max(1, _PASS_BYTES // (8 * snapshots.shape[0] * len(own)))
    for first in range(0, len(horizons), step):
        some = torch.tensor(horizons[first : first + step], dtype=torch.float64, device="cpu")
        values, offsets, base = operator_power(fitted, own, some)
        powers = values, offsets[of_own], base[of_own]
        _combine(
            snapshots,
            cells,
            torch.arange(len(block), device="cpu"),
            True,
            powers,
            out[first : first + step],
        )


def _combine(
    snapshots: Tensor,
    table: BlockTable,
    blocks: Tensor,
    dual: bool,
    powers: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
) -> None:
    device = snapshots.device
    if _device.usable(device):
        plan = _device.ChunkPlan.of(table.sizes, blocks, snapshots.shape[0], device)
        values, value_offsets, base = powers
        on_device = (sent(values, device), sent(value_offsets, device), sent(base, device))
        return _device.combine(snapshots, table, plan, dual, on_device, out)
    if device.type != "cpu":
        return _torch_passes.combine(snapshots, table, blocks, dual, powers, out)
    values, value_offsets, base = powers
    return _native.combine(
        view(snapshots),
        table.addresses(),
        blocks.data_ptr(),
        len(blocks),
        dual,
        base.data_ptr(),
        value_offsets.data_ptr(),
        values.data_ptr(),
        base.shape[1],
        out.data_ptr(),
        max(out.shape[1], out.stride(0)),
        thread_count(),
    )


def check_horizons(horizons: ArrayLike) -> list[float]:
    """Horizons as floats >= 0, in recorded intervals.

    Raises:
        ConfigError: no number or sequence of numbers, empty, negative, NaN, or finite and beyond
            2**53.
    """
    try:
        if isinstance(horizons, str):
            raise TypeError
        if isinstance(horizons, Tensor):
            horizons = horizons.tolist()  # from wherever it is
        if isinstance(horizons, list) and all(type(h) is float for h in horizons):
            result = [*horizons]
        else:
            result = [float(h) for h in np.atleast_1d(np.asarray(horizons, dtype=object))]
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"horizons: expected a number of recorded intervals or a sequence of them, "
            f"got {horizons!r}"
        ) from error
    if not result:
        raise ConfigError("horizons: expected at least one, got none")
    for h in result:
        if math.isnan(h) or h < 0 or _FARTHEST < h < math.inf:
            raise ConfigError(
                f"horizons: expected numbers from 0 (the last snapshot) to 2**53 recorded "
                f"intervals, or math.inf for the limit, got {h}"
            )
    return result
