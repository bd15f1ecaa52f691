# SPDX-License-Identifier: BSD-3-Clause
"""Accept a jump or refuse it: the guard looks at predicted weights and at the loss they give."""

from __future__ import annotations

import cmath
import math
import numbers
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from koopfast._batch_norm import Recalibration
from koopfast._distributed import Alone
from koopfast._savepoint import Buffers, Savepoint, restore_all
from koopfast.errors import ConfigError
from koopfast.parameters import ParameterVector

__all__ = ["Guard", "Look", "Probe", "Search", "Verdict", "check_probe", "scalar_loss"]

Probe = Callable[[], Any]
Search = Generator[tuple[int, Tensor], float, None]
"""Yields (horizon in optimizer steps, weights (n,)) and is answered with the loss they give."""

# The loss over the horizon falls and then rises, with ripples where a pair of complex eigenvalues
# turns: one bad candidate may be a ripple, a second in a row is the far side of the valley.
_MISSES = 2
# A gain over several batches counts if it is so many times its own standard error. Of fewer batches
# than that the error cannot be told.
_SURE = 2.0
_LEAST_BATCHES = 3
_STALE = (
    "the probe returned the same tensor at all weights, a loss that was computed before; let it "
    "compute the loss anew, probe=lambda: loss_fn(model(x), y)"
)


