# SPDX-License-Identifier: BSD-3-Clause
"""What jumps cost, by the clock."""

from __future__ import annotations

from time import perf_counter

from koopfast.history import Counters

__all__ = ["Clock", "seconds"]

# A step that takes so many times as long as others was interrupted: by a validation, a checkpoint,
# a cell of a notebook that waited for its reader.
_INTERRUPTED = 3.0
# What is usual rises by this factor with each longer step, and goes half the way to each shorter
# one: so it stays near the shorter ones even if every second step is interrupted.
_RISE = 1.02


class Clock:
    """Time in training steps, and in what a trainer does beside them.

    Of a step that was interrupted only as much counts as steps usually take.

    Attributes:
        steps: how many were counted.
        trained: their seconds.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.trained = 0.0
        self._spent = 0.0
        self._since: float | None = None  # when the trainer began or ended its work
        self._inside = False
        self._pending = 0.0  # of the step that is going on
        self._usual = 0.0

    def enter(self) -> None:
        """The trainer begins to work."""
        now = perf_counter()
        if self._since is not None:
            self._pending += now - self._since
        self._since, self._inside = now, True

    def leave(self) -> None:
        """It has ended."""
        now = perf_counter()
        assert self._since is not None, "enter() comes first"
        self._spent += now - self._since
        self._since, self._inside = now, False

    def step(self) -> None:
        """An optimizer step has been taken. The first has no beginning and is not counted."""
        pending, self._pending = self._pending, 0.0
        if pending == 0:
            return
        if self.steps == 0:
            self._usual = pending
        longer = pending > self._usual
        self._usual = _RISE * self._usual if longer else (self._usual + pending) / 2
        self.trained += pending if pending <= _INTERRUPTED * self._usual else self._usual
        self.steps += 1

    @property
    def spent(self) -> float:
        """Seconds of the trainer's work, up to now."""
        if self._since is None or not self._inside:
            return self._spent
        return self._spent + perf_counter() - self._since


def seconds(counters: Counters, *stages: str) -> float:
    """The sum of the seconds that ``stages`` took."""
    return float(sum(getattr(counters, f"seconds_{stage}") for stage in stages))
