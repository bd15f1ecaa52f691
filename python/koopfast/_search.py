# SPDX-License-Identifier: BSD-3-Clause
"""Searches: generators of candidates, each answered with the loss that it gives."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

__all__ = ["formed"]

_Asked = TypeVar("_Asked")
_Formed = TypeVar("_Formed")


def formed(
    asked: Generator[_Asked, float, None], form: Callable[[_Asked], _Formed]
) -> Generator[_Formed, float, None]:
    """What ``form`` makes of each candidate that is ``asked`` for; answers are passed back."""
    try:
        candidate = next(asked)
        while True:
            loss = yield form(candidate)
            candidate = asked.send(loss)
    except StopIteration:
        return