@dataclass(frozen=True)
class Look:
    """One evaluation of a probe: the mean of the losses it returned, and each of them."""

    loss: float
    parts: tuple[float, ...]
    seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What a :class:`Guard` found. The fields are those of :class:`~koopfast.JumpRecord`."""

    accepted: bool
    horizon: int
    loss_before: float | None
    loss_after: float | None
    candidates: tuple[tuple[int, float], ...]
    kind: str
    reason: str
    probe_evaluations: int = 0
    seconds_probe: float = 0.0


class Guard:
    """Chooses among predicted weights and leaves the chosen ones, or the old ones, in the model.

    Args:
        kind: ``"probe"`` keeps the candidate with the lowest probed loss, if that is strictly
            lower than the loss before; ``"finite"`` keeps the first candidate if all its weights
            are finite, and never calls the probe.
        gradients: whether the probe runs with gradients enabled; ``"auto"`` tries without, and
            repeats with them when autograd says that they are missing.
        team: the processes that judge together: losses are means over them, and weights are
            finite if all of them are.

    Attributes:
        needs_gradients: True once a probe turned out to need gradients (or was said to).
        stale: whether the probe returned, at its last call, the very tensor of the call before.
        recalibration: computes statistics of batches for weights under trial before these are
            probed; those of the weights that are kept stay in the model.
    """

    def __init__(
        self,
        kind: Literal["probe", "finite"],
        gradients: bool | Literal["auto"] = "auto",
        team: Alone | None = None,
    ) -> None:
        self.kind = kind
        self.team = Alone() if team is None else team
        self.needs_gradients = gradients is True
        self.stale = False
        self._returned: weakref.ref[Tensor] | None = None
        self.recalibration: Recalibration | None = None
        self._may_repeat = gradients == "auto"

    def look(self, savepoint: Savepoint, probe: Probe) -> Look:
        """The loss at the weights in place; errors as :meth:`judge`."""
        try:
            return _Timed(self, probe).look(savepoint)
        except BaseException:
            savepoint.restore()
            raise

    def look_at(
        self, parameters: ParameterVector, weights: Tensor, savepoint: Savepoint, probe: Probe
    ) -> Look:
        """The loss at ``weights`` (n,), of which none stays; errors as :meth:`judge`."""
        try:
            parameters.write(weights, backup=False)
            return _Timed(self, probe).look(savepoint, moved=True)
        finally:
            savepoint.restore()

    def losses(
        self,
        parameters: ParameterVector,
        rows: Iterable[Tensor],
        savepoint: Savepoint,
        probe: Probe,
    ) -> list[Look]:
        """The losses at the weights in place and at each of ``rows`` (n,), which none stays of.

        That of weights that are not finite is NaN. Errors as :meth:`judge`.
        """
        looks = [self.look(savepoint, probe)]
        for weights in rows:
            if _is_finite(parameters, weights):
                looks.append(self.look_at(parameters, weights, savepoint, probe))
            else:
                looks.append(Look(math.nan, ()))
        return looks

    def judge(
        self,
        parameters: ParameterVector,
        candidates: Iterable[tuple[int, Tensor]],
        savepoint: Savepoint,
        probe: Probe | None = None,
    ) -> Verdict:
        """Try the candidates in order and keep at most one.

        Args:
            parameters: written with the weights under trial.
            candidates: (horizon in optimizer steps, weights (n,)), short horizons first; made
                lazily if the iterable is, and not asked for after the search has stopped.
            savepoint: taken before; every evaluation of the probe starts from it (the same random
                streams, buffers and modes, no gradients), and ends with it.
            probe: returns the loss as a float or a tensor with one element.

        Raises:
            ConfigError: there is no probe but ``kind`` is "probe", or what it returned is not a
                scalar.
            Exception: whatever the probe raises. In each case everything is as in ``savepoint``.
        """
        if self.kind == "probe" and probe is None:
            raise ConfigError('probe: guard="probe" needs a callable that returns the loss')
        try:
            if probe is None or self.kind == "finite":
                return _judge_finite(parameters, candidates, self.team)
            timed = _Timed(self, probe)
            before = timed.look(savepoint)
            return _try(parameters, _in_order(candidates, before.loss), savepoint, timed, before)
        except BaseException:
            savepoint.restore()
            raise

    def judge_search(
        self,
        parameters: ParameterVector,
        search: Search,
        savepoint: Savepoint,
        probe: Probe,
        before: Look,
        worth: Callable[[float, float], bool],
    ) -> Verdict:
        """Try what ``search`` asks for and keep at most one; other arguments as :meth:`judge`.

        Args:
            search: ends by itself.
            before: the look at the weights in place; it is counted in the verdict.
            worth: whether to jump from one loss to another, lower one.
        """
        try:
            timed = _Timed(self, probe, before)
            return _try(parameters, search, savepoint, timed, before, worth)
        except BaseException:
            savepoint.restore()
            raise

    def _evaluate(
        self, probe: Probe, savepoint: Savepoint, moved: bool
    ) -> tuple[tuple[float, ...], Buffers | None]:
        """The probed losses at the weights in place, from the savepoint and back to it.

        With the buffers that they were probed with, where these were computed anew since the
        weights were ``moved``.
        """
        team, statistics = self.team, list[Buffers]()

        def losses() -> tuple[float, ...]:
            with team.probing():
                if moved and self.recalibration is not None:
                    statistics.append(self._recalibrated(self.recalibration, savepoint))
                return self._called(probe, savepoint)

        found = team.mean(team.agreed(losses))
        return found, statistics[0] if statistics else None

    def recalibrate(self, savepoint: Savepoint) -> None:
        """Compute statistics of batches for the weights in place, where that is wanted."""
        recalibration, team = self.recalibration, self.team
        if recalibration is None:
            return

        def work() -> None:
            with team.probing():
                self._recalibrated(recalibration, savepoint)

        team.agreed(work)

    def _recalibrated(self, recalibration: Recalibration, savepoint: Savepoint) -> Buffers:
        savepoint.gradients.hide()
        torch.clear_autocast_cache()
        try:
            return recalibration.run()
        finally:
            torch.clear_autocast_cache()
            restore_all(savepoint.gradients, savepoint.modes, savepoint.random)

    def _called(self, probe: Probe, savepoint: Savepoint) -> tuple[float, ...]:
        if self._may_repeat and not self.needs_gradients:
            try:
                return self._call(probe, savepoint, gradients=False)
            except RuntimeError as error:
                # autograd's wording varies ("does not require grad", "does not have a grad_fn",
                # "requires_grad=False", ...); a repeat in vain costs one evaluation.
                if "grad" not in str(error).lower():
                    raise
            losses = self._call(probe, savepoint, gradients=True)
            self.needs_gradients = True
            return losses
        return self._call(probe, savepoint, gradients=self.needs_gradients)

    def _call(self, probe: Probe, savepoint: Savepoint, *, gradients: bool) -> tuple[float, ...]:
        savepoint.gradients.hide()
        # Within an autocast region torch keeps cast copies of the weights: of other candidates.
        torch.clear_autocast_cache()
        try:
            with torch.set_grad_enabled(gradients):
                value = probe()
                self._compare(value)
                if isinstance(value, (list, tuple)) and len(value) > 0:
                    return tuple(scalar_loss(item, "probe") for item in value)
                return (scalar_loss(value, "probe"),)
        finally:
            torch.clear_autocast_cache()
            savepoint.restore_surroundings()

    def _compare(self, value: Any) -> None:
        """Whether this loss is the one returned before, computed once and for all."""
        before = None if self._returned is None else self._returned()
        self.stale = before is not None and before is value
        self._returned = weakref.ref(value) if isinstance(value, Tensor) else None


class _Timed:
    """A probe with a count of its evaluations and the seconds they took."""

    def __init__(self, guard: Guard, probe: Probe, first: Look | None = None) -> None:
        self._guard = guard
        self.team = guard.team
        self._probe = probe
        self.statistics: Buffers | None = None  # of the last look
        self.evaluations = 0 if first is None else 1
        self.seconds = 0.0 if first is None else first.seconds

    @property
    def stale(self) -> bool:
        """Whether the last loss is the very tensor of the one before."""
        return self._guard.stale

    def look(self, savepoint: Savepoint, *, moved: bool = False) -> Look:
        started = perf_counter()
        parts, self.statistics = self._guard._evaluate(self._probe, savepoint, moved)
        seconds = perf_counter() - started
        self.seconds += seconds
        self.evaluations += 1
        return Look(sum(parts) / len(parts), parts, seconds)


def _in_order(candidates: Iterable[tuple[int, Tensor]], before: float) -> Search:
    """One candidate after the other, until two in a row are no better than the best."""
    least, misses = before, 0
    for candidate in candidates:
        loss = yield candidate
        if loss < least:
            least, misses = loss, 0
        else:
            misses += 1
        if misses == _MISSES or not math.isfinite(loss):
            return


def _try(
    parameters: ParameterVector,
    search: Search,
    savepoint: Savepoint,
    probe: _Timed,
    before: Look,
    worth: Callable[[float, float], bool] | None = None,
) -> Verdict:
    """Let ``search`` lead, keep the best if it is better, leave those weights in place.

    Should anything go wrong, the caller restores ``savepoint``: writing needs no copy of its own.
    """
    tried: list[tuple[int, float]] = []
    best, best_horizon, best_weights = before, 0, None
    bad_weights = False
    statistics: Buffers | None = None
    weights: Tensor | None = None
    answer: float | None = None
    while math.isfinite(before.loss):
        try:
            # A generator begins with None, whatever it is said to be answered with.
            horizon, weights = next(search) if answer is None else search.send(answer)
        except StopIteration:
            break
        if probe.team.all(_is_finite(parameters, weights)):
            parameters.write(weights, backup=False)
            look = probe.look(savepoint, moved=True)
            answer = look.loss
            if answer < best.loss:
                best, best_horizon, best_weights = look, horizon, weights
                statistics = probe.statistics
        else:
            answer, bad_weights = math.nan, True
        tried.append((horizon, answer))
    kind, reason = _in_words(before.loss, best_horizon, best.loss, tried, bad_weights)
    if best_weights is not None and not _is_sure(before.parts, best.parts):
        kind, reason = "no_gain", f"the gain to {best.loss:.6g} is within what batches differ by"
    elif best_weights is not None and worth is not None and not worth(before.loss, best.loss):
        kind, reason = "no_gain", f"the gain from {before.loss:.6g} to {best.loss:.6g} is too small"
    # Loss for loss the same: perhaps nothing was tried at all, after rounding.
    unmoved = all(loss == before.loss for _, loss in tried)
    if weights is not None and unmoved and probe.team.all(_is_lost(parameters, weights)):
        kind, reason = "rounded", _rounded_in_words(tried[-1][0])
    elif tried and unmoved and probe.stale:
        kind, reason = "stale", _STALE
    accepted = kind == "accepted"
    if best_weights is not None and accepted:
        parameters.write(best_weights, backup=False)
        if statistics is not None:
            statistics.restore()
    else:
        savepoint.weights.restore()
    return Verdict(
        accepted=accepted,
        horizon=best_horizon if accepted else 0,
        loss_before=before.loss,
        loss_after=best.loss if accepted else None,
        candidates=tuple(tried),
        kind=kind,
        reason=reason,
        probe_evaluations=probe.evaluations,
        seconds_probe=probe.seconds,
    )


def _is_sure(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether losses over the same batches fell by more than chance: a paired t statistic."""
    count = len(before)
    if count < _LEAST_BATCHES or len(after) != count:
        return True
    gains = np.subtract(before, after)
    return bool(gains.mean() > _SURE * gains.std(ddof=1) / math.sqrt(count))


