# SPDX-License-Identifier: BSD-3-Clause
"""Who trains the same weights: found, or refused where it cannot be told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from koopfast._distributed import Alone, ProcessGroup, Replicas, data_parallel_modules
from koopfast._shards import Shards
from koopfast.errors import ConfigError, UnsupportedParameterError
from koopfast.parameters import is_sharded

__all__ = ["ProcessGroup", "everyone", "local", "portable", "team_of"]

# What stands for the group of all ranks in a copy or a pickle, which no group can be part of.
_WORLD = "world"


def team_of(
    model: nn.Module, optimizer: Any, process_group: ProcessGroup | Literal[False] | None
) -> Alone:
    """Those who train these weights together; arguments as :class:`koopfast.KoopmanTrainer`.

    Raises:
        ConfigError: several processes run and nothing tells whether they do, or ``process_group``
            is not a group that this process is in.
        UnsupportedParameterError: the weights are spread over processes by FSDP1 or DeepSpeed.
    """
    for came in _foreign(model, optimizer):
        raise UnsupportedParameterError(
            f"model: expected parameters of PyTorch's own kinds, got those of {came}, which lie in "
            "flat buffers; shard the model with torch.distributed.fsdp.fully_shard (FSDP2)"
        )
    sharded = [name for name, p in model.named_parameters() if is_sharded(p)]
    if process_group is False:
        if sharded:
            raise ConfigError(
                f"process_group: expected a group, since parameter '{sharded[0]}' is sharded over "
                "processes, got False; leave it out, or pass the group of all ranks that hold it"
            )
        return Alone()
    running = dist.is_available() and dist.is_initialized()
    if process_group is not None and not (running and isinstance(process_group, dist.ProcessGroup)):
        raise ConfigError(
            "process_group: expected a process group that this rank is in, False or None, got "
            f"{type(process_group).__name__}; call torch.distributed.init_process_group first, and "
            "make the trainer on the group's ranks only"
        )
    if not running:
        return Alone()
    group = process_group if process_group is not None else _found(model, bool(sharded))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if sharded:
        return Shards(group, device, model)
    return Replicas(group, device, model) if dist.get_world_size(group) > 1 else Alone()


def everyone() -> ProcessGroup | None:
    """All processes, for frameworks of which it is known that they train the same weights."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    world: ProcessGroup | None = dist.group.WORLD
    return world


def portable(process_group: ProcessGroup | Literal[False] | None) -> str | bool | None:
    """What was given as ``process_group``, in a form that can be copied; :func:`local` undoes it.

    Raises:
        ConfigError: it is the group of some ranks only, which no copy can belong to.
    """
    if process_group is None or process_group is False:
        return process_group
    if process_group is not everyone():
        raise ConfigError(
            "process_group: a trainer of some ranks only cannot be copied or pickled, since no "
            "copy belongs to their group; save its state_dict() and make a new one with the group"
        )
    return _WORLD


def local(saved: str | bool | None) -> ProcessGroup | Literal[False] | None:
    """The group of this process that :func:`portable` stood for; None where there is none."""
    return everyone() if saved == _WORLD else False if saved is False else None


def _found(model: nn.Module, sharded: bool) -> ProcessGroup:
    wrappers = data_parallel_modules(model)
    if wrappers and not sharded:
        group: ProcessGroup = wrappers[0].process_group
        return group
    if not sharded and dist.get_world_size() > 1:
        raise ConfigError(
            f"process_group: torch.distributed runs {dist.get_world_size()} processes, and the "
            "model is neither in DistributedDataParallel nor sharded, so that nothing tells "
            "whether they train the same weights; pass "
            "process_group=torch.distributed.group.WORLD if they do, and process_group=False if "
            "each trains weights of its own"
        )
    world: ProcessGroup | None = dist.group.WORLD
    assert world is not None
    return world


def _foreign(model: nn.Module, optimizer: Any) -> Iterator[str]:
    """Names of what spreads weights over processes in a way of its own."""
    for kind in type(optimizer).__mro__:
        if kind.__module__.partition(".")[0] == "deepspeed":
            yield f"DeepSpeed ZeRO (the optimizer is a {kind.__name__})"
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__module__.partition(".")[0] == "deepspeed":
                yield f"DeepSpeed (the model is a {kind.__name__})"
            if kind.__module__ == "torch.distributed.fsdp.fully_sharded_data_parallel":
                yield "FullyShardedDataParallel (FSDP1)"
    for name, p in model.named_parameters():
        if hasattr(p, "ds_id"):
            yield f"DeepSpeed ZeRO (parameter '{name}')"
        if hasattr(p, "_is_flat_param"):
            yield f"FullyShardedDataParallel (FSDP1, parameter '{name}')"
