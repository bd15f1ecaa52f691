# SPDX-License-Identifier: BSD-3-Clause
"""A trainer whose model and optimizer the framework makes later than the callback."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from koopfast._team import everyone
from koopfast.config import KoopmanConfig
from koopfast.errors import KoopfastError
from koopfast.guard import Probe
from koopfast.trainer import KoopmanTrainer

__all__ = ["Attachment"]


class Attachment:
    """Makes and attaches the trainer when training begins, and holds its state before that.

    Args:
        config: a :class:`~koopfast.KoopmanConfig`; None means the default one.
        overrides: fields of it to replace.

    Raises:
        ConfigError: a field has a value that cannot work.
    """

    def __init__(self, config: KoopmanConfig | None, overrides: dict[str, Any]) -> None:
        self._config = (config or KoopmanConfig()).replace(**overrides)
        self._trainer: KoopmanTrainer | None = None
        self._pending: dict[str, Any] | None = None

    @property
    def trainer(self) -> KoopmanTrainer:
        """The trainer.

        Raises:
            KoopfastError: training has not begun.
        """
        if self._trainer is None:
            raise KoopfastError("trainer: there is none before training has begun")
        return self._trainer

    def begin(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, probe: Probe | None
    ) -> KoopmanTrainer:
        """Attach: the trainer that is there if it is of these two, otherwise a new one.

        Raises: as :class:`~koopfast.KoopmanTrainer` and its ``load_state_dict`` do.
        """
        trainer = self._trainer
        self.end()
        if trainer is None or trainer.model is not model or trainer.optimizer is not optimizer:
            trainer = KoopmanTrainer(model, optimizer, self._config, process_group=everyone())
        if self._pending is not None:
            trainer.load_state_dict(self._pending)
        trainer.attach(probe)
        self._trainer, self._pending = trainer, None
        return trainer

    def end(self) -> None:
        """Detach; the trainer stays, with its history."""
        if self._trainer is not None:
            self._trainer.detach()

    def state_dict(self) -> dict[str, Any]:
        """The trainer's state; before training, the one that was loaded; otherwise empty."""
        if self._trainer is not None and self._pending is None:
            return self._trainer.state_dict()
        return self._pending or {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep a state for when training begins; errors come then.

        Frameworks load before they make the optimizer, or at any rate before its state is loaded.
        """
        self._pending = state or None

    def __getstate__(self) -> dict[str, Any]:
        # Frameworks copy and pickle their callbacks apart from model and optimizer.
        return {"_config": self._config, "_trainer": None, "_pending": self.state_dict() or None}
