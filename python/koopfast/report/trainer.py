# SPDX-License-Identifier: BSD-3-Clause
"""The page of one training run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koopfast.report._machine import machine
from koopfast.report._words import number
from koopfast.report.drawing import COLORS, drawing_style, log_scale, new_figure, to_svg
from koopfast.report.operator import block_table, draw_eigenvalues
from koopfast.report.page import Drawing, Item, Page, Section, Table, Tiles, save_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from koopfast.config import KoopmanConfig
    from koopfast.history import Counters, History, JumpRecord
    from koopfast.operator import KoopmanOperator


def write_trainer_report(
    history: History,
    config: KoopmanConfig,
    path: str | os.PathLike[str],
    operator: KoopmanOperator | None = None,
) -> Path:
    """The page of one training run: counts, probed losses, jump log, spectrum, settings.

    Args:
        history: what the trainer did.
        config: what it was told.
        path: the HTML file to write; its folder is made.
        operator: the last operator fitted, for its eigenvalues and blocks.

    Returns:
        Where the page is.

    Raises:
        ConfigError: `path` is a folder, a device, a pipe or a socket.
        KoopfastError: matplotlib or jinja2 is not installed (``pip install koopfast[plots]``).
        OSError: the file cannot be written.
    """
    c = history.counters
    tried = c.jumps_accepted + c.jumps_refused
    overhead = c.seconds_record + c.seconds_fit + c.seconds_predict + c.seconds_probe
    run: list[Item] = [
        Tiles(
            [
                (f"{c.optimizer_steps:,}", "optimizer steps"),
                (f"{c.predicted_steps:,}", "predicted steps"),
                (f"{c.jumps_accepted} of {tried}", "jumps accepted"),
                (f"{c.probe_evaluations:,}", "probe evaluations"),
                (f"{overhead:.3g} s", "spent on Koopman training"),
                *_gained(c),
            ]
        )
    ]
    with drawing_style():
        if any(jump.loss_before is not None for jump in history.jumps):
            run.append(_draw_jumps(history.jumps))
        if history.epochs:
            run.append(_draw_epochs(history))
        run.append(_stages_table(history))
        sections = [Section("The run", run)]
        if operator is not None:
            spectrum: list[Item] = [
                draw_eigenvalues([("last operator", operator)], "trainer"),
                block_table(operator),
            ]
            sections.append(Section("The last operator", spectrum))
    if history.forecasts:
        sections.append(Section("Dry run", [outlook_table(history)]))
    sections.append(Section("Jump log", [jump_table(history.jumps, "Every jump that was tried")]))
    sections.append(Section("Settings", [settings_table(config)]))
    page = Page(
        title="Koopman training report",
        lede=f"{tried} jumps were tried in {c.optimizer_steps:,} optimizer steps and "
        f"{c.jumps_accepted} of them kept.",
        facts=machine(),
        sections=sections,
    )
    return save_page(page, path)


def _gained(counters: Counters) -> list[tuple[str, str]]:
    """Tiles of what was gained, where the trainer could estimate it, and of shortened steps."""
    if counters.evaluations_gained == 0:
        return []
    short = counters.steps_shortened
    tiles = [(f"{short:,}", "steps went only a part of their way")] if short > 0 else []
    return [
        *tiles,
        (f"{counters.evaluations_gained:,.0f}", "gradient evaluations gained (estimate)"),
        (f"{counters.seconds_gained:.3g} s", "gained by that, all costs deducted (estimate)"),
    ]


def jump_table(jumps: Sequence[JumpRecord], caption: str, *, folded: bool = False) -> Table:
    """The jump log, one row a jump."""
    rows = [
        [
            f"{jump.step:,}",
            "kept" if jump.accepted else "refused",
            f"{jump.horizon:,}" if jump.accepted else "–",
            number(jump.loss_before),
            number(jump.loss_after),
            f"{jump.probe_evaluations}",
            f"{1e3 * (jump.seconds_fit + jump.seconds_predict):.2f}",
            f"{1e3 * jump.seconds_probe:.2f}",
            f"{jump.rank.median:g}" if jump.rank is not None else "–",
            jump.reason,
        ]
        for jump in jumps
    ]
    heads = ["at step", "jump", "horizon", "loss before", "loss after", "probes"]
    heads += ["fit + predict, ms", "probe, ms", "median rank", "reason"]
    notes = ["Horizons in optimizer steps; losses as probed."] if rows else ["No jump was tried."]
    return Table(heads, rows, caption, words=(1, 9), folded=folded, notes=notes)


def outlook_table(history: History) -> Table:
    """What a dry run predicted and what came, one row a stride and horizon."""
    outlook = history.outlook()
    rows = [
        [
            f"{row.stride}",
            f"{row.horizon:,}",
            f"{row.windows:.2g}",
            f"{row.count}",
            number(row.error),
            number(row.predicted),
            number(row.real),
        ]
        for row in outlook.rows
    ]
    heads = ["stride", "steps ahead", "windows ahead", "predictions", "error of the weights"]
    heads += ["loss at the prediction", "loss of training then"]
    notes = [
        f"{outlook.in_words().capitalize()}.",
        "Medians. Errors: 1 is no better than standing still. Losses: multiples of that before.",
    ]
    return Table(heads, rows, "Predictions and what came of them", words=(), notes=notes)


def settings_table(config: KoopmanConfig) -> Table:
    """The fields of the configuration."""
    rows = []
    for name, value in config.to_dict().items():
        own_partition = name == "partition" and not isinstance(value, str)
        rows.append([name, repr(config.partition) if own_partition else _setting(value)])
    return Table(["field", "value"], rows, "Configuration of the trainer", words=(0, 1))


def _draw_jumps(jumps: Sequence[JumpRecord]) -> Drawing:
    figure = new_figure(9.0, 3.2)
    ax = figure.subplots()
    before = [(j.step, j.loss_before) for j in jumps if j.loss_before is not None]
    kept = [
        (j.step, j.loss_before, j.loss_after)
        for j in jumps
        if j.accepted and j.loss_before is not None and j.loss_after is not None
    ]
    ax.plot(
        *zip(*before, strict=True),
        color=COLORS["plain"],
        marker="o",
        markersize=3,
        label="before a jump",
    )
    if kept:
        steps, froms, tos = zip(*kept, strict=True)
        ax.vlines(steps, froms, tos, color=COLORS["jump"], linewidth=1)
        ax.plot(steps, tos, "v", color=COLORS["jump"], markersize=5, label="after a kept jump")
    _log_if_positive(ax, [loss for _, loss in before] + [after for _, _, after in kept])
    ax.set(xlabel="optimizer steps", ylabel="probed loss")
    ax.legend()
    caption = "Loss as probed where a jump was tried, and what each kept jump made of it."
    return Drawing(to_svg(figure, "jumps"), caption)


def _draw_epochs(history: History) -> Drawing:
    figure = new_figure(9.0, 3.0)
    ax = figure.subplots()
    steps, losses = [e.step for e in history.epochs], [e.loss for e in history.epochs]
    ax.plot(steps, losses, color=COLORS["koopman"], marker="o", markersize=3, label="training loss")
    validation = history.validation
    if validation:
        ax.plot(
            *zip(*validation, strict=True),
            color=COLORS["jump"],
            marker="s",
            markersize=3,
            label="validation",
        )
    _log_if_positive(ax, losses + [value for _, value in validation])
    ax.set(xlabel="optimizer steps", ylabel="mean over the epoch")
    ax.legend()
    return Drawing(to_svg(figure, "epochs"), "Training loss of each epoch, and validation if any.")


def _log_if_positive(ax: Axes, values: Sequence[float]) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > 5 * min(finite):
        log_scale(ax)


def _stages_table(history: History) -> Table:
    c = history.counters
    stages = {
        "record": c.seconds_record,
        "fit": c.seconds_fit,
        "predict": c.seconds_predict,
        "probe": c.seconds_probe,
    }
    rows = [[name, f"{seconds:.4f}"] for name, seconds in stages.items()]
    return Table(["stage", "seconds"], rows, "Time spent on Koopman training")


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
