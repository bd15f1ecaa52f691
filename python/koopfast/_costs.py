# SPDX-License-Identifier: BSD-3-Clause
"""What jumps cost, by the clock."""

from __future__ import annotations

import dataclasses
from time import perf_counter

from koopfast.history import Counters

__all__ = ["Since", "seconds"]


class Since:
    """Time, and what was spent on jumps, since the first question."""

    def __init__(self) -> None:
        self._at, self._then = 0.0, Counters()
        self._begun = False

    def __call__(self, counters: Counters) -> tuple[float, float, int]:
        """Seconds spent, seconds gone by and optimizer steps taken since then."""
        if not self._begun:
            self._at, self._then = perf_counter(), dataclasses.replace(counters)
            self._begun = True
        stages = ("record", "fit", "predict", "probe")
        spent = seconds(counters, *stages) - seconds(self._then, *stages)
        steps = counters.optimizer_steps - self._then.optimizer_steps
        return spent, perf_counter() - self._at, steps


def seconds(counters: Counters, *stages: str) -> float:
    """The sum of the seconds that ``stages`` took."""
    return float(sum(getattr(counters, f"seconds_{stage}") for stage in stages))
