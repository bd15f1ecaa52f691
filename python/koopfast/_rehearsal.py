# SPDX-License-Identifier: BSD-3-Clause
"""A dry run: predictions that wait for the future they are of, and what it then says of them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from koopfast.config import KoopmanConfig
from koopfast.controller import FORWARD
from koopfast.errors import CheckpointError
from koopfast.history import Forecast

__all__ = ["Outlook", "OutlookRow", "Rehearsal", "outlook", "relative_error"]

# In windows: from the shortest jump that a trainer tries to as far as is worth waiting for.
_HORIZONS = (0.25, 0.5, 1.0, 2.0, 4.0)
# Predictions that wait are kept up to this much memory; beyond it, fewer horizons are looked at.
_MOST_BYTES = 512 * 2**20
# A prediction that misses by half of the true motion is still nearer than standing still.
_GOOD = 0.5
_LEAST_GAIN = 1e-3  # of the loss, for a jump to count
_WORTH = 0.05  # of a window's steps, to be gained by each


def relative_error(predicted: Tensor, real: Tensor, start: Tensor) -> float:
    """The distance from ``real`` as a multiple of what ``real`` had moved: 1 is standing still."""
    real, start = real.double(), start.double()
    away = float((predicted.to(real) - real).norm())  # snapshots may lie elsewhere
    moved = float((real - start).norm())
    return away / moved if moved > 0 else (0.0 if away == 0 else math.inf)


@dataclass(frozen=True)
class _Waiting:
    step: int
    stride: int
    horizon: int
    windows: float
    weights: Tensor
    start: Tensor
    loss_before: float | None
    loss_predicted: float | None


class Rehearsal:
    """Which windows a dry run records, and what it expects of the steps to come.

    With a stride that sets itself it takes 1, 4 and 16 steps in turn, since one of them is what a
    trainer would come to.
    """

    def __init__(self, config: KoopmanConfig) -> None:
        self._config = config
        self._turn = 0
        self._waiting: list[_Waiting] = []

    @property
    def stride(self) -> int:
        """Optimizer steps from one snapshot to the next, in the window that begins now."""
        strides = self._config.rehearsed_strides
        return strides[self._turn % len(strides)]

    @property
    def average(self) -> bool:
        """Whether snapshots of that window are means over the stride."""
        given = self._config.average
        return given is True or (given == "auto" and self.varies and self.stride > 1)

    @property
    def varies(self) -> bool:
        """Whether strides take turns."""
        return len(self._config.rehearsed_strides) > 1

    def next_window(self) -> None:
        """The window is over."""
        self._turn += 1

    def horizons(self, span: int) -> list[int]:
        """Optimizer steps ahead to predict, after a window of ``span`` steps."""
        config = self._config
        if config.horizon != "search":
            return [config.horizon]
        windows = (w for w in _HORIZONS if w <= config.max_horizon)
        return sorted({max(1, round(w * span)) for w in windows})

    def expect(
        self,
        step: int,
        span: int,
        horizons: Sequence[int],
        weights: Tensor,
        start: Tensor,
        losses: Sequence[float | None],
    ) -> None:
        """Keep predictions for when their time comes.

        Args:
            step: optimizer steps taken.
            span: of the window, in optimizer steps.
            horizons: (k,) in optimizer steps.
            weights: (k, n) predicted, taken over.
            start: (n,) of now.
            losses: of now and at each prediction, (1 + k).
        """
        before = losses[0]
        for horizon, row, loss in zip(horizons, weights, losses[1:], strict=True):
            kept = sum(w.weights.nbytes for w in self._waiting)
            if self._waiting and kept + row.nbytes > _MOST_BYTES:
                return
            self._waiting.append(
                _Waiting(
                    step, self.stride, horizon, horizon / span, row.clone(), start, before, loss
                )
            )

    def due(self, step: int) -> bool:
        """Whether a prediction is of the weights after ``step`` optimizer steps."""
        return any(w.step + w.horizon <= step for w in self._waiting)

    def compare(self, step: int, real: Tensor, loss: float | None) -> list[Forecast]:
        """What came of the predictions that are due, from the weights (n,) and their loss."""
        due = [w for w in self._waiting if w.step + w.horizon <= step]
        self._waiting = [w for w in self._waiting if w.step + w.horizon > step]
        return [
            Forecast(
                step=w.step,
                stride=w.stride,
                horizon=w.horizon,
                windows=w.windows,
                error=relative_error(w.weights, real, w.start),
                loss_before=w.loss_before,
                loss_predicted=w.loss_predicted,
                loss_real=loss,
            )
            for w in due
            if w.step + w.horizon == step
        ]

    def forget(self) -> None:
        """What comes is not what was predicted from: somebody else wrote weights, or the like."""
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """The place among the strides; predictions that wait are not saved."""
        return {"turn": self._turn}

    def load_state_dict(self, state: Any) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            CheckpointError: it is something else.
        """
        turn = state.get("turn") if isinstance(state, Mapping) else None
        if isinstance(turn, bool) or not isinstance(turn, int) or turn < 0:
            raise CheckpointError(
                f"state['controller']: expected the turn of a dry run, got {state!r}"
            )
        self._turn = turn
        self.forget()


