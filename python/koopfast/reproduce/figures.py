# SPDX-License-Identifier: BSD-3-Clause
"""Figures of both experiments, and of what an operator of weights, nodes and layers is.

Everything here runs inside :func:`koopfast.report.drawing_style`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from koopfast._files import write_whole
from koopfast.data import HamiltonianNetwork
from koopfast.partition import Partition
from koopfast.report import COLORS, INK, RULE, log_scale, new_figure
from koopfast.reproduce.tables import SHOWN_PARTITION, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["digits_figures", "save_figure", "solver_figures"]

Figures = dict[str, tuple["Figure", str]]


def solver_figures(result: dict[str, Any]) -> Figures:
    """Figure and caption by name: the partitions, errors and losses along the stretch."""
    plain = [run for run in result["runs"] if not run["noise"]]
    noisy = [run for run in result["runs"] if run["noise"]]
    return {
        "partitions": _partitions(),
        "solver-errors": _solver_errors(plain, noisy, result["settings"]),
        "solver-losses": _solver_losses(plain),
    }


def digits_figures(result: dict[str, Any]) -> Figures:
    """Figure and caption by name: accuracy and losses along the stretch."""
    return {"digits-stretch": _digits_stretch(result["runs"], result["settings"])}


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.png and ``stem``.svg."""
    paths = []
    for kind in ("png", "svg"):
        content = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else None
        figure.savefig(content, format=kind, facecolor="white", metadata=metadata)
        paths.append(write_whole(stem.with_name(f"{stem.name}.{kind}"), content.getvalue()))
    return paths


def _partitions() -> tuple[Figure, str]:
    """The operator's matrix for each partition: which weights may act on which."""
    model = HamiltonianNetwork(width=4)
    figure = new_figure(10.0, 2.9)
    kinds = ("weight", "node", "layer", "network")
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    n = sum(p.numel() for p in model.parameters())
    # Parameters in the order of the nodes, so that every block is a square on the diagonal.
    node = Partition.node(model)
    order = torch.cat([_indices(node, b) for b in range(node.n_blocks)])
    place = torch.empty(n, dtype=torch.int64)
    place[order] = torch.arange(n)
    from matplotlib.patches import Rectangle

    for ax, kind in zip(axes, kinds, strict=True):
        partition = Partition.of(kind, model)
        for block in range(partition.n_blocks):
            where = place[_indices(partition, block)]
            low, size = int(where.min()), len(where)
            square = Rectangle((low, low), size, size, color=COLORS["koopman"], alpha=0.85)
            square.set_linewidth(0)
            ax.add_patch(square)
        filled = int((partition.block_sizes**2).sum())
        ax.set(xlim=(0, n), ylim=(n, 0), aspect="equal", xticks=[], yticks=[])
        ax.grid(visible=False)
        for side in ("top", "right"):
            ax.spines[side].set_visible(True)
        ax.set_title(kind)
        blocks = "1 block" if partition.n_blocks == 1 else f"{partition.n_blocks} blocks"
        ax.set_xlabel(f"{blocks}, {100 * filled / n**2:.0f} % of the matrix")
    caption = (
        f"One operator, four partitions, for a solver network with four units a layer ({n} "
        "weights): a square is a block of the operator's matrix, and what lies outside the blocks "
        "is zero. A weight is predicted from its own past alone, or from that of its node, its "
        "layer, or the whole network."
    )
    return figure, caption


def _indices(partition: Partition, block: int) -> torch.Tensor:
    """Which weights a block has."""
    return torch.cat([torch.arange(start, start + n) for start, n in partition.block(block)])


