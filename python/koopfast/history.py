# SPDX-License-Identifier: BSD-3-Clause
"""What a Koopman training run did: every jump, every epoch, and counts that are kept apart.

Everything here is made of Python numbers and strings, so it survives JSON and
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from koopfast.errors import CheckpointError

if TYPE_CHECKING:
    from koopfast._rehearsal import Outlook

__all__ = [
    "Counters",
    "EpochRecord",
    "Forecast",
    "History",
    "HistoryMark",
    "JumpRecord",
    "Spread",
]

_Record = TypeVar("_Record")

_FEW = 64  # numbers that Python sorts sooner than numpy


@dataclass(frozen=True)
class Spread:
    """Least, median and greatest of one quantity over the blocks of an operator."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: ArrayLike) -> Spread | None:
        """Spread of the finite ones among ``values``; None when there is none."""
        numbers = np.asarray(values, dtype=np.float64)
        finite: Sequence[float] | NDArray[np.float64]
        if numbers.size <= _FEW:
            finite = sorted(filter(math.isfinite, numbers.ravel().tolist()))
        else:
            finite = np.sort(numbers[np.isfinite(numbers)], axis=None)
        count = len(finite)
        if count == 0:
            return None
        median = (finite[(count - 1) // 2] + finite[count // 2]) / 2
        return cls(float(finite[0]), float(median), float(finite[-1]))


@dataclass(frozen=True)
class JumpRecord:
    """One attempt to jump, accepted or refused.

    Attributes:
        step: optimizer steps taken when the jump was tried.
        accepted: True if the predicted weights were kept.
        horizon: how far the kept weights lie ahead, in optimizer steps; 0 if refused.
        loss_before: probed loss at the weights before the jump; None if nothing was probed.
        loss_after: probed loss at the kept weights; None if refused or nothing was probed.
        candidates: (horizon in optimizer steps, probed loss) in the order tried; the loss is NaN
            where the predicted weights were not finite.
        kind: ``"accepted"``, or why not in one word: ``"no_gain"`` (the loss did not go down),
            ``"non_finite"`` (the predicted weights), ``"non_finite_loss"`` (before the jump),
            ``"still"`` (nothing moves predictably), ``"operator"`` (it could not be fitted),
            ``"rounded"`` (16-bit weights are too coarse for the predicted change), ``"stale"`` (the
            probe returned a loss that was computed before).
        reason: the same as a sentence.
        probe_evaluations: how often the probe was called to its end.
        seconds_fit, seconds_predict, seconds_probe: wall time of the three stages. CUDA kernels
            run asynchronously: time spills from one stage to the next one that waits.
        rank: spread of the rank over the blocks; None if nothing was fitted.
        hindcast_error: spread of the hindcast error over the blocks; None if not computed.
    """

    step: int
    accepted: bool
    horizon: int
    loss_before: float | None
    loss_after: float | None
    candidates: tuple[tuple[int, float], ...]
    kind: str
    reason: str
    probe_evaluations: int = 0
    seconds_fit: float = 0.0
    seconds_predict: float = 0.0
    seconds_probe: float = 0.0
    rank: Spread | None = None
    hindcast_error: Spread | None = None


@dataclass(frozen=True)
class EpochRecord:
    """One pass of :meth:`KoopmanTrainer.fit` over its loader.

    Attributes:
        step: optimizer steps taken when the epoch ended.
        loss: mean over the batches of the training loss, each as computed before its step.
        validation: what ``validate(model)`` returned; None without one.
        seconds: wall time since ``fit`` began, validation and jumps included.
    """

    step: int
    loss: float
    validation: float | None
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """One prediction of a dry run, and what training came to.

    Attributes:
        step: optimizer steps taken when it was made.
        stride: optimizer steps between the snapshots of its window.
        horizon: optimizer steps ahead.
        windows: the same as a multiple of the window.
        error: the distance between predicted and real weights, as a multiple of the distance that
            the real ones had moved since: 1 is no better than standing still.
        loss_before: probed loss when it was made; None without a probe.
        loss_predicted: probed loss at the predicted weights, NaN where they were not finite.
        loss_real: probed loss of training at that step.
    """

    step: int
    stride: int
    horizon: int
    windows: float
    error: float
    loss_before: float | None
    loss_predicted: float | None
    loss_real: float | None


@dataclass
class Counters:
    """Work done so far; each kind of step is counted apart from the others.

    ``predicted_steps`` sums the horizons of accepted jumps. A jump that was rolled back stays
    counted where it was and is counted again in ``jumps_rolled_back``. ``windows_split`` counts
    windows that began anew because a learning rate was changed or somebody else wrote weights,
    ``steps_shortened`` optimizer steps that went only a part of their way (``relax``).
    ``lead_of_mean`` is by how much the loss's logarithm was lately lower at the mean of the weights
    (``KoopmanTrainer.averaged``) than at the weights; negative where it was higher.
    """

    optimizer_steps: int = 0
    predicted_steps: int = 0
    jumps_accepted: int = 0
    jumps_refused: int = 0
    jumps_rolled_back: int = 0
    windows_split: int = 0
    steps_shortened: int = 0
    probe_evaluations: int = 0
    lead_of_mean: float = 0.0
    evaluations_gained: float = 0.0
    seconds_gained: float = 0.0
    seconds_record: float = 0.0
    seconds_fit: float = 0.0
    seconds_predict: float = 0.0
    seconds_probe: float = 0.0


@dataclass(repr=False)
class History:
    """Everything that a trainer keeps about its run.

    Example:
        >>> history = History()
        >>> history.add_jump(JumpRecord(64, True, 128, 0.5, 0.25, ((128, 0.25),), "accepted", "ok"))
        >>> history.counters.predicted_steps
        128
        >>> History.from_dict(history.to_dict()) == history
        True
    """

    counters: Counters = field(default_factory=Counters)
    jumps: list[JumpRecord] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)
    forecasts: list[Forecast] = field(default_factory=list)

    def outlook(self) -> Outlook:
        """What the forecasts of a dry run say together: would jumps help?"""
        from koopfast._rehearsal import outlook

        return outlook(self.forecasts)

    @property
    def validation(self) -> list[tuple[int, float]]:
        """(optimizer steps, value) of every validation, in order."""
        return [(e.step, e.validation) for e in self.epochs if e.validation is not None]

    def add_jump(self, record: JumpRecord) -> None:
        """Append a jump and count it."""
        counters = self.counters
        self.jumps.append(record)
        counters.jumps_accepted += record.accepted
        counters.jumps_refused += not record.accepted
        counters.predicted_steps += record.horizon
        counters.probe_evaluations += record.probe_evaluations
        counters.seconds_fit += record.seconds_fit
        counters.seconds_predict += record.seconds_predict
        counters.seconds_probe += record.seconds_probe

    def to_dict(self) -> dict[str, Any]:
        """The history as dicts, lists, numbers, strings and None (floats may be NaN or inf)."""
        return {
            "counters": dataclasses.asdict(self.counters),
            "jumps": [_jump_to_dict(jump) for jump in self.jumps],
            "epochs": [dataclasses.asdict(epoch) for epoch in self.epochs],
            "forecasts": [dataclasses.asdict(forecast) for forecast in self.forecasts],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> History:
        """Inverse of :meth:`to_dict`; floats may be strings such as ``"nan"`` (as from JSON).

        Raises:
            CheckpointError: a key is missing, unknown, or holds something of another kind.
        """
        if isinstance(data, Mapping):
            data = {"forecasts": [], **data}
        top = _exactly(data, {"counters", "jumps", "epochs", "forecasts"}, "history")
        counters = top["counters"]
        if isinstance(counters, Mapping):
            counters = {"lead_of_mean": 0.0, **counters}
        return cls(
            counters=_parse(Counters, counters, _COUNTER_FIELDS, "history.counters"),
            jumps=_parse_all(JumpRecord, top["jumps"], _JUMP_FIELDS, "history.jumps"),
            epochs=_parse_all(EpochRecord, top["epochs"], _EPOCH_FIELDS, "history.epochs"),
            forecasts=_parse_all(Forecast, top["forecasts"], _FORECAST_FIELDS, "history.forecasts"),
        )

    def summary(self) -> str:
        """A short table in words."""
        c = self.counters
        rows = [
            ("optimizer steps", str(c.optimizer_steps)),
            ("predicted steps", str(c.predicted_steps)),
            ("jumps accepted", str(c.jumps_accepted)),
            ("jumps refused", str(c.jumps_refused)),
            ("jumps rolled back", str(c.jumps_rolled_back)),
            ("windows split", str(c.windows_split)),
            ("probe evaluations", str(c.probe_evaluations)),
            ("seconds in record", f"{c.seconds_record:.3f}"),
            ("seconds in fit", f"{c.seconds_fit:.3f}"),
            ("seconds in predict", f"{c.seconds_predict:.3f}"),
            ("seconds in probe", f"{c.seconds_probe:.3f}"),
        ]
        if c.evaluations_gained != 0:
            gained = f"{c.evaluations_gained:.0f} evaluations, {c.seconds_gained:.3g} s"
            rows.append(("gained (estimate)", gained))
        if c.lead_of_mean > 0:
            lower = f"loss {100 * -math.expm1(-c.lead_of_mean):.1f} % lower"
            rows.append(("mean of the weights", f"{lower}: evaluate in trainer.averaged()"))
        if self.validation:
            step, value = self.validation[-1]
            rows.append(("last validation", f"{value:.6g} at step {step}"))
        if self.forecasts:
            rows.append(("dry run", self.outlook().in_words()))
        if self.jumps:
            last = self.jumps[-1]
            rows.append(("last jump", f"at step {last.step}: {last.reason}"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def __repr__(self) -> str:
        c = self.counters
        return (
            f"History({c.optimizer_steps} optimizer steps, {c.predicted_steps} predicted steps, "
            f"{c.jumps_accepted} jumps accepted, {c.jumps_refused} refused)"
        )


class HistoryMark:
    """The counts and the number of entries now; ``restore()`` forgets what came after."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._counters = dataclasses.replace(history.counters)
        self._lengths = len(history.jumps), len(history.epochs)

    def restore(self) -> None:
        self._history.counters = self._counters
        del self._history.jumps[self._lengths[0] :]
        del self._history.epochs[self._lengths[1] :]


def _jump_to_dict(jump: JumpRecord) -> dict[str, Any]:
    data = dataclasses.asdict(jump)
    data["candidates"] = [[horizon, loss] for horizon, loss in jump.candidates]
    return data


# Reading back. Each parser takes a raw value and returns the checked one or raises ValueError.


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected an integer, got {value!r}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected True or False, got {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {value!r}")
    return value


def _optional_number(value: Any) -> float | None:
    return None if value is None else _number(value)


def _optional_spread(value: Any) -> Spread | None:
    if value is None:
        return None
    return _parse(Spread, value, {"low": _number, "median": _number, "high": _number}, "spread")


def _candidates(value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected a list of (horizon, loss) pairs, got {value!r}")
    pairs = []
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"expected a (horizon, loss) pair, got {pair!r}")
        pairs.append((_integer(pair[0]), _number(pair[1])))
    return tuple(pairs)


_Parsers = Mapping[str, Callable[[Any], Any]]

_COUNTER_FIELDS: _Parsers = {
    f.name: (_number if isinstance(f.default, float) else _integer)
    for f in dataclasses.fields(Counters)
}
_EPOCH_FIELDS: _Parsers = {
    "step": _integer,
    "loss": _number,
    "validation": _optional_number,
    "seconds": _number,
}
_FORECAST_FIELDS: _Parsers = {
    "step": _integer,
    "stride": _integer,
    "horizon": _integer,
    "windows": _number,
    "error": _number,
    "loss_before": _optional_number,
    "loss_predicted": _optional_number,
    "loss_real": _optional_number,
}
_JUMP_FIELDS: _Parsers = {
    "step": _integer,
    "accepted": _flag,
    "horizon": _integer,
    "loss_before": _optional_number,
    "loss_after": _optional_number,
    "candidates": _candidates,
    "kind": _text,
    "reason": _text,
    "probe_evaluations": _integer,
    "seconds_fit": _number,
    "seconds_predict": _number,
    "seconds_probe": _number,
    "rank": _optional_spread,
    "hindcast_error": _optional_spread,
}


def _exactly(data: Any, keys: Iterable[str], where: str) -> Mapping[str, Any]:
    wanted = set(keys)
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{where}: expected a dict, got {type(data).__name__}")
    if set(data) != wanted:
        missing, unknown = sorted(wanted - set(data)), sorted(map(str, set(data) - wanted))
        raise CheckpointError(f"{where}: missing keys {missing}, unknown keys {unknown}")
    return data


def _parse(cls: Callable[..., _Record], data: Any, parsers: _Parsers, where: str) -> _Record:
    raw = _exactly(data, parsers, where)
    values = {name: _parsed(raw[name], parse, f"{where}.{name}") for name, parse in parsers.items()}
    return cls(**values)


def _parsed(value: Any, parse: Callable[[Any], Any], where: str) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _parse_all(
    cls: Callable[..., _Record], data: Any, parsers: _Parsers, where: str
) -> list[_Record]:
    if not isinstance(data, (list, tuple)):
        raise CheckpointError(f"{where}: expected a list, got {type(data).__name__}")
    return [_parse(cls, item, parsers, f"{where}[{i}]") for i, item in enumerate(data)]
