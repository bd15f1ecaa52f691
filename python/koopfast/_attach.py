# SPDX-License-Identifier: BSD-3-Clause
"""Where steps are seen: the real optimizer inside its wrappers, and the steps that it skips."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch

from koopfast.errors import ConfigError

__all__ = [
    "SkipWatch",
    "claim",
    "inner_optimizers",
    "inside_another_step",
    "owner_of",
    "real_optimizer",
    "release",
    "runs_hooks",
    "step_was_skipped",
    "undisturbed",
]

# Where wrappers keep what they wrap: accelerate and Lookahead, SAM and KoopmanOptimizer, Lightning.
_INNER = ("optimizer", "base_optimizer", "_optimizer")

# Of the function that torch wraps around each class's step(), and that calls the hooks.
_STEP_CODE = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__

# Optimizers that a trainer is attached to. Both sides weak: the hook itself keeps the trainer.
_OWNERS: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()


def real_optimizer(optimizer: Any) -> Any:
    """The optimizer whose ``step()`` runs step hooks, found inside wrappers that run none.

    A wrapper that is an optimizer in its own right (made by ``Optimizer.__init__``, so that its
    hooks fire after all it does to the weights) is taken as it is. If nothing inside runs hooks,
    what was given comes back.
    """
    current, seen = optimizer, {id(optimizer)}
    while not runs_hooks(current):
        inner = (getattr(current, name, None) for name in _INNER)
        found = next((o for o in inner if _is_optimizer(o) and id(o) not in seen), None)
        if found is None:
            return optimizer
        current = found
        seen.add(id(found))
    return current


def inner_optimizers(optimizer: Any) -> list[Any]:
    """The optimizers that ``optimizer`` wraps directly (Lookahead's, SAM's), each once."""
    found: dict[int, Any] = {}
    for name in _INNER:
        inner = vars(optimizer).get(name) if hasattr(optimizer, "__dict__") else None
        if inner is not optimizer and _is_optimizer(inner) and hasattr(inner, "state"):
            found[id(inner)] = inner
    return list(found.values())


def _is_optimizer(value: Any) -> bool:
    return hasattr(value, "param_groups") and hasattr(value, "step")


def runs_hooks(optimizer: Any) -> bool:
    """Whether ``optimizer.step()`` calls hooks registered on this very object."""
    # torch wraps the step() of every class whose __init__ calls Optimizer.__init__. The step() of
    # KoopmanOptimizer is wrapped too, but those to see are the steps of what is in it.
    return (
        isinstance(optimizer, torch.optim.Optimizer)
        and "_optimizer_step_post_hooks" in vars(optimizer)
        and getattr(type(optimizer).step, "hooked", False)
        and not getattr(type(optimizer), "passes_steps_on", False)
    )


def claim(optimizer: Any, owner: object) -> None:
    """Note that ``owner`` is attached to ``optimizer``.

    Raises:
        ConfigError: somebody is already.
    """
    other = owner_of(optimizer)
    if other is owner:
        raise ConfigError(
            "attach: this trainer is attached already; to change the probe set trainer.probe, to "
            "attach anew call detach() first"
        )
    if other is not None:
        raise ConfigError(
            f"attach: another KoopmanTrainer is attached to this {type(optimizer).__name__} "
            f"already ({other!r}); two would predict the same weights, so detach() that one first, "
            "or attach(replace=True) in its place"
        )
    _OWNERS[optimizer] = weakref.ref(owner)


def owner_of(optimizer: Any) -> Any:
    """Who is attached to ``optimizer``; None where nobody is."""
    reference = _OWNERS.get(optimizer)
    return None if reference is None else reference()


def release(optimizer: Any) -> None:
    """Undo :func:`claim`."""
    _OWNERS.pop(optimizer, None)


class SkipWatch:
    """Knows whether the last ``step()`` changed nothing because a gradient was not finite.

    A ``GradScaler`` does not call a plain optimizer then; a fused one it does call, with
    ``found_inf`` set on it for the length of the call, and the kernel leaves the weights alone.

    Attributes:
        skipped: whether the last step was such a one.
    """

    def __init__(self, optimizer: Any) -> None:
        self.skipped = False
        if not runs_hooks(optimizer):
            return
        watch = weakref.ref(self)

        def hook(stepped: Any, *_: Any) -> None:
            here = watch()
            if here is not None:
                here.skipped = step_was_skipped(stepped)

        handle = optimizer.register_step_post_hook(undisturbed(hook))
        weakref.finalize(self, handle.remove).atexit = False


def step_was_skipped(optimizer: Any) -> bool:
    """Within a step post-hook: whether the step left the weights alone (waits for the device)."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def inside_another_step(optimizer: Any) -> bool:
    """Within a step post-hook: whether a ``step()`` of the same optimizer is still going on.

    Hooks run once for each class whose ``step()`` torch has wrapped: twice where a subclass calls
    ``super().step()``. Only the outer one has seen the whole step.
    """
    steps = (vars(cls).get("step") for cls in type(optimizer).__mro__)
    if sum(getattr(step, "hooked", False) for step in steps) < 2:
        return False
    going_on = 0
    frame = inspect.currentframe()
    while frame is not None:
        going_on += frame.f_code is _STEP_CODE and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return going_on > 1


def undisturbed(hook: Callable[..., None]) -> Callable[..., None]:
    """``hook`` such that a compiled ``optimizer.step()`` calls it instead of compiling it too."""
    # Making an optimizer has imported the compiler already: no import is caused here.
    disabled: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled
