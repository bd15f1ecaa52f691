# SPDX-License-Identifier: BSD-3-Clause
"""How much of each optimizer step is gone, decided by what windows of training show.

Where consecutive steps cancel each other, at the edge of stability, and jumps were kept before,
steps are halved, and halved again, as long as windows show that. Longer ones are tried when several
windows in a row gained nothing, when nothing is to be tried, and each time that the evaluations
have doubled; that is undone where the loss rises or steps cancel again.

Like the controller, this knows numbers only; :mod:`koopfast._relaxation` does the shortening.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MOST_HALVINGS", "StepLength", "turns_back"]

MOST_HALVINGS = 4
# Two steps that cancel almost wholly. Independent noise on a step gives no less than -1/2.
_TURNING = -0.8
_TRIAL = 3  # windows in which jumps from steps shortened anew may show what they bring
_CALM = 16  # windows, at least, in which steps stay shortened where that pays
_LAME = 4  # windows of shortened steps in a row that gained nothing, before longer ones are tried
_PATIENCE = 2.0  # times the evaluations so far, before longer steps are tried once more


def turns_back(cosine: float) -> bool:
    """Whether two steps with this cosine cancel each other; False if it is NaN."""
    return cosine < _TURNING


@dataclass
class StepLength:
    """All that is remembered of it, as numbers. Times are in gradient evaluations since the start.

    ``now`` is such a time everywhere, ``window`` the snapshots in a window.
    """

    halvings: int = 0  # steps go 2**-halvings of their way
    shorten_at: float = 0.0  # before that, whole steps are not shortened
    free_until: float = 0.0  # until then shortened steps may lose something
    rise_at: float = 0.0  # longer steps are tried then
    rise_after: float = 0.0  # and not before that
    turned: bool = False  # the last two steps of the window before cancelled each other
    rising: bool = False  # the window is the trial of longer steps
    lame: int = 0  # windows of shortened steps in a row that gained nothing

    @property
    def part(self) -> float:
        """Share of each step that is to be gone."""
        return 2.0**-self.halvings

    @property
    def shortened(self) -> bool:
        """Whether steps go part of their way only."""
        return self.halvings > 0

    def free(self, now: float, window: int) -> int:
        """Evaluations that may be lost while steps shortened anew show what they bring."""
        return _TRIAL * window if self.shortened and now < self.free_until else 0

    def may_rise(self, now: float) -> bool:
        """Whether longer steps may be tried, if there is reason to."""
        return self.shortened and now >= self.rise_after

    def shorten(self, now: float, window: int, *, jumped: bool) -> bool:
        """Halve the steps; False if that may not be.

        Args:
            jumped: whether any jump was ever kept: where none was, training stays what it is
                without a trainer.
        """
        if self.halvings == MOST_HALVINGS:
            return False
        if not self.shortened:
            if now < self.shorten_at or not jumped:
                return False
            self.free_until = now + _TRIAL * window
        self.halvings += 1
        self.lame = 0
        self.rise_after, self.rise_at = now, _later(now, window)
        return True

    def rise(self, now: float, *, idle: bool) -> bool:
        """Double shortened steps, on trial, if it is time to.

        Args:
            idle: whether nothing else is to be tried now.
        """
        if not self.may_rise(now):
            return False
        if not (self.lame >= _LAME or idle or now >= self.rise_at):
            return False
        self.halvings -= 1
        self.rising = True
        return True

    def keep(self, now: float) -> None:
        """Longer steps were tried and are as good."""
        if not self.shortened and now < self.rise_at:  # for want of gains
            self.shorten_at = 2 * now

    def fall_back(self, now: float, window: int) -> None:
        """Longer steps were tried in vain."""
        self.halvings, self.lame = min(self.halvings + 1, MOST_HALVINGS), 0
        self.rise_after, self.rise_at = _PATIENCE * now, _later(now, window)

    def count(self, *, gained: bool) -> None:
        """A window of it is over."""
        self.lame = 0 if gained else self.lame + 1

    def forget(self) -> None:
        """What comes is not to be compared with what was."""
        self.rising = self.turned = False


def _later(now: float, window: int) -> float:
    """When longer steps are tried though shortened ones pay."""
    return now + max(now, _CALM * window)