def _solver_errors(
    plain: Sequence[dict[str, Any]], noisy: Sequence[dict[str, Any]], settings: dict[str, Any]
) -> tuple[Figure, str]:
    figure = new_figure(10.0, 5.6)
    grid = figure.subplots(2, len(plain), squeeze=False, sharex=True)
    for axes, runs, what in ((grid[0], plain, ""), (grid[1], noisy, ", noisy points")):
        for ax, run in zip(axes, runs, strict=True):
            for kind, method, color, style in _LINES:
                values = [_drawn(ratio(run, kind, method, i)) for i in range(len(run["horizons"]))]
                label = f"{method}, {kind}"
                ax.plot(run["horizons"], values, color=color, linestyle=style, label=label)
            ax.axhline(1, color=INK, linewidth=0.8, linestyle=":")
            ax.axhline(0.05, color=RULE, linewidth=1.2)
            ax.axvline(settings["horizon"], color=RULE, linewidth=1.2)
            log_scale(ax)
            ax.set_title(f"{run['optimizer']}, rate {run['rate']:g}{what}")
        axes[0].set_ylabel("error over distance travelled")
    for ax in grid[1]:
        ax.set_xlabel("steps predicted")
    grid[0][-1].legend(fontsize=8)
    caption = (
        "Distance of the predicted weights from the true ones over the distance truly travelled, "
        "medians over the networks. Dotted: standing still. Grey lines: 0.05, and the horizon of "
        "the tables."
    )
    return figure, caption


_LINES = (
    ("node", "paper", COLORS["plain"], "-"),
    ("weight", "auto", COLORS["jump"], ":"),
    ("node", "auto", COLORS["jump"], "-"),
    ("layer", "auto", COLORS["koopman"], ":"),
    ("network", "auto", COLORS["koopman"], "-"),
)


def _solver_losses(runs: Sequence[dict[str, Any]]) -> tuple[Figure, str]:
    figure = new_figure(10.0, 3.1)
    axes = figure.subplots(1, len(runs), squeeze=False)[0]
    for ax, run in zip(axes, runs, strict=True):
        now = median(loss[0] for loss in run["loss_now"])
        sources = [("true training", run["loss_true"], INK)]
        for kind, method, color in (
            ("node", "paper", COLORS["plain"]),
            (SHOWN_PARTITION, "auto", COLORS["koopman"]),
        ):
            name = f"{method}, {kind}"
            sources.append((name, run["predictions"][kind][method]["loss"], color))
        for name, losses, color in sources:
            values = [_drawn(_median(column)) for column in zip(*losses, strict=True)]
            style = ":" if name == "true training" else "-"
            ax.plot([0, *run["horizons"]], [now, *values], color=color, label=name, linestyle=style)
        log_scale(ax)
        ax.set(title=run["optimizer"], xlabel="steps after the window")
    axes[0].set_ylabel("median loss")
    axes[0].legend(fontsize=8)
    return figure, "Loss of the true and of the predicted weights along the stretch."


def _digits_stretch(runs: Sequence[dict[str, Any]], settings: dict[str, Any]) -> tuple[Figure, str]:
    figure = new_figure(10.0, 6.0)
    axes = figure.subplots(2, 2, sharex=True).flatten()
    horizons = settings["horizons"]
    parts = (
        ("test_accuracy", "test accuracy, %"),
        ("train_accuracy", "training accuracy, %"),
        ("test_loss", "test loss"),
        ("train_loss", "training loss"),
    )
    for ax, (part, label) in zip(axes, parts, strict=True):
        factor = 100 if part.endswith("accuracy") else 1
        lines = [
            ("true training", [run["true"] for run in runs], INK, ":"),
            ("true training, mean of 20 steps", [run["true_mean"] for run in runs], INK, "-"),
        ]
        for kind, method, color, style in (
            ("quasi_node", "auto", COLORS["jump"], "-"),
            ("quasi_node", "fixed", COLORS["jump"], ":"),
            ("network", "auto", COLORS["koopman"], "-"),
            ("network", "fixed", COLORS["koopman"], ":"),
        ):
            scores = [run["predictions"][kind][method]["scores"] for run in runs]
            lines.append((f"{method}, {kind.replace('_', '-')}", scores, color, style))
        for name, scores, color, style in lines:
            values = [
                _drawn(factor * _median(s[i][part] for s in scores)) for i in range(len(horizons))
            ]
            ax.plot(horizons, values, color=color, linestyle=style, marker=".", label=name)
        ax.set_title(label)
    for ax in axes[2:]:
        ax.set_xlabel("minibatch steps after the window")
    axes[0].legend(fontsize=8)
    caption = (
        "The classifier along the true and the predicted stretch, medians over the seeds. A mean "
        "of steps lies below single steps' loss: less of the minibatches' noise is in it."
    )
    return figure, caption


def _drawn(value: float) -> float:
    return value if math.isfinite(value) and value < 1e3 else math.nan


def _median(values: Any) -> float:
    middle: float = median(math.inf if value is None else value for value in values)
    return middle
