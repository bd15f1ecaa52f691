# SPDX-License-Identifier: BSD-3-Clause
"""A hook of mkdocs: draws the pictures of the pages by running koopfast, before each build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from koopfast import KoopmanOperator, KoopmanTrainer, SnapshotBuffer

_HERE = Path(__file__).parent
_TRUE, _PREDICTED, _WINDOW = "#7c8aa0", "#0f8a7e", "#e07a1f"


def on_pre_build(**_: Any) -> None:
    """Write prediction.svg and jumps.svg beside this file."""
    draw_prediction().savefig(_HERE / "prediction.svg", metadata={"Date": None})
    draw_jumps().savefig(_HERE / "jumps.svg", metadata={"Date": None})


class Training:
    """A small network on a smooth full batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.x = torch.randn(20, 3, dtype=torch.float64)
        self.y = self.x.sin().sum(1, keepdim=True)

    def loss(self) -> Tensor:
        return nn.functional.mse_loss(self.model(self.x), self.y)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


def draw_prediction() -> Figure:
    """Three weights: what was recorded, what was predicted from it, and what came."""
    training, window, rest, stride = Training(), 24, 72, 4
    buffer = SnapshotBuffer(training.model, window + rest, stride=stride)
    while not buffer.full:
        training.step()
        buffer.record()
    operator = KoopmanOperator.fit(buffer.snapshots[:window])
    predicted = operator.predict(range(rest + 1))
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    ax = figure.subplots()
    moved = (buffer.snapshots[-1] - buffer.snapshots[0]).abs().argsort(descending=True)[:3]
    steps = stride * torch.arange(1, window + rest + 1)
    for k, index in enumerate(moved.tolist()):
        ax.plot(
            steps, buffer.snapshots[:, index], color=_TRUE, label="training" if k == 0 else None
        )
        ax.plot(
            steps[window - 1 :], predicted[:, index], "--", color=_PREDICTED,
            label="predicted" if k == 0 else None,
        )  # fmt: skip
    ax.axvspan(0, stride * window, color=_WINDOW, alpha=0.12, label="recorded window")
    ax.set(xlabel="optimizer steps", ylabel="three weights")
    ax.legend(frameon=False)
    return figure


def draw_jumps() -> Figure:
    """The loss with and without jumps, over the optimizer steps that were really taken."""
    plain, helped, steps = Training(), Training(), 300
    trainer = KoopmanTrainer(helped.model, helped.optimizer, window=12, stride=2)
    losses: dict[str, list[float]] = {"plain": [], "with jumps": []}
    for _ in range(steps):
        plain.step()
        losses["plain"].append(plain.loss().item())
        helped.step()
        trainer.after_step(helped.loss)
        losses["with jumps"].append(helped.loss().item())
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    ax = figure.subplots()
    for (name, values), color in zip(losses.items(), (_TRUE, _PREDICTED), strict=True):
        ax.semilogy(range(1, steps + 1), values, color=color, label=name)
    for jump in trainer.history.jumps:
        if jump.accepted:
            ax.axvline(jump.step, color=_WINDOW, alpha=0.4, linewidth=0.8)
    ax.set(xlabel="optimizer steps taken", ylabel="loss")
    ax.legend(frameon=False)
    return figure
