# SPDX-License-Identifier: BSD-3-Clause
"""Checks of arguments, with messages that say what was expected, what came and what is close."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from operator import index
from typing import SupportsIndex

from koopfast.errors import ConfigError


def whole(argument: str, value: object, least: int, hint: str = "") -> int:
    """``value`` as an int, or ConfigError unless it is an integer (not a bool) of ``least``."""
    if type(value) is int and value >= least:  # the test for SupportsIndex takes microseconds
        return value
    number = index(value) if isinstance(value, SupportsIndex) else None
    if number is None or isinstance(value, bool) or number < least:
        raise ConfigError(
            f"{argument}: expected an integer of {least} or more{hint}, got {value!r}"
        )
    return number


def check_choice(argument: str, value: object, known: Sequence[str]) -> None:
    """Raise ConfigError, with what is close, unless ``value`` is one of the ``known``."""
    if value not in known:
        raise ConfigError(
            f"{argument}: expected one of {listed(known)}, got {value!r}"
            f"{did_you_mean(value, known)}"
        )


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The known word that is close to ``value``, as the end of a message, or nothing."""
    close = difflib.get_close_matches(str(value), tuple(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def listed(known: Iterable[str]) -> str:
    """The words quoted, with commas between them."""
    return ", ".join(f'"{k}"' for k in known)
