# SPDX-License-Identifier: BSD-3-Clause
"""Koopman training for PyTorch: predict the weights many optimizer steps ahead.

Watch a stretch of ordinary training, fit a linear operator to it, apply powers of that operator to
the weights, keep the result only where the loss agrees. :class:`KoopmanTrainer` does all four;
the other names are its parts, usable alone.

The names below are imported when they are first used, so that ``import koopfast`` and
``koopfast --help`` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from koopfast.errors import (
    CheckpointError,
    ConfigError,
    DistributedError,
    KoopfastError,
    KoopmanWarning,
    ParameterChangedError,
    UnsupportedParameterError,
)

if TYPE_CHECKING:
    from koopfast._build import BuildInfo, build_info
    from koopfast.checkpoint import load_checkpoint, save_checkpoint
    from koopfast.config import KoopmanConfig
    from koopfast.history import History, JumpRecord
    from koopfast.iterate import Acceleration, MinimizeCallback, accelerate
    from koopfast.moments import MomentBuffer
    from koopfast.operator import KoopmanOperator
    from koopfast.optimizer import KoopmanOptimizer
    from koopfast.partition import Partition
    from koopfast.snapshots import SnapshotBuffer
    from koopfast.trainer import KoopmanTrainer

    __version__: str

__all__ = [
    "Acceleration",
    "BuildInfo",
    "CheckpointError",
    "ConfigError",
    "DistributedError",
    "History",
    "JumpRecord",
    "KoopfastError",
    "KoopmanConfig",
    "KoopmanOperator",
    "KoopmanOptimizer",
    "KoopmanTrainer",
    "KoopmanWarning",
    "MinimizeCallback",
    "MomentBuffer",
    "ParameterChangedError",
    "Partition",
    "SnapshotBuffer",
    "UnsupportedParameterError",
    "__version__",
    "accelerate",
    "build_info",
    "load_checkpoint",
    "save_checkpoint",
]

# public name -> the module that defines it
_HOME = {
    "Acceleration": "koopfast.iterate",
    "BuildInfo": "koopfast._build",
    "History": "koopfast.history",
    "JumpRecord": "koopfast.history",
    "KoopmanConfig": "koopfast.config",
    "KoopmanOperator": "koopfast.operator",
    "KoopmanOptimizer": "koopfast.optimizer",
    "KoopmanTrainer": "koopfast.trainer",
    "MinimizeCallback": "koopfast.iterate",
    "MomentBuffer": "koopfast.moments",
    "Partition": "koopfast.partition",
    "SnapshotBuffer": "koopfast.snapshots",
    "accelerate": "koopfast.iterate",
    "build_info": "koopfast._build",
    "load_checkpoint": "koopfast.checkpoint",
    "save_checkpoint": "koopfast.checkpoint",
}

# modules that are part of the public names, as koopfast.loggers
_MODULES = ("checkpoint", "integrations", "loggers")


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        from importlib.metadata import version

        value = version("koopfast")
    elif name in _MODULES:
        value = importlib.import_module(f"koopfast.{name}")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'koopfast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
