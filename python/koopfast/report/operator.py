# SPDX-License-Identifier: BSD-3-Clause
"""A fitted operator in a report: its eigenvalues and its blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from koopfast.report._words import number
from koopfast.report.drawing import COLORS, INK, RULE, new_figure, to_svg
from koopfast.report.page import Drawing, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from koopfast.operator import KoopmanOperator
    from koopfast.partition import Partition

# Points in one scatter; beyond that an even choice is drawn, and the caption says so.
_MOST_POINTS = 3000
_MOST_BLOCKS = 24


def block_table(operator: KoopmanOperator) -> Table:
    """Size, rank, largest eigenvalue and hindcast error of the first blocks."""
    partition: Partition | None = getattr(operator, "partition", None)
    shown = min(operator.n_blocks, _MOST_BLOCKS)
    states = {0: "fitted", 1: "still", 2: "not finite"}
    rows = []
    for i in range(shown):
        names = partition.names if partition is not None else None
        size = int(partition.block_sizes[i]) if partition is not None else operator.n
        eigenvalues = operator.eigenvalues_of(i)
        error = float(operator.hindcast_error[i])
        rows.append(
            [
                names[i] if names is not None else f"block {i}",
                states.get(int(operator.status[i]), "?"),
                f"{size:,}",
                f"{int(operator.rank[i])}",
                f"{float(eigenvalues.abs().max()):.6f}" if eigenvalues.numel() else "–",
                number(error),
            ]
        )
    heads = ["block", "state", "weights", "rank", "largest |λ|", "hindcast error"]
    rest = operator.n_blocks - shown
    notes = ["Hindcast error: relative error on the end of the window, fitted on its beginning."]
    if rest:
        notes.append(f"{rest:,} further blocks are not listed.")
    return Table(heads, rows, "Blocks of the operator", words=(0, 1), notes=notes)


def draw_eigenvalues(operators: Sequence[tuple[str, KoopmanOperator]], name: str) -> Drawing:
    """Eigenvalues of each operator in the complex plane with the unit circle, side by side."""
    columns = max(len(operators), 3)
    figure = new_figure(3.3 * columns, 3.3)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    thinned = False
    for ax, (label, operator) in zip(axes, operators, strict=False):
        thinned |= plot_eigenvalues(ax, operator)
        ax.set_title(label)
    for ax in axes[len(operators) :]:
        ax.set_axis_off()
    axes[0].set_ylabel("imaginary part")
    caption = (
        "Eigenvalues λ of the operator in the complex plane, all blocks together. On the circle a "
        "motion goes on, inside it dies out; an eigenvalue of 1 is a motion that keeps its pace."
    )
    if thinned:
        caption += f" An even choice of at most {_MOST_POINTS:,} is drawn."
    return Drawing(to_svg(figure, f"{name}-eigenvalues"), caption)


def plot_eigenvalues(ax: Axes, operator: KoopmanOperator) -> bool:
    """The unit circle and the eigenvalues; returns True if not all of them were drawn."""
    values = operator.eigenvalues.detach().cpu()
    values = values[torch.isfinite(values.real) & torch.isfinite(values.imag)]
    every = math.ceil(len(values) / _MOST_POINTS) or 1
    drawn = values[::every].numpy()
    angle = torch.linspace(0, 2 * math.pi, 361, device="cpu").numpy()
    circle = torch.polar(torch.ones(361, device="cpu"), torch.from_numpy(angle)).numpy()
    ax.plot(circle.real, circle.imag, color=INK, linewidth=0.8)
    ax.axhline(0, color=RULE, linewidth=0.6)
    ax.axvline(0, color=RULE, linewidth=0.6)
    ax.scatter(drawn.real, drawn.imag, s=22, color=COLORS["koopman"], alpha=0.75, linewidth=0)
    reach = 1.12 * max(1.0, float(values.abs().max()) if len(values) else 1.0)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="real part")
    ax.grid(visible=False)
    return every > 1