def check_probe(probe: Any) -> None:
    """Raise ConfigError unless ``probe`` is None or can be called."""
    if probe is not None and not callable(probe):
        raise ConfigError(
            f"probe: expected a callable that returns the loss, got {type(probe).__name__}; write "
            "probe=lambda: loss_fn(model(x), y)"
        )


def scalar_loss(value: Any, source: str) -> float:
    """The number that ``source`` (a name for the message) returned.

    Raises:
        ConfigError: it is not a real number, nor a tensor or array with exactly one.
    """
    if type(value) is Tensor and value.numel() == 1:
        number = value.item()
        if type(number) is float:
            return number
    advice = "return one real number, for example loss.mean()"
    if isinstance(value, (Tensor, np.ndarray)):
        shape = tuple(value.shape)
        if math.prod(shape) != 1:
            kind = type(value).__name__
            raise ConfigError(
                f"{source}: expected a scalar, got a {kind} of shape {shape}; {advice}"
            )
        value = value.detach().item() if isinstance(value, Tensor) else value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f"{source}: expected a scalar, got {type(value).__name__}; {advice}")
    return float(value)


def _judge_finite(
    parameters: ParameterVector, candidates: Iterable[tuple[int, Tensor]], team: Alone
) -> Verdict:
    horizon, weights = next(iter(candidates))
    accepted = team.all(_is_finite(parameters, weights))
    if accepted and team.all(_is_lost(parameters, weights)):
        accepted, kind, reason = False, "rounded", _rounded_in_words(horizon)
    elif accepted:
        parameters.write(weights, backup=False)
        kind, reason = "accepted", f"all weights predicted {horizon} steps ahead are finite"
    else:
        kind, reason = "non_finite", f"some weights predicted {horizon} steps ahead are not finite"
    return Verdict(accepted, horizon if accepted else 0, None, None, (), kind, reason)


