# SPDX-License-Identifier: BSD-3-Clause
"""Koopman operators in plain torch float64: the readable twin of the native kernels.

In complex128, with Hermitian inner products, it is what fits complex weights (:mod:`_complex`).

One block at a time, no tricks, written to be read beside the paper (Dogra & Redman, NeurIPS 2020,
section 3 and Algorithm 1). The native kernels are tested against this file, and both against linear
systems whose answer is known. Nothing here is fast.

Letters: w_t is a block's weights at recorded time t, m the number of snapshots, n_b the weights of
the block, k the rank, T a horizon in recorded intervals.

    observables    o_t = w_t  ("state")  or  o_t = w_{t+1} - w_t  ("increments")
    delays q       h_t = [o_t, o_{t-1}, ..., o_{t-q+1}]            (Hankel DMD; h_t = o_t for q = 1)
    pairs          F = [h_1 ... h_p],  F' = [h_2 ... h_{p+1}]
    operator       U = F' F^+ = F' V S^-1 Q^T   from the truncated SVD  F = Q S V^T
    small form     A = Q^T U Q  (k, k),  Phi = U Q  (n_b, k),  z = Q^T h_{p+1},  so
                   U^T h_{p+1} = Phi A^{T-1} z
    prediction     state:       w(T) = Phi A^{T-1} z
                   increments:  w(T) = w_m + Phi (I + A + ... + A^{T-1}) z
    averages a     o_t of the means of a snapshots each; w_m becomes the last mean, and T the
                   (T + (a - 1) / 2) / a groups from its middle
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from koopfast._reference_choice import (
    DELAYS,
    MOST_RANK,
    Recipe,
    choose,
    embed,
    in_groups,
    latest,
    observe,
)
from koopfast._reference_reduced import (
    Reduced,
    Reduction,
    as_field,
    eigenbasis,
    hindcast,
    reduce,
    shrinker,
    slow_growth,
)

# The statuses of a block.
OK, STILL, NON_FINITE = 0, 1, 2

# Eigenvalues this near to 1, and moduli this near to the unit circle, count as being there where a
# limit is asked for: rounding must not decide whether it exists.
UNIT_EIGENVALUE_TOLERANCE = 1e-9
# Singular values below this share of the largest are noise: the Gram matrix squares the condition
# number, so half the digits of a double are gone; the QR form keeps them all but the last few.
DEFAULT_TOLERANCE = {"gram": 1e-7, "qr": 1e-13}


@dataclass(frozen=True)
class BlockFit:
    """One block's operator in its small form (letters as in the module's docstring)."""

    status: int
    recipe: Recipe  # what was fitted, chosen or given
    last: Tensor  # (n_b,) w_m
    origin: Tensor  # (n_b,) the mean of the last group of snapshots, less w_m
    singular_values: Tensor  # (min(q n_b, p),) of F, descending
    operator: Tensor  # (k, k) A, after clipping if asked for
    start: Tensor  # (k,) z
    lift: Tensor  # (n_b, k) Phi, after clipping if asked for
    eigenvalues: Tensor  # (k,) complex128, after clipping if asked for
    hindcast_error: float  # NaN where none was made
    trusted_horizon: float  # the same
    # What clipping adds to the error of one of several fits.
    error_of_bound: float = 0.0
    # Weights and fits whose mean it is, if several; the other fields are of the heaviest.
    mean_of: tuple[tuple[float, BlockFit], ...] = ()

    @property
    def rank(self) -> int:
        return self.operator.shape[0]

    @property
    def observables(self) -> str:
        return self.recipe.observables


def gather(snapshots: Tensor, segments: Sequence[tuple[int, int]]) -> Tensor:
    """The columns of one block, S_b, as (m, n_b) float64 or complex128."""
    columns = [snapshots[:, start : start + length] for start, length in segments]
    return torch.cat(columns, dim=1).to(torch.promote_types(snapshots.dtype, torch.float64))


def snapshot_svd(states: Tensor, *, increments: bool) -> tuple[Tensor, Tensor]:
    """Singular values (s,) and coordinates N (s, m) of a block's snapshots, s = min(m, n_b).

    N = S V^T of the thin SVD  E^T = Q S V^T, where the rows of E are the snapshots (m, n_b), or
    their increments and a last row of zeros. N carries every inner product of the rows,
    N^T N = E E^T, and is all that a fit needs of the n_b weights.
    """
    rows = torch.diff(states, dim=0, append=states[-1:]) if increments else states
    _, sigma, vt = torch.linalg.svd(rows.T, full_matrices=False)
    return sigma, sigma[:, None] * vt


def _capacity(states: Tensor, recipe: Recipe) -> int:
    """The highest rank that any of the recipe's observables allow."""
    average = 1 if recipe.block_average == "auto" else int(recipe.block_average)
    least, most = (1, DELAYS[-1]) if recipe.delays == "auto" else (int(recipe.delays),) * 2
    groups = states.shape[0] // average
    pairs = groups - (recipe.observables == "increments") - least
    return min(pairs, most * min(states.shape))


