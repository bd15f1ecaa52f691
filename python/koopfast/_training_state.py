# SPDX-License-Identifier: BSD-3-Clause
"""A trainer's state as plain tensors and primitives, and back with every check done first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from koopfast._window import Schedule
from koopfast.config import KoopmanConfig
from koopfast.errors import CheckpointError, ConfigError, KoopfastError
from koopfast.history import History
from koopfast.moments import MomentBuffer
from koopfast.parameters import ParameterVector
from koopfast.snapshots import SnapshotBuffer

__all__ = ["TrainingState", "pack", "unpack"]

_FORMAT = 1
_KEYS = {
    "format",
    "config",
    "parameters",
    "history",
    "snapshots",
    "moments",
    "enabled",
    "idle",
    "lag",
    "needs_gradients",
    "warned",
    "controller",
    "undo",
    "rates",
    "largest_rates",
    "noted",
    "increment",
    "average",
    "layout",
}
# Fields of the configuration that may be others than those saved: what they keep begins anew.
_FREE = ("weight_average",)
# Differences listed in a message; a thousand of them help nobody.
_MOST_LISTED = 8


@dataclass(frozen=True)
class TrainingState:
    """What :func:`unpack` found, checked, beside the snapshots."""

    history: History
    enabled: bool
    idle: int
    lag: int
    needs_gradients: bool
    warned: set[str]
    rates: list[float]
    largest_rates: list[float]
    noted: Tensor | None
    increment: Tensor | None
    elsewhere: bool  # saved by processes that held other parts of the parameters: no window


def pack(
    *,
    config: KoopmanConfig,
    parameters: ParameterVector,
    history: History,
    snapshots: SnapshotBuffer | MomentBuffer,
    moments: dict[str, Any] | None,
    enabled: bool,
    idle: int,
    lag: int,
    needs_gradients: bool,
    warned: Iterable[str],
    rates: Iterable[float],
    largest_rates: Iterable[float],
    noted: Tensor | None,
    increment: Tensor | None,
    average: dict[str, Any] | None,
    schedule: Schedule | None,
    undo: dict[str, Any] | None,
) -> dict[str, Any]:
    """The state as a dict that ``torch.load(weights_only=True)`` reads."""
    return {
        "format": _FORMAT,
        "config": config.to_dict(),
        "parameters": _described(parameters),
        "history": history.to_dict(),
        "snapshots": snapshots.state_dict(),
        "moments": moments,
        "enabled": enabled,
        "idle": idle,
        "lag": lag,
        "needs_gradients": needs_gradients,
        "warned": sorted(warned),
        "rates": list(rates),
        "largest_rates": list(largest_rates),
        "noted": noted,
        "increment": increment,
        "average": average,
        "controller": None if schedule is None else schedule.state_dict(),
        "undo": undo,
        "layout": parameters.layout,
    }


def unpack(
    state: Any,
    config: KoopmanConfig,
    parameters: ParameterVector,
    snapshots: SnapshotBuffer | MomentBuffer,
    schedule: Schedule | None = None,
) -> TrainingState:
    """Check ``state`` against a trainer's configuration and parameters and read it.

    Args:
        state: from :func:`pack`.
        config: the trainer's.
        parameters: the trainer's.
        snapshots: a new buffer, filled here.
        schedule: a new one, set here, where the stride varies.

    Raises:
        CheckpointError: anything is missing, unknown, malformed or different.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"state: expected a dict, got {type(state).__name__}")
    state = {"average": None, **state}  # it was not there at first
    if set(state) != _KEYS:
        missing, unknown = sorted(_KEYS - set(state)), sorted(map(str, set(state) - _KEYS))
        raise CheckpointError(
            f"state: missing keys {missing}, unknown keys {unknown}; expected what "
            "KoopmanTrainer.state_dict() returned"
        )
    if state["format"] != _FORMAT:
        raise CheckpointError(
            f"state: expected format {_FORMAT}, got {state['format']!r}, which another version of "
            "koopfast wrote"
        )
    differences = [
        *_config_differences(state["config"], config),
        *_parameter_differences(state["parameters"], parameters),
    ]
    if differences:
        listed = "\n  ".join(differences[:_MOST_LISTED])
        more = len(differences) - _MOST_LISTED
        rest = f"\n  and {more} more" if more > 0 else ""
        raise CheckpointError(f"state: it belongs to another trainer:\n  {listed}{rest}")
    loaded = TrainingState(
        history=History.from_dict(state["history"]),
        enabled=_flag(state, "enabled"),
        idle=_count(state, "idle"),
        lag=_count(state, "lag"),
        needs_gradients=_flag(state, "needs_gradients"),
        warned=_names(state, "warned"),
        rates=_rates(state, "rates"),
        largest_rates=_rates(state, "largest_rates"),
        noted=_sample(state, "noted"),
        increment=_increment(state, parameters),
        elsewhere=state["layout"] != parameters.layout,
    )
    if len(loaded.rates) != len(loaded.largest_rates):
        raise CheckpointError(
            f"state['largest_rates']: expected {len(loaded.rates)} of them, as 'rates' has, got "
            f"{len(loaded.largest_rates)}"
        )
    if schedule is not None and isinstance(snapshots, SnapshotBuffer):
        schedule.load_state_dict(state["controller"])
        snapshots.clear(stride=schedule.stride, average=schedule.average)
    if loaded.elsewhere:
        return dataclasses.replace(loaded, lag=0, noted=None, increment=None)
    try:
        snapshots.load_state_dict(state["snapshots"])
    except CheckpointError:
        raise
    except (KoopfastError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"state['snapshots']: {error}") from error
    return loaded


