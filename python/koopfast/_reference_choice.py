# SPDX-License-Identifier: BSD-3-Clause
"""What is observed of a block, and its choice from the data, in plain torch float64: the twin of
cpp/motion and cpp/choice.

Letters as in :mod:`koopfast._reference`; a is the number of snapshots in a group.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from koopfast._reference_reduced import Reduction, reduce, shrinker, trusted_intervals

# The rank that is tried first, and those that must do clearly better to be taken instead.
FULL_RANK, OTHER_RANKS, MOST_RANK = 16, (1, 2, 4, 8, 64), 64
RANKS_OF_ESTIMATORS, RANKS_OF_STATES = (8, 16), (2, 4, 8)
DELAYS, PREFERRED_DELAYS = (1, 2, 4, 8), 8
# A window is divided into this many groups, whatever its snapshots' number.
MOST_GROUPS, LEAST_GROUPS, PREFERRED_GROUPS = 128, 10, 32
# What an octave away from the preferred groups or delays costs, and what a challenger must gain, in
# logarithms of the error.
PENALTY, MARGIN = 0.1, 0.3
# What the later of the two splits counts: it sees more of the window, and how it ends.
RECENT_WEIGHT = 2 / 3
# Smaller errors are rounding: no reason to prefer one operator to another.
LEAST_ERROR, MOST_ERROR = 1e-6, 1e3


@dataclass(frozen=True)
class Recipe:
    """What an operator is fitted to, and how; any field but ``wanted`` may be "auto"."""

    observables: str
    delays: int | str
    block_average: int | str
    estimator: str  # or "symmetric"
    rank: int  # the most
    wanted: Reduction


def observe(states: Tensor, observables: str, average: int = 1) -> Tensor:
    """Rows o_t: the states (m, n_b), or the means of groups of them, or the differences of these.

    Groups are counted from the last snapshot back; the oldest that fill no group are left out.
    """
    groups = len(states) // average
    means = states[len(states) - groups * average :].reshape(groups, average, -1).mean(1)
    return means if observables == "state" else means[1:] - means[:-1]


def embed(observed: Tensor, delays: int) -> Tensor:
    """Rows h_t = [o_t, o_{t-1}, ..., o_{t-q+1}], newest first: (P - q + 1, q n_b)."""
    count = observed.shape[0] - delays + 1
    newest_first = [observed[delays - 1 - j : delays - 1 - j + count] for j in range(delays)]
    return torch.cat(newest_first, dim=1)


def in_groups(horizon: float, average: int) -> float:
    """Groups from the middle of the last one to `horizon` intervals after the last snapshot."""
    return (horizon + (average - 1) / 2) / average


def predicted(states: Tensor, tail: int, recipe: Recipe) -> Tensor | None:
    """Displacements after these snapshots, (tail, n_b), or None where no operator can be fitted."""
    a, q = int(recipe.block_average), int(recipe.delays)
    observed = observe(states, recipe.observables, a)
    if len(observed) < q + 1:
        return None
    wanted = dataclasses.replace(
        recipe.wanted, observables=recipe.observables, estimator=recipe.estimator
    )
    fitted = reduce(embed(observed, q), recipe.rank, wanted)
    operator, lift, y = fitted.operator, fitted.lift, fitted.start
    if len(operator) == 0:
        return None
    if wanted.unstable != "keep":  # what is judged is what will predict
        p = shrinker(operator, wanted.unstable)
        operator, lift = operator @ p, lift @ p
    now, start = states[-1], states[-a:].mean(0)
    ahead = [start]  # states at whole numbers of groups; linear in between
    for _ in range(int(in_groups(tail, a)) + 2):
        ahead.append(lift @ y if recipe.observables == "state" else ahead[-1] + lift @ y)
        y = operator @ y
    rows = []
    for t in range(1, tail + 1):
        horizon = in_groups(t, a)
        low = math.floor(horizon)
        rows.append(ahead[low] + (horizon - low) * (ahead[low + 1] - ahead[low]) - now)
    return torch.stack(rows)


def error_of(moved: Tensor | None, truth: Tensor) -> float:
    """Error of the displacements relative to the true ones; 1, as standing still, for None."""
    if moved is None:
        return 1.0
    error = float((moved - truth).norm() / truth.norm())
    return error if error < MOST_ERROR else MOST_ERROR  # NaN compares false


def score(states: Tensor, recipe: Recipe) -> float:
    """Mean logarithm of the errors of predicting the window's rest from 1/2 and 2/3 of it."""
    total = 0.0
    for head, weight in zip(heads(len(states)), (1 - RECENT_WEIGHT, RECENT_WEIGHT), strict=True):
        truth = states[head:] - states[head - 1]
        error = error_of(predicted(states[:head], len(truth), recipe), truth)
        total += weight * math.log(max(error, LEAST_ERROR))
    return total


