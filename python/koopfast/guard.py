# SPDX-License-Identifier: BSD-3-Clause
"""Accept a jump or refuse it: the guard looks at predicted weights and at the loss they give."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from koopfast._savepoint import Savepoint
from koopfast.errors import ConfigError
from koopfast.parameters import ParameterVector

__all__ = ["Guard", "Probe", "Verdict", "scalar_loss"]

Probe = Callable[[], Any]

# The loss over the horizon falls and then rises, with ripples where a pair of complex eigenvalues
# turns: one bad candidate may be a ripple, a second in a row is the far side of the valley.
_MISSES = 2


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

    Attributes:
        needs_gradients: True once a probe turned out to need gradients (or was said to).
    """

    def __init__(
        self, kind: Literal["probe", "finite"], gradients: bool | Literal["auto"] = "auto"
    ) -> None:
        self.kind = kind
        self.needs_gradients = gradients is True
        self._may_repeat = gradients == "auto"

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
                return _judge_finite(parameters, candidates)
            return self._judge_probe(parameters, candidates, savepoint, _Timed(self, probe))
        except BaseException:
            savepoint.restore()
            raise

    def _judge_probe(
        self,
        parameters: ParameterVector,
        candidates: Iterable[tuple[int, Tensor]],
        savepoint: Savepoint,
        probe: _Timed,
    ) -> Verdict:
        before = probe.loss(savepoint)
        tried: list[tuple[int, float]] = []
        best_horizon, best_loss, best_weights = 0, before, None
        misses = 0
        bad_weights = False
        for horizon, weights in candidates if math.isfinite(before) else ():
            if not _is_finite(parameters, weights):
                tried.append((horizon, math.nan))
                bad_weights = True
                break
            parameters.write(weights)
            loss = probe.loss(savepoint)
            tried.append((horizon, loss))
            if loss < best_loss:
                best_horizon, best_loss, best_weights = horizon, loss, weights
                misses = 0
            else:
                misses += 1
            if misses == _MISSES or not math.isfinite(loss):
                break
        if best_weights is None:
            savepoint.weights.restore()
        else:
            parameters.write(best_weights)
        kind, reason = _in_words(before, best_horizon, best_loss, tried, bad_weights)
        return Verdict(
            accepted=best_weights is not None,
            horizon=best_horizon,
            loss_before=before,
            loss_after=None if best_weights is None else best_loss,
            candidates=tuple(tried),
            kind=kind,
            reason=reason,
            probe_evaluations=probe.evaluations,
            seconds_probe=probe.seconds,
        )

    def _evaluate(self, probe: Probe, savepoint: Savepoint) -> float:
        """The probed loss at the weights in place, from the savepoint and back to it."""
        if self._may_repeat and not self.needs_gradients:
            try:
                return _call(probe, savepoint, gradients=False)
            except RuntimeError as error:
                # autograd's wording varies ("does not require grad", "does not have a grad_fn",
                # "requires_grad=False", ...); a repeat in vain costs one evaluation.
                if "grad" not in str(error).lower():
                    raise
            loss = _call(probe, savepoint, gradients=True)
            self.needs_gradients = True
            return loss
        return _call(probe, savepoint, gradients=self.needs_gradients)


class _Timed:
    """A probe with a count of its evaluations and the seconds they took."""

    def __init__(self, guard: Guard, probe: Probe) -> None:
        self._guard = guard
        self._probe = probe
        self.evaluations = 0
        self.seconds = 0.0

    def loss(self, savepoint: Savepoint) -> float:
        started = perf_counter()
        loss = self._guard._evaluate(self._probe, savepoint)
        self.seconds += perf_counter() - started
        self.evaluations += 1
        return loss


def _call(probe: Probe, savepoint: Savepoint, *, gradients: bool) -> float:
    savepoint.gradients.hide()
    # Within an autocast region torch keeps cast copies of the weights: those of other candidates.
    torch.clear_autocast_cache()
    try:
        with torch.set_grad_enabled(gradients):
            return scalar_loss(probe(), "probe")
    finally:
        torch.clear_autocast_cache()
        savepoint.restore_surroundings()


def scalar_loss(value: Any, source: str) -> float:
    """The number that ``source`` (a name for the message) returned.

    Raises:
        ConfigError: it is not a real number, nor a tensor or array with exactly one.
    """
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


def _judge_finite(parameters: ParameterVector, candidates: Iterable[tuple[int, Tensor]]) -> Verdict:
    horizon, weights = next(iter(candidates))
    accepted = _is_finite(parameters, weights)
    if accepted:
        parameters.write(weights)
        kind, reason = "accepted", f"all weights predicted {horizon} steps ahead are finite"
    else:
        kind, reason = "non_finite", f"some weights predicted {horizon} steps ahead are not finite"
    return Verdict(accepted, horizon if accepted else 0, None, None, (), kind, reason)


def _is_finite(parameters: ParameterVector, weights: Tensor) -> bool:
    """True if each weight is finite in its own parameter's dtype (float16 overflows early)."""
    if all(p.dtype == weights.dtype for p in parameters.parameters):
        return bool(torch.isfinite(weights).all())
    views = zip(parameters.values(weights), parameters.parameters, strict=True)
    return all(bool(torch.isfinite(view.to(p.dtype)).all()) for view, p in views)


def _in_words(
    before: float, horizon: int, after: float, tried: list[tuple[int, float]], bad_weights: bool
) -> tuple[str, str]:
    """Kind and reason of a probed verdict."""
    if not math.isfinite(before):
        return "non_finite_loss", f"the loss before the jump is {before}"
    if horizon > 0:
        return (
            "accepted",
            f"{horizon} steps ahead the loss is {after:.6g}, before it was {before:.6g}",
        )
    if bad_weights and len(tried) == 1:
        return "non_finite", f"some weights predicted {tried[0][0]} steps ahead are not finite"
    losses = [loss for _, loss in tried if not math.isnan(loss)]
    least = f"{min(losses):.6g}" if losses else "not a number"
    return "no_gain", f"the best predicted loss is {least}, before the jump it is {before:.6g}"