def _is_finite(parameters: ParameterVector, weights: Tensor) -> bool:
    """True if each weight is finite in its own parameter's dtype (float16 overflows early)."""
    if all(p.dtype == weights.dtype for p in parameters.parameters):
        # One pass instead of several: a sum is finite only if each of its terms is. That of finite
        # ones may overflow.
        return cmath.isfinite(weights.sum().item()) or bool(torch.isfinite(weights).all())
    views = zip(parameters.values(weights), parameters.tensors, strict=True)
    return all(bool(torch.isfinite(view.to(p.dtype)).all()) for view, p in views)


def _is_lost(parameters: ParameterVector, weights: Tensor) -> bool:
    """True if ``weights`` round to those in place, where parameters have 16 bits to round to."""
    if all(p.dtype.itemsize > 2 for p in parameters.parameters):
        return False
    views = zip(parameters.views(weights), parameters.tensors, strict=True)
    return all(torch.equal(view.to(p.dtype), p) for view, p in views)


def _rounded_in_words(horizon: int) -> str:
    return (
        f"the change predicted {horizon} steps ahead is below the resolution of the parameters' "
        "dtype and rounding swallows it; keep float32 master weights"
    )


def _in_words(
    before: float, horizon: int, after: float, tried: list[tuple[int, float]], bad_weights: bool
) -> tuple[str, str]:
    """Kind and reason of a probed verdict."""
    if not math.isfinite(before):
        return "non_finite_loss", f"the loss before the jump is {before}"
    if after < before:
        where = f"{horizon} steps ahead" if horizon > 0 else "at the mean of the newer snapshots"
        return "accepted", f"{where} the loss is {after:.6g}, before it was {before:.6g}"
    if bad_weights and len(tried) == 1:
        return "non_finite", f"some weights predicted {tried[0][0]} steps ahead are not finite"
    losses = [loss for _, loss in tried if not math.isnan(loss)]
    least = f"{min(losses):.6g}" if losses else "not a number"
    return "no_gain", f"the best predicted loss is {least}, before the jump it is {before:.6g}"
