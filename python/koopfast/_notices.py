# SPDX-License-Identifier: BSD-3-Clause
"""What a trainer tells its user: warnings, each once, and jumps to the loggers."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterable

import torch

from koopfast._rank import is_first_rank
from koopfast.errors import KoopmanWarning
from koopfast.history import Counters, JumpRecord
from koopfast.loggers import Logger, jump_values

__all__ = ["Notices"]


class Notices:
    """Says each kind of thing once.

    Attributes:
        warned: the kinds that were said.
    """

    def __init__(self, warned: Iterable[str] = ()) -> None:
        self.warned = set(warned)

    def warn(self, kind: str, message: str) -> None:
        """Warn, once for each kind; last of all, since a warning may be made an exception."""
        if kind not in self.warned:
            self.warned.add(kind)
            text = f"{message}; training goes on"
            warnings.warn(text, KoopmanWarning, stacklevel=_levels_to_caller())

    def log(self, record: JumpRecord, counters: Counters, loggers: Iterable[Logger]) -> None:
        """Tell ``loggers``; one that fails is warned of and holds nothing up."""
        if not loggers or not is_first_rank():
            return
        values = jump_values(record, counters)
        for logger in loggers:
            try:
                logger.log(values, record.step)
            except Exception as error:  # noqa: PERF203 - a few loggers, once a jump
                name, what = type(logger).__name__, type(error).__name__
                self.warn(f"logger {name}", f"{name}.log failed with {what}: {error}")


def _levels_to_caller() -> int:
    """The ``stacklevel`` with which the caller's warning points out of this package.

    And out of torch, whose ``optimizer.step()`` calls a trainer that is attached.
    """
    packages = tuple(os.path.dirname(module) + os.sep for module in (__file__, torch.__file__))
    frame = inspect.currentframe()
    frames = 0
    while frame is not None and frame.f_code.co_filename.startswith(packages):
        frame, frames = frame.f_back, frames + 1
    return frames
