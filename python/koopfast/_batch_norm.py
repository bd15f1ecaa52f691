# SPDX-License-Identifier: BSD-3-Clause
"""The running statistics of batch normalisation, computed anew at other weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from koopfast._savepoint import Buffers

__all__ = ["Recalibration", "normalizing_modules"]


def normalizing_modules(model: nn.Module) -> list[Any]:
    """The modules of ``model`` that keep running statistics of their batches."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]


class Recalibration:
    """Computes statistics as ``torch.optim.swa_utils.update_bn`` does: equal means over batches.

    Args:
        model: whose; it keeps statistics of batches.
        forward: passes some batches through it.

    Attributes:
        passes: how many batches there were, the last time.
    """

    def __init__(self, model: nn.Module, forward: Callable[[], object]) -> None:
        self._model = model
        self._forward = forward
        self.passes = 0

    def run(self) -> Buffers:
        """Compute them for the weights in place; returns all buffers as they then are.

        Only modules of batch normalisation are switched to training meanwhile.
        """
        modules = normalizing_modules(self._model)
        saved = [(module, module.momentum, module.training) for module in modules]
        try:
            for module in modules:
                module.reset_running_stats()
                module.momentum, module.training = None, True  # None: a cumulative mean
            with torch.no_grad():
                self._forward()
        finally:
            for module, momentum, training in saved:
                module.momentum, module.training = momentum, training
        self.passes = int(modules[0].num_batches_tracked)
        return Buffers(self._model)
