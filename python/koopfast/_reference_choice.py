# SPDX-License-Identifier: BSD-3-Clause
"""What is observed of a block, and its choice from the data, in plain torch float64: the twin of
cpp/motion and cpp/choice.

Letters as in :mod:`koopfast._reference`; a is the number of snapshots in a group.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from koopfast._reference_reduced import (
    Reduction,
    reduce,
    shrinker,
    slow_growth,
    trusted_intervals,
)

# The rank of least squares, the ranks of states, and the most directions of what is chosen.
FULL_RANK, RANKS_OF_STATES, MOST_RANK = 16, (2, 4, 8), 96
DELAYS, PREFERRED_DELAYS = (1, 2, 4, 8), 8
# A window is divided into this many groups, whatever its snapshots' number.
MOST_GROUPS, LEAST_GROUPS, PREFERRED_GROUPS = 128, 16, 32
# What is fitted to: all of a window, its last half, its last quarter; the quarter where it has so
# many snapshots.
WINDOW_PARTS, LEAST_QUARTER = (1, 2, 4), 64
# What an octave away from the preferred groups or delays costs, and what a challenger must gain, in
# logarithms of the error; and the error below which nothing is challenged.
PENALTY, MARGIN, GOOD_ERROR = 0.1, 1.0, 0.1
# The last 1/2, 1/3 and 1/6 of the window are predicted, and what these errors count.
PARTS, WEIGHTS = (2, 3, 6), (0.3, 0.4, 0.3)
# Smaller errors are rounding: no reason to prefer one operator to another.
LEAST_ERROR, MOST_ERROR = 1e-6, 1e3


@dataclass(frozen=True)
class Recipe:
    """What an operator is fitted to, and how; any field before the rank may be "auto"."""

    observables: str
    delays: int | str
    block_average: int | str
    estimator: str  # or "symmetric"
    rank: int  # the most
    wanted: Reduction
    part: int = 1  # fitted to the last 1 / part of the window


def observe(states: Tensor, observables: str, average: int = 1) -> Tensor:
    """Rows o_t: the states (m, n_b), or the means of groups of them, or the differences of these.

    Groups are counted from the last snapshot back; the oldest that fill no group are left out.
    """
    groups = len(states) // average
    means = states[len(states) - groups * average :].reshape(groups, average, -1).mean(1)
    return means if observables == "state" else means[1:] - means[:-1]


def last_part(count: int, part: int) -> int:
    """How many of so many snapshots are the last half (2), quarter (4), or all (1) of them."""
    return -(-count // part)


def latest(states: Tensor, recipe: Recipe) -> Tensor:
    """The snapshots that an operator is fitted to: all, or the last half or quarter."""
    return states[len(states) - last_part(len(states), recipe.part) :]


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
    states = latest(states, recipe)
    observed = observe(states, recipe.observables, a)
    if len(observed) < q + 1:
        return None
    wanted = dataclasses.replace(
        recipe.wanted, observables=recipe.observables, estimator=recipe.estimator
    )
    h = embed(observed, q)
    fitted = reduce(h, recipe.rank, wanted)
    operator, lift, y = fitted.operator, fitted.lift, fitted.start
    if len(operator) == 0:
        return None
    if wanted.unstable != "keep":  # what is judged is what will predict
        p = shrinker(operator, wanted.unstable, slow_growth(wanted.unstable, len(h)))
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


def heads(m: int) -> list[int]:
    return [m - max(1, (m - 1) // part) for part in PARTS]


def predictions(states: Tensor, recipe: Recipe) -> list[Tensor | None]:
    """What the recipe predicts for the rest of the window from each of its heads."""
    m = len(states)
    return [predicted(states[:head], m - head, recipe) for head in heads(m)]


def log_error(states: Tensor, head: int, moved: Tensor | None) -> float:
    """Logarithm of the error of what was predicted from this head."""
    return math.log(max(error_of(moved, states[head:] - states[head - 1]), LEAST_ERROR))


def score(states: Tensor, moved: Sequence[Tensor | None]) -> float:
    """Mean logarithm of the errors of these predictions."""
    parts = zip(heads(len(states)), WEIGHTS, moved, strict=True)
    return sum(weight * log_error(states, head, own) for head, weight, own in parts)


def averages(count: int, part: int, wanted: Recipe) -> Iterator[int]:
    """Lengths of groups for a window, or for a last part of it of so many snapshots."""
    if wanted.block_average != "auto":
        if part == 1:
            yield int(wanted.block_average)
        return
    least = a = next(2**e for e in range(64) if count // 2**e <= MOST_GROUPS)
    while count // a >= LEAST_GROUPS or (a == least and part == 1):
        yield a
        a *= 2


def filters(m: int, delays: int, wanted: Recipe) -> Iterator[tuple[int, int, float]]:
    """Averages and parts of the window, and what their distance from those preferred costs."""
    for part in WINDOW_PARTS:
        count = last_part(m, part)
        if part == 4 and count < LEAST_QUARTER:
            continue
        for a in averages(count, part, wanted):
            if count // a - (wanted.observables != "state") < delays + 1:
                continue  # not one pair
            far = 0.0
            if wanted.block_average == "auto":
                far += abs(math.log2(count / a / PREFERRED_GROUPS))
            if wanted.delays == "auto":
                far += abs(math.log2(delays / PREFERRED_DELAYS))
            yield a, part, PENALTY * far


def challengers(best: Recipe, wanted: Recipe, any_rank: bool) -> Iterator[Recipe]:
    """Other estimators and states, with the averages and delays of the best."""
    best = dataclasses.replace(best, part=1)
    if wanted.estimator == "auto":
        for estimator in ("symmetric", "total_least_squares"):
            yield dataclasses.replace(best, estimator=estimator)
    if wanted.observables == "auto":
        for rank in RANKS_OF_STATES if any_rank else (wanted.rank,):
            if rank < 2 * wanted.rank:
                yield dataclasses.replace(best, observables="state", rank=min(rank, wanted.rank))


def mean(members: Sequence[tuple[float, list[Tensor | None]]], split: int) -> Tensor | None:
    """Weighted mean of what several operators predict from one head."""
    total = None
    for weight, moved in members:
        own = moved[split]
        if own is not None:
            total = weight * own + (0 if total is None else total)
    return total


def choose(states: Tensor, wanted: Recipe) -> tuple[list[tuple[float, Recipe]], float, float]:
    """Recipes for a block's states (m, n_b) whose mean predicts, with their weights (the inverse of
    their errors), heaviest first; its error in the hindcast and trusted horizon.

    First least squares: for every number of delays the average and part of the window of the lowest
    score, those near the preferred ones favoured. The mean of what they predict, weighted by the
    inverse of their errors, has less chance in it than any of them. Other estimators and states
    take its place only if they score better by MARGIN, on the first head and in all. Rank 0, stand
    still (error 1), wins where nothing does better.
    """
    any_rank = wanted.wanted.rank == "auto"
    plain = dataclasses.replace(
        wanted,
        observables="increments" if wanted.observables == "auto" else wanted.observables,
        delays=1 if wanted.delays == "auto" else wanted.delays,
        block_average=1 if wanted.block_average == "auto" else wanted.block_average,
        estimator="least_squares" if wanted.estimator == "auto" else wanted.estimator,
    )
    m, still = len(states), dataclasses.replace(plain, rank=0)
    needed = int(plain.delays) + (2 if plain.observables == "increments" else 1)
    if m < int(plain.block_average) * needed + 2:
        return [(1.0, plain)], math.nan, math.nan
    if any(bool((states[head:] == states[head - 1]).all()) for head in heads(m)):
        return [(1.0, still)], 1.0, 0.0
    full = min(FULL_RANK, wanted.rank) if any_rank else wanted.rank
    best: list[tuple[float, Recipe, list[Tensor | None]]] = []
    for q in DELAYS if wanted.delays == "auto" else (int(wanted.delays),):
        own = []
        for a, part, penalty in filters(m, q, wanted):
            recipe = dataclasses.replace(plain, delays=q, block_average=a, part=part, rank=full)
            moved = predictions(states, recipe)
            own.append((score(states, moved) + penalty, recipe, moved))
        best += [min(own, key=lambda candidate: candidate[0])] if own else []
    best.sort(key=lambda candidate: candidate[0])
    if plain.observables == "state" or not any_rank:
        del best[1:]  # a mean is of displacements, and of more directions than each
    chosen = [(math.exp(-own), recipe) for own, recipe, _ in best]
    total = sum(weight for weight, _ in chosen)
    weighed = [(math.exp(-own) / total, moved) for own, _, moved in best]
    moved = [mean(weighed, split) for split in range(len(PARTS))]
    lowest = score(states, moved)
    bar = lowest - MARGIN if lowest >= math.log(GOOD_ERROR) else -math.inf
    if bar > -math.inf:
        first = heads(m)[0]
        first_bar = log_error(states, first, moved[0]) - MARGIN
        for recipe in challengers(best[0][1], wanted, any_rank):
            alone = predicted(states[:first], m - first, recipe)
            if not log_error(states, first, alone) < first_bar:
                continue  # the other heads are not looked at
            other = predictions(states, recipe)
            if (own_score := score(states, other)) < bar:
                chosen, moved, lowest, bar = [(1.0, recipe)], other, own_score, own_score
    if not lowest < 0:
        return [(1.0, dataclasses.replace(best[0][1], rank=0))], 1.0, 0.0
    head = heads(m)[1]
    truth = states[head:] - states[head - 1]
    reported = moved[1]
    trusted = 0.0 if reported is None else trusted_intervals(reported, truth)
    return chosen, error_of(reported, truth), trusted
