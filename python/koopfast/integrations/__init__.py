# SPDX-License-Identifier: BSD-3-Clause
"""Koopman training inside other people's training loops.

Each framework has a module of its own, which is imported, and with it the framework, when one of
the names below is first used. All of them attach a :class:`~koopfast.KoopmanTrainer` to the
framework's optimizer, give it the current batch's loss as the probe, and keep its state in the
framework's own checkpoints.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from koopfast.errors import KoopfastError

if TYPE_CHECKING:
    from koopfast.integrations.accelerate import accelerated_trainer
    from koopfast.integrations.ignite import IgniteKoopman
    from koopfast.integrations.lightning import LightningKoopman
    from koopfast.integrations.skorch import SkorchKoopman
    from koopfast.integrations.transformers import TransformersKoopman

__all__ = [
    "IgniteKoopman",
    "LightningKoopman",
    "SkorchKoopman",
    "TransformersKoopman",
    "accelerated_trainer",
]

# public name -> the module that defines it, which is also the name of the extra
_HOME = {
    "IgniteKoopman": "ignite",
    "LightningKoopman": "lightning",
    "SkorchKoopman": "skorch",
    "TransformersKoopman": "transformers",
    "accelerated_trainer": "accelerate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'koopfast.integrations' has no attribute {name!r}")
    home = _HOME[name]
    try:
        module = importlib.import_module(f"koopfast.integrations.{home}")
    except ImportError as error:
        raise KoopfastError(
            f"{name} needs a framework that cannot be imported ({error}); install it with pip "
            f"install 'koopfast[{home}]'"
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
