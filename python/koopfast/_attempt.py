# SPDX-License-Identifier: BSD-3-Clause
"""One attempt at a jump: fit the window, predict, let the guard judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from torch import Tensor

from koopfast._adaptive import Predictions, is_uneven
from koopfast._distributed import Alone, fit_failures
from koopfast._rehearsal import Rehearsal
from koopfast._savepoint import Savepoint
from koopfast._unmoved import Unmoved
from koopfast.config import KoopmanConfig
from koopfast.controller import Controller
from koopfast.guard import Guard, Look, Probe, Verdict
from koopfast.moments import MomentBuffer
from koopfast.operator import KoopmanOperator
from koopfast.parameters import ParameterVector
from koopfast.partition import Partition
from koopfast.snapshots import SnapshotBuffer

__all__ = ["Attempt", "probed", "refused"]

# Candidates are predicted together up to this much memory. All eleven of a search fit for ten
# million float32 weights; for a billion, each row is formed alone and only if it is tried.
_CANDIDATE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Attempt:
    """Fits a full window and judges what the fit predicts.

    Attributes:
        config: how to fit, and the horizons to try where no controller searches for them.
        parameters: written with the weights under trial.
        partition: their blocks.
        snapshots: the window.
        lag: optimizer steps since its last snapshot.
        guard: judges.
        controller: searches, where there is one.
        team: fits and predicts the same, or fails together.
    """

    config: KoopmanConfig
    parameters: ParameterVector
    partition: Partition
    snapshots: SnapshotBuffer | MomentBuffer
    lag: int
    guard: Guard
    controller: Controller | None
    team: Alone

    def fit(self) -> KoopmanOperator:
        """The operator of the window.

        Raises:
            FitFailure: there is no memory for it, or the like.
        """
        return self.team.fit(self._own_fit, self.snapshots, self.partition, self.config)

    def _own_fit(self) -> KoopmanOperator:
        options = self.config.fit_options
        with fit_failures():
            if isinstance(self.snapshots, MomentBuffer):
                return self.snapshots.fit_with(options)
            return KoopmanOperator.fit(self.snapshots.snapshots, self.partition, **vars(options))

    def foresee(self, rehearsal: Rehearsal) -> tuple[int, list[int], Tensor] | None:
        """The window's span, horizons in optimizer steps, and the weights predicted there (k, n).

        None where nothing can be predicted.

        Raises:
            FitFailure: there is no memory for it, or the like.
        """
        operator = self.fit()
        if operator.failure() is not None:
            return None
        stride = self.snapshots.stride
        span = (self.snapshots.count - 1) * stride
        horizons = rehearsal.horizons(span)
        rows = self._predictor(operator)([(h + self.lag) / stride for h in horizons])
        return span, horizons, rows

    def judge(
        self,
        operator: KoopmanOperator,
        probe: Probe | None,
        savepoint: Savepoint,
        look: Look | None,
    ) -> tuple[Verdict, float]:
        """What the guard says to the operator's predictions, and the seconds these took."""
        guard, parameters, controller = self.guard, self.parameters, self.controller
        averaged = controller is not None and self._rows.average
        verdict = _refusal(operator, **({} if look is None else probed(look)))
        # Where nothing is predicted, the mean of the snapshots may still be better than the last.
        if verdict is not None and not (averaged and verdict.kind == "still"):
            return verdict, 0.0
        if controller is None or probe is None:
            horizons = _horizons(self.config, self.snapshots)
            in_order = _InOrder(self.snapshots, self._predictor(operator), horizons, self.lag)
            candidates = Unmoved(self.snapshots, parameters).among(in_order)
            return guard.judge(parameters, candidates, savepoint, probe), in_order.seconds
        if look is None:
            look = guard.look(savepoint, probe)
            controller.spend(1, len(look.parts))
            controller.begin(look.loss)
        predict = self._predictor(operator)
        predictions = Predictions(self._rows, predict, operator, self.lag, _CANDIDATE_BYTES)
        asked = controller.search(
            look.loss,
            averaged,
            still=operator.still,
            uneven=self._damps and is_uneven(operator),
            straight=self._may_leave_horizon,
        )
        search = Unmoved(self._rows, parameters).in_search(predictions.search(asked))
        verdict = guard.judge_search(parameters, search, savepoint, probe, look, controller.worth)
        again = 0 if guard.recalibration is None else guard.recalibration.passes
        controller.spend(verdict.probe_evaluations - 1, len(look.parts) + again)
        return verdict, predictions.seconds

    def _predictor(self, operator: KoopmanOperator) -> Callable[[list[float]], Tensor]:
        """The operator's predictions; where they fail on any process, FitFailure on all."""

        def own(horizons: list[float]) -> Tensor:
            with fit_failures():
                return operator.predict(horizons)

        return lambda horizons: self.team.agreed(lambda: own(horizons))

    @property
    def _may_leave_horizon(self) -> bool:
        """Whether weights may be another than the operator's at a horizon: what is kept of the
        weights beside them must not be meant to have gone as far."""
        return self.config.optimizer_state != "predict"

    @property
    def _damps(self) -> bool:
        """Whether blocks may go less far than others: all of each must lie here."""
        return self.parameters.layout == "" and self._may_leave_horizon

    @property
    def _rows(self) -> SnapshotBuffer:
        """The snapshots where they are kept, as always under a controller."""
        assert isinstance(self.snapshots, SnapshotBuffer)
        return self.snapshots