def _described(parameters: ParameterVector) -> list[list[Any]]:
    named = zip(parameters.names, parameters.parameters, strict=True)
    return [[name, list(p.shape), str(p.dtype)] for name, p in named]


def _config_differences(saved: Any, config: KoopmanConfig) -> list[str]:
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"state['config']: expected a dict, got {type(saved).__name__}")
    try:
        other = KoopmanConfig.from_dict(saved)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"state['config']: {error}") from error
    pairs = (
        (field.name, getattr(other, field.name), getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in _FREE
    )
    return [
        f"{name}: saved {was!r}, this trainer has {now!r}" for name, was, now in pairs if was != now
    ]


def _parameter_differences(saved: Any, parameters: ParameterVector) -> list[str]:
    ours = _described(parameters)
    if not isinstance(saved, (list, tuple)):
        raise CheckpointError(f"state['parameters']: expected a list, got {type(saved).__name__}")
    if len(saved) != len(ours):
        return [f"parameters: saved {len(saved)}, this trainer has {len(ours)}"]
    return [
        f"parameter: saved {was!r}, this trainer has {now!r}"
        for was, now in zip(saved, ours, strict=True)
        if was != now
    ]


def _flag(state: Mapping[str, Any], key: str) -> bool:
    value = state[key]
    if not isinstance(value, bool):
        raise CheckpointError(f"state[{key!r}]: expected True or False, got {value!r}")
    return value


def _count(state: Mapping[str, Any], key: str) -> int:
    value = state[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CheckpointError(f"state[{key!r}]: expected an integer of 0 or more, got {value!r}")
    return value


def _names(state: Mapping[str, Any], key: str) -> set[str]:
    value = state[key]
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"state[{key!r}]: expected a list of strings, got {value!r}")
    return set(value)


def _rates(state: Mapping[str, Any], key: str) -> list[float]:
    value = state[key]
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, float) for item in value):
        raise CheckpointError(f"state[{key!r}]: expected a list of floats, got {value!r}")
    return list(value)


def _sample(state: Mapping[str, Any], key: str) -> Tensor | None:
    value = state[key]
    if value is not None and not (isinstance(value, Tensor) and value.dim() == 1):
        raise CheckpointError(f"state[{key!r}]: expected a tensor (k,) or None, got {value!r}")
    return value


def _increment(state: Mapping[str, Any], parameters: ParameterVector) -> Tensor | None:
    value = _sample(state, "increment")
    if value is None or state["layout"] != parameters.layout:
        return None
    if len(value) != parameters.n or value.dtype != parameters.dtype:
        raise CheckpointError(
            f"state['increment']: expected ({parameters.n},) of {parameters.dtype}, got "
            f"{tuple(value.shape)} of {value.dtype}"
        )
    return value.to(parameters.device, copy=True)