def fit_block(
    states: Tensor,
    *,
    observables: str = "increments",
    rank: int | float | str | None = None,
    tolerance: float | None = None,
    delays: int | str = 1,
    block_average: int | str = 1,
    ridge: float = 0.0,
    symmetric: bool = False,
    estimator: str = "least_squares",
    unstable: str = "keep",
    weights: int | None = None,
) -> BlockFit:
    """Fit one block's operator to its snapshots (m, n_b), or to coordinates of so many weights;
    what is "auto" is chosen from them."""
    n_b = states.shape[1]
    recipe = Recipe(
        observables,
        delays,
        block_average,
        "symmetric" if symmetric else estimator,
        0,
        Reduction(
            n_b,
            weights or n_b,
            observables,
            rank,
            DEFAULT_TOLERANCE["qr"] if tolerance is None else tolerance,
            ridge,
            estimator,
            unstable,
        ),
    )

    choosing = "auto" in (observables, delays, block_average, estimator)
    limit = rank if isinstance(rank, int) else _capacity(states, recipe)
    error = trusted = math.nan
    if not bool(torch.isfinite(states).all()):
        return _without_operator(
            states, recipe, NON_FINITE, torch.zeros(0, dtype=torch.float64, device="cpu")
        )
    if choosing:
        limit = min(limit, MOST_RANK) if rank == "auto" else limit
        chosen, error, trusted = choose(states, dataclasses.replace(recipe, rank=limit))
        fits = [(weight, _fit(states, own, own.rank, error, trusted)) for weight, own in chosen]
        return fits[0][1] if len(fits) == 1 else _mean(fits)
    if rank == "auto":
        h = embed(observe(states, observables, int(block_average)), int(delays))
        limit, error, trusted = hindcast(h, limit, _reduction(recipe))
        trusted *= int(block_average)
    return _fit(states, recipe, limit, error, trusted)


def _reduction(recipe: Recipe) -> Reduction:
    return dataclasses.replace(
        recipe.wanted, observables=recipe.observables, estimator=recipe.estimator
    )


def _without_operator(
    states: Tensor,
    recipe: Recipe,
    status: int,
    singular_values: Tensor,
    error: float = math.nan,
    trusted: float = math.nan,
) -> BlockFit:
    none, n_b = states.new_zeros(0), states.shape[1]
    nothing = none.reshape(0, 0), none, states.new_zeros(n_b, 0), none.to(torch.complex128)
    origin = torch.zeros_like(states[-1])
    return BlockFit(status, recipe, states[-1], origin, singular_values, *nothing, error, trusted)


def _fit(states: Tensor, recipe: Recipe, limit: int, error: float, trusted: float) -> BlockFit:
    """The operator that a recipe without "auto" says, of at most this rank."""
    average, unstable = int(recipe.block_average), recipe.wanted.unstable
    own = latest(states, recipe)
    h = embed(observe(own, recipe.observables, average), int(recipe.delays))
    reduced = reduce(h, limit, _reduction(recipe))
    operator, lift = reduced.operator, reduced.lift
    if operator.shape[0] == 0:
        sigma = reduced.singular_values
        return _without_operator(states, recipe, STILL, sigma, error, trusted)
    values = torch.linalg.eigvals(operator)
    radius, added = slow_growth(unstable, len(h)), 0.0
    if unstable != "keep" and bool((values.abs() > radius).any()):
        p = shrinker(operator, unstable, radius)
        added = _error_of_bound(reduced, p, len(states), average)
        operator, lift = operator @ p, lift @ p
        values = torch.linalg.eigvals(operator)
    return BlockFit(
        OK,
        recipe,
        states[-1],
        states[-average:].mean(0) - states[-1],
        reduced.singular_values,
        operator,
        reduced.start,
        lift,
        values,
        error,
        trusted,
        added,
    )


