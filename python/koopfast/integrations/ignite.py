# SPDX-License-Identifier: BSD-3-Clause
"""PyTorch-Ignite: a handler for an ``Engine``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from koopfast.config import KoopmanConfig
from koopfast.trainer import KoopmanTrainer

__all__ = ["IgniteKoopman"]


class IgniteKoopman:
    """Koopman training in an ignite engine whose update function steps ``optimizer``.

    Give it to ignite's ``Checkpoint`` like model and optimizer: ``{"koopman": handler, …}``.

    Args:
        model: the network.
        optimizer: steps it.
        loss: ``loss(engine)`` returns the loss at the weights of the moment; usually of
            ``engine.state.batch``.
        config: a :class:`~koopfast.KoopmanConfig`; None means the default one.
        **overrides: fields of the configuration to replace.

    Attributes:
        trainer: the :class:`~koopfast.KoopmanTrainer`.

    Raises: as :class:`~koopfast.KoopmanTrainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Engine], Any],
        config: KoopmanConfig | None = None,
        **overrides: Any,
    ) -> None:
        self.trainer = KoopmanTrainer(model, optimizer, config, **overrides)
        self._loss = loss

    def attach(self, engine: Engine) -> None:
        """Watch the optimizer's steps while ``engine`` runs."""
        engine.add_event_handler(Events.STARTED, self._begin)
        for event in (Events.COMPLETED, Events.TERMINATE):
            engine.add_event_handler(event, self.trainer.detach)

    def state_dict(self) -> dict[str, Any]:
        """The trainer's."""
        return self.trainer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The trainer's, after model and optimizer have loaded theirs."""
        self.trainer.load_state_dict(state)

    def _begin(self, engine: Engine) -> None:
        self.trainer.detach()  # an earlier run may have ended with an exception
        self.trainer.attach(lambda: self._loss(engine))
