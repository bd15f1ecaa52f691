# SPDX-License-Identifier: BSD-3-Clause
"""What koopfast raises and warns with.

A numerical failure (a non-finite snapshot, a block that does not move, a power that diverges) is
none of these: it is a status of the operator, which the guard reads, and training goes on.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DistributedError",
    "KoopfastError",
    "KoopmanWarning",
    "ParameterChangedError",
    "UnsupportedParameterError",
]


class KoopfastError(Exception):
    """Base class of every error that koopfast raises on purpose."""


class ConfigError(KoopfastError, ValueError):
    """An argument or a configuration field has a value that cannot work."""


class UnsupportedParameterError(KoopfastError, TypeError):
    """A parameter is of a kind that has no Koopman fit (integer, sparse, meta, ...)."""


class ParameterChangedError(KoopfastError, RuntimeError):
    """A parameter was resized, moved, cast, frozen or replaced in the middle of a window."""


class DistributedError(KoopfastError):
    """Another process that trains the same weights failed or cannot be reached."""


class CheckpointError(KoopfastError, RuntimeError):
    """A saved state does not fit the trainer that is to load it."""


class KoopmanWarning(UserWarning):
    """Koopman training stood aside for a reason that the user may want to know."""
