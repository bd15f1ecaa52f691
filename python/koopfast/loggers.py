# SPDX-License-Identifier: BSD-3-Clause
"""What became of each jump, for the places where people watch their runs.

``trainer.loggers`` is a list of them; each gets one call for each jump tried, on rank 0 only. The
adapters take the object that the user has already (a ``SummaryWriter``, a W&B run) and import
nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from koopfast._files import check_file_name, jsonable
from koopfast.errors import ConfigError
from koopfast.history import Counters, JumpRecord

__all__ = [
    "JsonlLogger",
    "Logger",
    "StandardLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "jump_values",
]

_PREFIX = "koopman/"


class Logger(Protocol):
    """Anything with such a ``log``."""

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        """Note ``values``, whose keys begin with ``koopman/``, at an optimizer step."""


class StandardLogger:
    """One line a jump to a logger of the standard library (by default ``koopfast``, INFO).

    Example:
        >>> StandardLogger(level=logging.DEBUG).log({"koopman/horizon": 64}, step=128)
    """

    def __init__(self, logger: logging.Logger | None = None, level: int = logging.INFO) -> None:
        self._logger = logging.getLogger("koopfast") if logger is None else logger
        self._level = level

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        if self._logger.isEnabledFor(self._level):
            pairs = (f"{key.removeprefix(_PREFIX)}={_short(v)}" for key, v in values.items())
            self._logger.log(self._level, "koopman step=%d %s", step, " ".join(pairs))


class JsonlLogger:
    """One JSON object a line, appended to a file; NaN and infinities as strings.

    Raises:
        ConfigError: ``path`` is a folder, a device, a pipe or a socket.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_file_name(path)
        self._path = Path(path)

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        """Append a line.

        Raises:
            OSError: the file cannot be written.
        """
        line = jsonable({f"{_PREFIX}step": step, **values})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


class TensorBoardLogger:
    """Scalars to a ``SummaryWriter`` (anything with ``add_scalar(key, value, global_step=…)``)."""

    def __init__(self, writer: Any) -> None:
        _check_method(writer, "add_scalar", "writer")
        self._writer = writer

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        for key, value in values.items():
            if not isinstance(value, str):
                self._writer.add_scalar(key, value, global_step=step)


class WandbLogger:
    """Values to a W&B run (anything with ``log(dict)``), over an axis of their own.

    The run's step belongs to the training loop; moved by two, it drops what comes late. So the
    optimizer step is logged as ``koopman/step``, and made the axis of ``koopman/*``.
    """

    def __init__(self, run: Any) -> None:
        _check_method(run, "log", "run")
        self._run = run
        if callable(getattr(run, "define_metric", None)):
            run.define_metric(f"{_PREFIX}step")
            run.define_metric(f"{_PREFIX}*", step_metric=f"{_PREFIX}step")

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        self._run.log({f"{_PREFIX}step": step, **values})


def jump_values(record: JumpRecord, counters: Counters) -> dict[str, float | str]:
    """One jump and the totals so far under keys ``koopman/…``; what is not known is left out.

    Horizons and steps are optimizer steps; times are seconds.
    """
    values: dict[str, float | str | None] = {
        "kind": record.kind,
        "accepted": int(record.accepted),
        "horizon": record.horizon,
        "loss_before": record.loss_before,
        "loss_after": record.loss_after,
        "rank": None if record.rank is None else record.rank.median,
        "hindcast_error": None if record.hindcast_error is None else record.hindcast_error.median,
        "seconds_fit": record.seconds_fit,
        "seconds_predict": record.seconds_predict,
        "seconds_probe": record.seconds_probe,
        "optimizer_steps": counters.optimizer_steps,
        "predicted_steps": counters.predicted_steps,
        "jumps_accepted": counters.jumps_accepted,
        "jumps_refused": counters.jumps_refused,
    }
    return {_PREFIX + key: value for key, value in values.items() if value is not None}


def _check_method(value: Any, name: str, argument: str) -> None:
    if not callable(getattr(value, name, None)):
        raise ConfigError(
            f"{argument}: expected an object with a method {name}(), got {type(value).__name__}"
        )


def _short(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
