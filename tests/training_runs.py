# SPDX-License-Identifier: BSD-3-Clause
"""Small training runs for the tests of guard and trainer, and their complete state to compare."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from koopfast import KoopmanTrainer

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


class Run:
    """A model, an optimizer and one batch."""

    def __init__(self, model: nn.Module, optimizer: str, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        self.optimizer = OPTIMIZERS[optimizer](model.parameters())

    def loss(self) -> Tensor:
        return nn.functional.mse_loss(self.model(self.x), self.y)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def train(self, trainer: KoopmanTrainer, steps: int) -> None:
        for _ in range(steps):
            self.step()
            trainer.after_step(self.loss)


def smooth_run(optimizer: str = "sgd") -> Run:
    """Full-batch training of a small tanh network in float64: smooth, and jumps pay off."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    return Run(model, optimizer, x, x.sin().sum(1, keepdim=True))


def noisy_run(optimizer: str = "sgd") -> Run:
    """A network with dropout and batch normalisation: every evaluation draws and counts."""
    torch.manual_seed(0)
    random.seed(0)
    model = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)
    )
    x = torch.randn(20, 3)
    return Run(model, optimizer, x, x.sin().sum(1, keepdim=True))


def everything(run: Run) -> dict[str, Any]:
    """All that a refused or failed jump must not change, as copies."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    return {
        "weights": run.weights(),
        "buffers": {name: b.clone() for name, b in run.model.named_buffers()},
        "gradients": [p.grad if p.grad is None else p.grad.clone() for p in run.model.parameters()],
        "gradient ids": [id(p.grad) for p in run.model.parameters()],
        "optimizer": _copied(run.optimizer.state_dict()),
        "modes": [m.training for m in run.model.modules()],
        "torch stream": torch.get_rng_state(),
        "python stream": random.getstate(),
        "numpy stream": [numpy_state[1].tolist(), *numpy_state[2:]],
    }


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, tensors included."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    else:
        assert one == other, where


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(item) for item in value]
    return value
