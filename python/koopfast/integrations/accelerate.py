# SPDX-License-Identifier: BSD-3-Clause
"""Hugging Face accelerate: a trainer that its ``save_state`` and ``load_state`` know."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from koopfast._team import everyone
from koopfast.config import KoopmanConfig
from koopfast.guard import Probe
from koopfast.trainer import KoopmanTrainer

__all__ = ["accelerated_trainer"]


def accelerated_trainer(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: KoopmanConfig | None = None,
    *,
    probe: Probe | None = None,
    **overrides: Any,
) -> KoopmanTrainer:
    """A trainer attached to a prepared optimizer and registered for checkpointing.

    Args:
        accelerator: that prepared the two.
        model: what ``accelerator.prepare`` returned.
        optimizer: the same.
        config: a :class:`~koopfast.KoopmanConfig`; None means the default one.
        probe: returns the loss to judge a jump by; can be set later (``trainer.probe``).
        **overrides: fields of the configuration to replace.

    Raises: as :class:`~koopfast.KoopmanTrainer` and its ``attach``.
    """
    overrides.setdefault("process_group", everyone())
    trainer = KoopmanTrainer(accelerator.unwrap_model(model), optimizer, config, **overrides)
    trainer.attach(probe)
    accelerator.register_for_checkpointing(trainer)
    return trainer
