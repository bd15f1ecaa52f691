# SPDX-License-Identifier: BSD-3-Clause
"""Loss curves and performance profiles of a study, as PNGs and on one page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables import Cell, grouped, methods_of, target

from koopfast.report import (
    COLORS,
    Drawing,
    Page,
    Section,
    drawing_style,
    log_scale,
    machine,
    new_figure,
    save_page,
    to_svg,
)

_COLUMNS = 3
_OTHERS = (
    "#8e6bbf",
    "#c2577a",
    "#4f86c6",
    "#b08d2f",
    "#6a9c4b",
    "#a06a4a",
    "#5b6b7f",
    "#9aa5b1",
    "#2f9aa0",
)


def _colors(names: Sequence[str]) -> dict[str, str]:
    rest = [name for name in names if name not in COLORS]
    return {**COLORS, **dict(zip(rest, itertools.cycle(_OTHERS), strict=False))}


def _curve(cells: Sequence[Cell], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Median loss over the seeds on a common grid of gradient evaluations."""
    grid = np.linspace(0, cells[0].steps, 201)
    traces = [c.traces[name] for c in cells if name in c.traces]
    losses = [np.interp(grid, trace.cost, trace.scores) for trace in traces]
    return grid, np.nanmedian(losses, axis=0)  # one that diverges ends in NaN


def _draw_curves(groups: list[list[Cell]], names: list[str], folder: Path, kind: str) -> Drawing:
    rows = -(-len(groups) // _COLUMNS)
    figure = new_figure(10.5, 2.9 * rows)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    colors = _colors(names)
    for ax, group in zip(axes, groups, strict=False):
        for name in (n for n in names if any(n in cell.traces for cell in group)):
            first = name in ("plain", "koopman")
            x, y = _curve(group, name)
            ax.plot(
                x, y, color=colors[name], label=name, lw=1.6 if first else 0.8, zorder=2 + first
            )
        plain = _curve(group, "plain")[1]
        log_scale(ax)
        ax.set_ylim(top=2 * float(np.nanmax(plain)))
        ax.set_title(f"{group[0].row.name} ({group[0].rate:g})", fontsize=8.5)
    for ax in axes[len(groups) :]:
        ax.set_axis_off()
    handles: dict[str, Any] = {}
    for ax in axes[: len(groups)]:
        handles.update(dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6)
    figure.savefig(folder / f"curves-{kind}.png", facecolor="white")
    caption = "Loss over gradient evaluations, probes included; medians over the seeds."
    return Drawing(to_svg(figure, f"curves-{kind}"), caption)


def _draw_profile(groups: list[list[Cell]], names: list[str], folder: Path, kind: str) -> Drawing:
    """Dolan & Moré (2002): the share of cells that a method solves within a factor of the best."""
    figure = new_figure(7.0, 3.6)
    ax = figure.subplots()
    every = [cell for group in groups for cell in group]
    cells = [cell for cell in every if len(cell.races) > 1] or every
    # Where the optimizer alone diverges there is no target.
    cells = [cell for cell in cells if math.isfinite(target(cell.beside("koopman")))]
    factors = np.geomspace(1, 64, 200)
    colors = _colors(names)
    best = [max(cell.speed_up(name) for name in cell.traces) for cell in cells]
    for name in names:
        within = [
            (b / cell.speed_up(name) if cell.speed_up(name) > 0 else np.inf)
            for cell, b in zip(cells, best, strict=True)
            if name in cell.traces
        ]
        share = [np.mean(np.array(within) <= factor * (1 + 1e-9)) for factor in factors]
        ax.plot(factors, share, color=colors[name], label=name)
    ax.set(xscale="log", xlabel="factor of the best method's evaluations", ylabel="share of cells")
    ax.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    ax.set_ylim(0, 1.02)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(folder / f"profile-{kind}.png", facecolor="white")
    caption = (
        "Performance profile: the share of runs in which a method reaches the target within a "
        "factor of the evaluations that the best method needs. L-BFGS only runs on full batches "
        "and is counted over those."
    )
    return Drawing(to_svg(figure, f"profile-{kind}"), caption)


def save_figures(cells: Sequence[Cell], command: str, folder: Path) -> Path:
    """Write the PNGs and the page; return where the page is."""
    sections = []
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("default", "tuned"):
        groups = grouped(cells, kind)
        if not groups:
            continue
        names = methods_of([cell for group in groups for cell in group])
        with drawing_style():
            items = [
                _draw_profile(groups, names, folder, kind),
                _draw_curves(groups, names, folder, kind),
            ]
        sections.append(Section(f"At the {kind} learning rates", items))
    page = Page(
        title="Acceleration",
        lede="Does training reach the loss sooner? All methods from the same seeds, in turns.",
        facts=[*machine(), command],
        sections=sections,
    )
    return save_page(page, folder / "report.html")
