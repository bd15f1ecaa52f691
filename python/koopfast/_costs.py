# SPDX-License-Identifier: BSD-3-Clause
"""What jumps cost, by the clock."""

from __future__ import annotations

from time import perf_counter

__all__ = ["Clock"]

# Of a step that takes longer than so many others the rest was something else: a validation, a
# checkpoint, a cell of a notebook that waited for its reader. A busy machine makes one step in ten
# take several times as long, and that is training.
_LONGEST = 10.0
# What is usual rises by this factor with each longer step, and goes half the way to each shorter
# one: so it stays near the shorter ones even if every second step is interrupted.
_RISE = 1.02


class Clock:
    """Time in training steps, and in what a trainer does after them.

    Of a step that something else interrupted no more counts than some steps usually take.

    Attributes:
        steps: how many were counted.
        trained: their seconds.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.trained = 0.0
        self._spent = 0.0
        self._left: float | None = None  # when the trainer had ended its work
        self._entered: float | None = None  # when it began the work that is going on
        self._between = 0.0  # the time from one of these to the other
        self._usual = 0.0
        self._begun = False
        self._looked = 0.0  # in steps in which there was nothing to do
        self._idle_steps = 0

    def enter(self, *, working: bool) -> None:
        """The trainer has the word; if not ``working`` it does no more than look on."""
        now = perf_counter()
        if self._left is not None:
            self._between += now - self._left
        self._left, self._entered = now, now if working else None

    def leave(self) -> None:
        """It has ended."""
        now = perf_counter()
        if self._entered is not None:
            self._spent += now - self._entered
        elif self._left is not None:
            self._looked += now - self._left
        self._left, self._entered = now, None

    def resume(self) -> None:
        """What happened since the last word was no training: the step begins now."""
        if self._left is not None:
            self._left, self._between = perf_counter(), 0.0

    def step(self) -> None:
        """What the trainer has the word after is an optimizer step.

        The first is not counted: nobody knows when it began.
        """
        took, self._between = self._between, 0.0
        begun, self._begun = self._begun, True
        if not begun or took == 0:
            return
        self._idle_steps += self._entered is None
        if self.steps == 0:
            self._usual = took
        longer = took > self._usual
        self._usual = _RISE * self._usual if longer else (self._usual + took) / 2
        self.trained += min(took, _LONGEST * self._usual)
        self.steps += 1

    @property
    def idle_share(self) -> float:
        """Of a step's time, what looking on takes where there is nothing else to do."""
        if self._idle_steps == 0 or self.trained <= 0:
            return 0.0
        looking = self._looked / self._idle_steps
        return looking / (looking + self.trained / self.steps)

    @property
    def spent(self) -> float:
        """Seconds of the trainer's work, up to now."""
        return self._spent + (0.0 if self._entered is None else perf_counter() - self._entered)