def _error_of_bound(reduced: Reduced, p: Tensor, m: int, average: int) -> float:
    """What moving the eigenvalues by P adds to the error of a fit, which no hindcast has seen.

    P takes a share away from the next increment, and of later ones as much again every group: of
    the displacement after T groups (a third of the window) that share times (T + 1) / 2.
    """
    taken = reduced.lift @ (reduced.start - p @ reduced.start)
    share = float(taken.norm() / (reduced.lift @ reduced.start).norm())
    return share * (max(1, (m - 1) // 3) / average + 1) / 2


def _mean(fits: list[tuple[float, BlockFit]]) -> BlockFit:
    """The weighted mean of several fits, which may be of different groups of snapshots.

    Their weights are the inverse of their errors, to which that of their bounds is added. Those
    without a well-conditioned eigenbasis are left out, unless no other is left.
    """
    weighed = [
        (1 / (1 / weight + fit.error_of_bound), fit)
        for weight, fit in fits
        if fit.status == OK and eigenbasis(fit.operator)[2]
    ]
    usable = sorted((one for one in weighed if one[0] > 0), key=lambda one: -one[0])
    if not usable:
        return fits[0][1]
    total = sum(weight for weight, _ in usable)
    return dataclasses.replace(
        usable[0][1], mean_of=tuple((weight / total, fit) for weight, fit in usable)
    )


def geometric_sum(values: Tensor, horizon: float) -> Tensor:
    """1 + lambda + ... + lambda^(T-1) = (lambda^T - 1) / (lambda - 1), for any real T >= 0."""
    if math.isinf(horizon):
        inside = values.abs() < 1 - UNIT_EIGENVALUE_TOLERANCE
        return torch.where(inside, 1 / (1 - values), torch.full_like(values, math.nan))
    near_one = (values - 1).abs() < 1e-5
    far = torch.where(near_one, torch.zeros_like(values), values)
    # Near 1 the closed form cancels; three terms of its series are exact to a double's precision
    # only for short horizons, so log and expm1 carry it there.
    exponent = horizon * torch.log(torch.where(near_one, values, torch.ones_like(values)))
    eps = torch.where(near_one & (values != 1), values - 1, torch.ones_like(values))
    half = exponent / 2
    close = torch.where(values == 1, horizon + 0 * values, 2 * torch.sinh(half) * half.exp() / eps)
    return torch.where(near_one, close, (far**horizon - 1) / (far - 1))


def _power(values: Tensor, exponent: float) -> Tensor:
    """lambda^(T-1), principal branch, for T >= 1."""
    if math.isinf(exponent):
        one = (values - 1).abs() <= UNIT_EIGENVALUE_TOLERANCE
        none = (values.abs() >= 1 - UNIT_EIGENVALUE_TOLERANCE) & ~one
        limit = one.to(values.dtype)
        return torch.where(none, torch.full_like(limit, math.nan), limit)
    return torch.ones_like(values) if exponent == 0 else values**exponent


def _by_squaring(fit: BlockFit, horizon: float) -> Tensor:
    """f_T(A) z without an eigenbasis: whole horizons by squaring, others linear in between."""
    a, z = fit.operator, fit.start
    if math.isinf(horizon):
        if float(fit.eigenvalues.abs().max()) >= 1 - UNIT_EIGENVALUE_TOLERANCE:
            return torch.full_like(z, math.nan)
        if fit.observables == "state":
            return torch.zeros_like(z)
        limit: Tensor = torch.linalg.solve(torch.eye(len(z), dtype=z.dtype, device=z.device) - a, z)
        return limit
    low = math.floor(horizon)
    if fit.observables == "state":
        whole: Tensor = torch.linalg.matrix_power(a, low - 1) @ z
        step = a @ whole
    else:
        # [[A, z], [0, 1]]^T holds (I + A + ... + A^(T-1)) z in its last column.
        affine = torch.zeros(len(z) + 1, len(z) + 1, dtype=z.dtype, device=z.device)
        affine[:-1, :-1], affine[:-1, -1], affine[-1, -1] = a, z, 1
        whole = torch.linalg.matrix_power(affine, low)[:-1, -1]
        step = a @ whole + z
    return whole + (horizon - low) * (step - whole) if horizon > low else whole


def predict_block(fit: BlockFit, horizons: Sequence[float]) -> Tensor:
    """Weights (len(horizons), n_b) at the given horizons, in recorded intervals (0 = now)."""
    if fit.mean_of:
        each = [weight * (predict_block(one, horizons) - fit.last) for weight, one in fit.mean_of]
        return fit.last + torch.stack(each).sum(0)
    if fit.status == NON_FINITE:
        return torch.full(
            (len(horizons), fit.last.shape[0]),
            math.nan,
            dtype=fit.last.dtype,
            device=fit.last.device,
        )
    if fit.status == STILL:
        return fit.last.repeat(len(horizons), 1)
    values, vectors, usable = eigenbasis(fit.operator)
    rows = []
    for horizon in horizons:
        if horizon == 0:
            rows.append(fit.last)
            continue
        horizon, now = in_groups(horizon, int(fit.recipe.block_average)), fit.last + fit.origin
        state = fit.observables == "state"
        if state and horizon < 1:
            # The power lambda^(T-1) of a fast mode grows without bound towards T = 0.
            rows.append(now + horizon * (fit.lift @ fit.start - now))
            continue
        if usable:
            amplitudes = torch.linalg.solve(vectors, fit.start.to(vectors.dtype))
            factor = _power(values, horizon - 1) if state else geometric_sum(values, horizon)
            y = as_field(vectors @ (factor * amplitudes), fit.start)
        else:
            y = _by_squaring(fit, horizon)
        rows.append(fit.lift @ y if state else now + fit.lift @ y)
    return torch.stack(rows)