def heads(m: int) -> tuple[int, int]:
    return m - max(1, (m - 1) // 2), m - max(1, (m - 1) // 3)


def filters(m: int, wanted: Recipe) -> Iterator[tuple[int, int, float]]:
    """Averages and delays to try, and what their distance from those preferred costs."""
    averages, delays = [wanted.block_average], [wanted.delays]
    if wanted.block_average == "auto":
        least = next(2**e for e in range(64) if m // 2**e <= MOST_GROUPS)
        more = (least * 2**e for e in range(1, 64))
        averages = [least, *(a for a in more if m // a >= LEAST_GROUPS)]
    if wanted.delays == "auto":
        delays = list(DELAYS)
    for a in map(int, averages):
        for q in map(int, delays):
            if m // a - (wanted.observables != "state") < q + 1:
                continue  # not one pair
            far = 0.0
            if wanted.block_average == "auto":
                far += abs(math.log2(m // a / PREFERRED_GROUPS))
            if wanted.delays == "auto":
                far += abs(math.log2(q / PREFERRED_DELAYS))
            yield a, q, PENALTY * far


def challengers(best: Recipe, wanted: Recipe, any_rank: bool) -> Iterator[Recipe]:
    """Other ranks, estimators and states, with the averages and delays of the best."""

    def with_ranks(recipe: Recipe, ranks: tuple[int, ...]) -> Iterator[Recipe]:
        for rank in ranks if any_rank else (wanted.rank,):
            if rank < 2 * wanted.rank:
                yield dataclasses.replace(recipe, rank=min(rank, wanted.rank))

    if any_rank:
        yield from with_ranks(best, OTHER_RANKS)
    if wanted.estimator == "auto":
        for estimator in ("symmetric", "total_least_squares", "forward_backward"):
            if estimator != "forward_backward" or wanted.wanted.ridge == 0:
                recipe = dataclasses.replace(best, estimator=estimator)
                yield from with_ranks(recipe, RANKS_OF_ESTIMATORS)
    if wanted.observables == "auto":
        yield from with_ranks(dataclasses.replace(best, observables="state"), RANKS_OF_STATES)


def choose(states: Tensor, wanted: Recipe) -> tuple[Recipe, float, float]:
    """The recipe for a block's states (m, n_b), its error in the hindcast and trusted horizon.

    First least squares with all averages and delays: the lowest score, those near the preferred
    ones favoured. Then other ranks, estimators and states, which must score better by MARGIN. Most
    of the candidates differ by chance, and preference and margin keep chance out. Rank 0, stand
    still (error 1), wins where no operator does better.
    """
    any_rank = wanted.wanted.rank == "auto"
    plain = dataclasses.replace(
        wanted,
        observables="increments" if wanted.observables == "auto" else wanted.observables,
        delays=1 if wanted.delays == "auto" else wanted.delays,
        block_average=1 if wanted.block_average == "auto" else wanted.block_average,
        estimator="least_squares" if wanted.estimator == "auto" else wanted.estimator,
    )
    needed = int(plain.delays) + (2 if plain.observables == "increments" else 1)
    if len(states) < int(plain.block_average) * needed + 2:
        return plain, math.nan, math.nan
    if any(bool((states[head:] == states[head - 1]).all()) for head in heads(len(states))):
        return dataclasses.replace(plain, rank=0), 1.0, 0.0
    full = min(FULL_RANK, wanted.rank) if any_rank else wanted.rank
    best, best_score, lowest = plain, math.inf, math.inf
    for a, q, penalty in filters(len(states), wanted):
        recipe = dataclasses.replace(plain, block_average=a, delays=q, rank=full)
        own = score(states, recipe)
        if own + penalty < lowest:
            best, best_score, lowest = recipe, own, own + penalty
    bar = best_score - MARGIN
    for recipe in challengers(best, wanted, any_rank):
        own = score(states, recipe)
        if own < bar:
            best, best_score, bar = recipe, own, own
    if not best_score < 0:
        return dataclasses.replace(best, rank=0), 1.0, 0.0
    head = heads(len(states))[1]
    truth = states[head:] - states[head - 1]
    moved = predicted(states[:head], len(truth), best)
    trusted = 0.0 if moved is None else trusted_intervals(moved, truth)
    return best, error_of(moved, truth), trusted