class _InOrder:
    """(horizon in optimizer steps, weights (n,)) one after the other, formed in groups on demand.

    Each group is new memory, so that a row stays good while the next group is formed.
    """

    def __init__(
        self,
        snapshots: SnapshotBuffer | MomentBuffer,
        predict: Callable[[list[float]], Tensor],
        horizons: Sequence[int],
        lag: int,
    ) -> None:
        self._predict = predict
        self._horizons = horizons
        self._lag = lag
        self._stride = snapshots.stride
        self._row_bytes = snapshots.vector.n * snapshots.vector.dtype.itemsize
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        size = max(1, _CANDIDATE_BYTES // self._row_bytes)
        for first in range(0, len(self._horizons), size):
            group = self._horizons[first : first + size]
            started = perf_counter()
            # Horizons count from now, the operator's powers from the last snapshot.
            rows = self._predict([(h + self._lag) / self._stride for h in group])
            self.seconds += perf_counter() - started
            yield from zip(group, rows, strict=True)


def probed(look: Look) -> dict[str, Any]:
    """A look as the fields of a verdict."""
    return {"loss_before": look.loss, "probe_evaluations": 1, "seconds_probe": look.seconds}


def _horizons(config: KoopmanConfig, snapshots: SnapshotBuffer | MomentBuffer) -> list[int]:
    """Horizons to try, in optimizer steps: the fixed one, or ¼, ½, 1, 2, 4 … windows.

    A window spans the intervals between its snapshots. The longest horizon is
    ``max_horizon`` windows, whether or not it is a power of two.
    """
    if config.horizon != "search":
        return [config.horizon]
    span = (snapshots.count - 1) * snapshots.stride
    powers = range(-2, math.ceil(math.log2(config.max_horizon)) + 1)
    windows = [min(2.0**power, config.max_horizon) for power in powers]
    return sorted({max(1, round(span * factor)) for factor in windows})


def _refusal(operator: KoopmanOperator, **probed: Any) -> Verdict | None:
    """A verdict without a trial, where the operator has nothing to predict."""
    reason = operator.failure()
    if reason is None:
        return None
    return refused("still" if operator.ok else "operator", reason, **probed)


def refused(kind: str, reason: str, **probed: Any) -> Verdict:
    """A verdict without a trial; ``probed`` is what :func:`probed` gave, if there was a look."""
    empty = {"loss_before": None, "loss_after": None, "candidates": ()}
    return Verdict(accepted=False, horizon=0, kind=kind, reason=reason, **{**empty, **probed})
