# SPDX-License-Identifier: BSD-3-Clause
"""A trainer's state inside the ``state_dict`` of its optimizer, through the optimizer's hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

__all__ = ["KEY", "travel"]

KEY = "koopman"


def travel(
    optimizer: torch.optim.Optimizer,
    *,
    save: Callable[[], dict[str, Any]],
    check: Callable[[Any], Callable[[], None]],
    without: Callable[[], None],
) -> tuple[RemovableHandle, ...]:
    """Put a state under ``"koopman"`` when the optimizer saves, take it out when it loads.

    Args:
        optimizer: whose ``state_dict`` and ``load_state_dict`` are to carry it.
        save: returns the state.
        check: looks at a saved state before the optimizer changes anything, raising if it does not
            fit; what it returns is called once the optimizer has loaded its own.
        without: called instead where the optimizer's state carries none.

    Returns:
        Handles that end it.
    """
    pending: list[Callable[[], None]] = []

    def put(_: Any, state: dict[str, Any]) -> None:
        state[KEY] = save()

    def take(_: Any, state: dict[str, Any]) -> None:
        # The dict is the optimizer's own shallow copy of what the caller passed.
        pending.clear()
        carried = state.pop(KEY, None)
        pending.append(without if carried is None else check(carried))

    def settle(_: Any) -> None:
        pending.pop()()

    return (
        optimizer.register_state_dict_post_hook(put),
        optimizer.register_load_state_dict_pre_hook(take),
        optimizer.register_load_state_dict_post_hook(settle),
    )
