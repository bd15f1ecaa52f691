# SPDX-License-Identifier: BSD-3-Clause
"""Which weights an attempt tries, one after the other, as the losses found so far suggest.

Like the controller, this knows numbers only; :mod:`koopfast._adaptive` forms the weights.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["RECENT_MEAN", "SHORTEST", "Candidate", "Damped", "HorizonSearch", "Secant"]

RECENT_MEAN: Final = "mean"

SHORTEST = -2
"""The shortest horizon is a quarter of a window, 2**SHORTEST."""


@dataclass(frozen=True)
class Damped:
    """A horizon in windows, each block's way there shortened by its hindcast error."""

    windows: float


@dataclass(frozen=True)
class Secant:
    """Straight on by so many windows, in the direction from the first snapshot to the last."""

    windows: float


Candidate = float | Literal["mean"] | Damped | Secant
"""A horizon in windows, the mean of the window's second half, a damped horizon, or a secant's."""

Search = Generator[Candidate, float, float]
"""Candidates, each answered with its loss; returns a loss, the least unless said otherwise."""


@dataclass
class HorizonSearch:
    """All that is remembered from one attempt to the next, as numbers.

    ``highest`` is the longest horizon's power of two everywhere, ``rare`` says that the attempt is
    one at which what seldom wins is tried too.
    """

    power: int = 1  # the horizon that was last good is 2**power windows
    direction: int = 1  # in which a better horizon is looked for first
    mean_won: bool = False
    damped_won: bool = False
    secant: int = 0  # the secant that was last good goes on by 2**secant windows
    secant_won: bool = False

    def mean_alone(self, before: float) -> Search:
        """Where nothing else is predicted."""
        mean = yield RECENT_MEAN
        self.mean_won = mean < before
        return mean

    def candidates(
        self,
        before: float,
        enough: float,
        highest: int,
        *,
        averaged: bool,
        uneven: bool,
        straight: bool,
        rare: bool,
    ) -> Search:
        """One attempt, from a loss ``before``, for one that is ``enough``, or lower.

        See :meth:`koopfast.controller.Controller.search`. Returns that at the mean, infinity if it
        was not tried.

        What won last time comes first: the secant, the mean, a horizon. Where the secant is good
        again, horizons are tried at rare attempts only; where it did not win, it is tried at those
        and where nothing else is good enough.
        """
        secant = mean = ahead = math.inf
        secant_first = straight and self.secant_won
        if secant_first:
            secant = yield from self._secants(before, highest)
        if averaged and self.mean_won:
            mean = yield RECENT_MEAN
        if rare or not secant < before:
            ahead = yield from self._horizons(before, enough, secant, highest)
        if averaged and not self.mean_won and not min(ahead, secant) < before:
            mean = yield RECENT_MEAN
        self.mean_won = mean < min(before, ahead, secant)
        if ahead <= enough and uneven and (rare or self.damped_won):
            damped = yield Damped(2.0**self.power)
            self.damped_won = damped < min(ahead, mean)
        best = min(before, ahead, mean)
        if straight and not secant_first and (rare or best > enough):
            secant = yield from self._secants(best, highest)
        self.secant_won = secant < best
        return mean

    def _horizons(self, before: float, enough: float, rival: float, highest: int) -> Search:
        """From the horizon that was good last by factors of two, as long as the loss goes down.

        Where it is above ``before``, and a ``rival`` is not below that already: the shortest, and
        if that can lead to a loss that is ``enough`` down to the best of those between. Where the
        loss is convex along the way, twice the horizon gains twice as much at most.
        """
        k = min(max(self.power, SHORTEST), highest)
        losses = {k: (yield 2.0**k)}
        if losses[k] < min(before, rival):
            k = yield from self._climb(k, highest, losses)
        elif not rival < before:
            self.direction = 1
            if k > SHORTEST:
                losses[SHORTEST] = yield 2.0**SHORTEST
                most = (before - losses[SHORTEST]) * 2.0 ** (k - 1 - SHORTEST)
                if losses[SHORTEST] < before and before - most <= enough:
                    k = yield from self._descend(k, losses)
        good = losses[k] < before
        self.power = k if good else max(SHORTEST, min(self.power, 2) - 1)
        return min((loss for loss in losses.values() if loss == loss), default=math.nan)

    def _descend(self, above: int, losses: dict[int, float]) -> Generator[Candidate, float, int]:
        """From the horizon that is too far by factors of two, until the loss has been lower."""
        best = SHORTEST
        for k in range(above - 1, SHORTEST, -1):
            losses[k] = yield 2.0**k
            if losses[k] < losses[best]:
                best = k
            elif best > SHORTEST:
                break
        return best

    def _climb(
        self, k: int, highest: int, losses: dict[int, float]
    ) -> Generator[Candidate, float, int]:
        start, ahead = k, k + self.direction
        while SHORTEST <= ahead <= highest and ahead not in losses:
            losses[ahead] = yield 2.0**ahead
            if not losses[ahead] < losses[k]:
                break
            k, ahead = ahead, ahead + self.direction
        if k == start:
            self.direction = -self.direction
        return k

    def _secants(self, best: float, highest: int) -> Search:
        """From the secant that was good last, twice as far as long as the loss goes down."""
        k = min(max(self.secant, SHORTEST), highest)
        least = yield Secant(2.0**k)
        if not least < best:
            self.secant = max(SHORTEST, k - 1)
            return least
        while k < highest:
            further = yield Secant(2.0 ** (k + 1))
            if not further < least:
                break
            k, least = k + 1, further
        self.secant = k
        return least