@dataclass(frozen=True)
class OutlookRow:
    """Predictions of one stride and horizon, medians over windows; losses relative to the first.

    Attributes:
        stride: optimizer steps between snapshots.
        horizon: optimizer steps ahead.
        windows: the same as a multiple of the window.
        count: of predictions.
        error: of the weights, as :attr:`koopfast.history.Forecast.error`.
        predicted: loss at the prediction over that before; None without losses.
        real: loss of training when it was there, over that before.
    """

    stride: int
    horizon: int
    windows: float
    count: int
    error: float
    predicted: float | None
    real: float | None


@dataclass(frozen=True)
class Outlook:
    """What a dry run says about jumps.

    Attributes:
        rows: one a stride and horizon.
        stride: the one at which jumps would have gained most, 0 where there was none.
        gained: optimizer steps that a jump at that stride would have saved on average, probes
            deducted; None without losses.
        helps: whether jumps would help.
    """

    rows: tuple[OutlookRow, ...]
    stride: int
    gained: float | None
    helps: bool

    def in_words(self) -> str:
        """The verdict as a sentence."""
        if not self.rows:
            return "nothing can be said yet: train until a window's prediction has come due"
        if self.gained is None:
            good = [row for row in self.rows if row.error <= _GOOD]
            if not good:
                return "jumps would not help: no motion is predicted to within half of it"
            far = max(good, key=lambda row: row.horizon)
            return (
                f"jumps would help: {far.horizon} steps ahead ({far.windows:.2g} windows of stride "
                f"{far.stride}) weights are predicted to within half of the motion"
            )
        if not self.helps:
            return "jumps would not help: what they give at once, training reaches as soon"
        return (
            f"jumps would help: with stride {self.stride} each gives at once what training takes "
            f"{self.gained:.3g} steps for (as far as was looked ahead), probes deducted"
        )


def outlook(forecasts: Iterable[Forecast]) -> Outlook:
    """What ``forecasts`` say together."""
    told = sorted(forecasts, key=lambda f: (f.stride, f.horizon))
    rows = tuple(
        _row(stride, horizon, list(group))
        for (stride, horizon), group in itertools.groupby(told, lambda f: (f.stride, f.horizon))
    )
    with_losses = [f for f in told if f.loss_before is not None]
    if not with_losses:
        good = [row for row in rows if row.error <= _GOOD]
        stride = max(good, key=lambda row: row.horizon).stride if good else 0
        return Outlook(rows, stride, None, bool(good))
    gains: dict[int, float] = {}
    shares: dict[int, float] = {}
    for stride, group in itertools.groupby(with_losses, lambda f: f.stride):
        of_stride = list(group)
        windows = [[f for f in of_stride if f.step == step] for step in {f.step for f in of_stride}]
        gains[stride] = statistics.fmean(_gained(window) for window in windows)
        shares[stride] = gains[stride] / (of_stride[0].horizon / of_stride[0].windows)
    best = max(shares, key=lambda stride: shares[stride])
    return Outlook(rows, best, gains[best], shares[best] > _WORTH)


def _row(stride: int, horizon: int, group: list[Forecast]) -> OutlookRow:
    def median(values: Iterable[float | None]) -> float | None:
        numbers = [v for v in values if v is not None and not math.isnan(v)]
        return statistics.median(numbers) if numbers else None

    errors = [math.inf if math.isnan(f.error) else f.error for f in group]
    return OutlookRow(
        stride,
        horizon,
        group[0].windows,
        len(group),
        statistics.median(errors),
        median(_share(f.loss_predicted, f.loss_before) for f in group),
        median(_share(f.loss_real, f.loss_before) for f in group),
    )


def _share(loss: float | None, before: float | None) -> float | None:
    return None if loss is None or not before else loss / before


def _gained(window: list[Forecast]) -> float:
    """Steps that real training took to the lowest loss predicted after one window."""
    cost = (1 + len(window)) * FORWARD
    before = window[0].loss_before
    losses = [f.loss_predicted for f in window if f.loss_predicted is not None]
    best = min((loss for loss in losses if not math.isnan(loss)), default=math.inf)
    if before is None or not best < before - _LEAST_GAIN * abs(before):
        return -cost
    reached = (f.horizon for f in window if f.loss_real is not None and f.loss_real <= best)
    return min(reached, default=max(f.horizon for f in window)) - cost
