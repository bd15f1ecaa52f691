# SPDX-License-Identifier: BSD-3-Clause
"""Koopman training in the shape of an optimizer, for loops that know nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from koopfast._team import local, portable
from koopfast.config import KoopmanConfig
from koopfast.errors import ConfigError
from koopfast.guard import Probe
from koopfast.trainer import KoopmanTrainer

__all__ = ["KoopmanOptimizer"]


class KoopmanOptimizer(torch.optim.Optimizer):
    """An optimizer that now and then jumps ahead: ``base`` does the steps, a trainer the jumps.

    ``param_groups``, ``state`` and ``defaults`` are those of ``base``, so learning-rate schedulers,
    ``GradScaler`` and gradient clipping work as ever. A jump happens inside ``step()``. It is
    judged by :attr:`probe`, or where that is None by the closure of ``step(closure)``.

    ``state_dict`` is that of ``base`` with the trainer's under ``"koopman"``;
    ``load_state_dict`` takes one without it too and then begins a new window. ``deepcopy`` and
    ``pickle`` work and leave out the probe, which knows the original's model. A ``GradScaler`` is
    not told that ``base`` scales by itself where it is fused (``_step_supports_amp_scaling``): it
    unscales the gradients first and skips ``step()`` where they are not finite.

    Args:
        base: steps the parameters.
        config: a :class:`~koopfast.KoopmanConfig`; None means the default one.
        model: the network. Needed for what "layer" and "node" mean, and for its buffers and modes
            to be put back after the probe. Without it each parameter counts as a layer, its rows
            as nodes. With float32 masters of a model in lower precision, leave it out, and copy
            masters to the model in the probe and after each step.
        probe: returns the loss to judge a jump by (see :meth:`KoopmanTrainer.after_step`).
        **overrides: fields of the configuration to replace.

    Attributes:
        base_optimizer: as given.
        trainer: the :class:`~koopfast.KoopmanTrainer` behind it.

    Raises:
        ConfigError: an argument cannot work, or a trainer is attached to ``base`` already.
        UnsupportedParameterError: a parameter is of a kind that has no fit.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = KoopmanOptimizer(base, model=model, window=8, stride=1)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [3.0]])
        >>> optimizer.probe = lambda: torch.nn.functional.mse_loss(model(x), y)
        >>> for _ in range(8):
        ...     optimizer.zero_grad()
        ...     optimizer.probe().backward()
        ...     optimizer.step()
        >>> optimizer.trainer.history.counters.jumps_accepted
        1
    """

    # Steps are to be watched on base, where they happen.
    passes_steps_on = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        config: KoopmanConfig | None = None,
        *,
        model: nn.Module | None = None,
        probe: Probe | None = None,
        **overrides: Any,
    ) -> None:
        if not hasattr(base, "param_groups"):
            raise ConfigError(
                f"base: expected a torch.optim.Optimizer, got {type(base).__name__}; write "
                "KoopmanOptimizer(torch.optim.Adam(model.parameters()), model=model)"
            )
        network = _Parameters(base) if model is None else model
        trainer = KoopmanTrainer(network, base, config, **overrides)
        trainer.attach(probe)
        trainer.save_with_optimizer()
        self.base_optimizer = base
        self.trainer = trainer
        self._model = model
        # The step hooks of the wrapper itself, and nothing that would make groups and state anew.
        super().__setstate__({})

    @property
    def probe(self) -> Probe | None:
        """What jumps are judged by; None where the closure of ``step(closure)`` is to serve."""
        return self.trainer.probe

    @probe.setter
    def probe(self, probe: Probe | None) -> None:
        self.trainer.probe = probe

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of ``base``."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """That of ``base``."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base_optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """Those of ``base``."""
        return self.base_optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base_optimizer.defaults = defaults

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of ``base``, and a jump where one is due; returns what ``base`` returns.

        Raises: as :meth:`KoopmanTrainer.after_step`.
        """
        return self.base_optimizer.step() if closure is None else self.base_optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As ``base`` does it."""
        self.base_optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to ``base``; its parameters are stepped but left out of jumps."""
        self.base_optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state of ``base``, with the trainer's under ``"koopman"``."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict` or from that of a plain ``base``.

        Raises:
            CheckpointError: the trainer's part belongs to another configuration or other
                parameters. Nothing is changed.
        """
        self.base_optimizer.load_state_dict(state_dict)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """On ``base``."""
        return self.base_optimizer.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """On ``base``."""
        return self.base_optimizer.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(
        self, hook: Any, prepend: bool = False
    ) -> RemovableHandle:
        """On ``base``."""
        return self.base_optimizer.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(
        self, hook: Any, prepend: bool = False
    ) -> RemovableHandle:
        """On ``base``."""
        return self.base_optimizer.register_load_state_dict_post_hook(hook, prepend)

    def __repr__(self) -> str:
        return f"KoopmanOptimizer({self.base_optimizer!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {
            "base": self.base_optimizer,
            "model": self._model,
            "config": self.trainer.config,
            "koopman": self.trainer.state_dict(),
            "process_group": portable(self.trainer.process_group),
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        group = local(saved["process_group"])
        self.__init__(  # type: ignore[misc]
            saved["base"], saved["config"], model=saved["model"], process_group=group
        )
        self.trainer.load_state_dict(saved["koopman"])


class _Parameters(nn.Module):
    """The parameters of an optimizer as a module, each in a child of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        for g, group in enumerate(optimizer.param_groups):
            for k, p in enumerate(group["params"]):
                self.add_module(f"group{g}_{k}", _Parameter(p))


class _Parameter(nn.Module):
    def __init__(self, parameter: Tensor) -> None:
        super().__init__()
        # Not register_parameter: masters are often plain tensors, and must stay the very same.
        self._parameters["weight"] = parameter  # type: ignore[assignment]
