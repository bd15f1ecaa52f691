# SPDX-License-Identifier: BSD-3-Clause
"""The page of a benchmark run: python bench/page.py RAW.json FOLDER

From pytest-benchmark's JSON it writes to the folder benchmarks.json (without raw samples and host
name), a PNG for each group of studies, and report.html with the same drawings and all tables.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from koopfast.report import (
    COLORS,
    INK,
    Drawing,
    Item,
    Page,
    Prose,
    Section,
    Table,
    drawing_style,
    log_scale,
    machine,
    new_figure,
    save_page,
    to_svg,
)

_UNITS = {"seconds": "time, s", "bytes": "memory, bytes"}
_COLUMNS = 2


def stripped(raw: dict[str, Any]) -> dict[str, Any]:
    """Without raw samples, and without the name of the machine."""
    for benchmark in raw["benchmarks"]:
        benchmark["stats"].pop("data", None)
    raw["machine_info"].pop("node", None)
    return raw


def _interval(study: dict[str, Any]) -> str:
    low, high = study["interval"]
    return f"{low:.2f} to {high:.2f}"


def _theory(study: dict[str, Any]) -> str:
    low, high = study["theory"]
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _short(value: float) -> str:
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= unit and (value >= 1e4 or value % unit == 0):
            return f"{value / unit:.3g}{letter}"
    return f"{value:g}"


def _draw(ax: Any, study: dict[str, Any]) -> None:
    x, median = np.array(study["x"]), np.array(study["median"])
    low, high = np.array(study["low"]), np.array(study["high"])
    ax.errorbar(
        x,
        median,
        yerr=[median - low, high - median],
        fmt="o-",
        color=COLORS["koopman"],
        markersize=4,
        capsize=3,
    )
    middle = np.exp(np.log(x).mean()), np.exp(np.log(median).mean())
    for slope, dashes in zip(sorted(set(study["theory"])), ("--", ":"), strict=False):
        line = middle[1] * (x / middle[0]) ** slope
        ax.plot(x, line, dashes, color=COLORS["plain"], linewidth=1, label=f"slope {slope:g}")
    ax.set(xscale="log", xlabel=study["size"], ylabel=_UNITS[study["cost"]])
    ax.set_xticks(x, [_short(value) for value in x])
    ax.set_xticks([], minor=True)
    # Costs that hardly differ would fill the axis with their noise.
    if median.max() < 4 * median.min():
        ax.set_ylim(median.min() / 3, median.max() * 3)
    log_scale(ax)
    ax.set_title(textwrap.fill(study["title"], 56), fontsize=8.5)
    ax.text(
        0.03,
        0.95,
        f"exponent {study['exponent']:.2f} ({_interval(study)})",
        transform=ax.transAxes,
        va="top",
        color=INK,
    )
    ax.legend(loc="lower right")


def _drawing(name: str, studies: list[dict[str, Any]], folder: Path) -> Drawing:
    rows = -(-len(studies) // _COLUMNS)
    figure = new_figure(9.0, 3.4 * rows)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for ax, study in zip(axes, studies, strict=False):
        _draw(ax, study)
    for ax in axes[len(studies) :]:
        ax.set_axis_off()
    figure.savefig(folder / f"{name}.png", facecolor="white")
    caption = (
        "Medians with quartiles; the exponent is the slope through the medians, with a 95% "
        "bootstrap interval over rounds. Dashed: the slopes of theory."
    )
    return Drawing(to_svg(figure, name), caption)


def _compare(result: dict[str, Any], folder: Path) -> Drawing | None:
    """A step of training and predicted ones in one picture, by width and by batch size."""
    studies = [b["extra_info"].get("study", {}) for b in result["benchmarks"]]
    by_width = [s for s in studies if s.get("size") == "width"]
    by_batch = [s for s in studies if s.get("size") == "batch size"]
    if not by_width or not by_batch:
        return None
    figure = new_figure(9.0, 4.2)
    axes = figure.subplots(1, _COLUMNS)
    for ax, own in zip(axes, (by_width, by_batch), strict=True):
        sizes = sorted({value for study in own for value in study["x"]})
        for index, study in enumerate(by_width + by_batch):
            color = f"C{index}" if study in by_width else "C0"
            style = {"color": color, "label": study["title"].split(", m =")[0].split(", batch")[0]}
            if study in own:
                ax.plot(study["x"], study["median"], "o-", markersize=4, **style)
            elif study in by_width and "partition" in study["title"] and 256 in study["x"]:
                # No batch size in a predicted step: the cost at the width of the other panel.
                ax.axhline(study["median"][study["x"].index(256)], linestyle="--", **style)
        ax.set(xscale="log", xlabel=own[0]["size"], ylabel="time a step, s")
        ax.set_xticks(sizes, [_short(value) for value in sizes])
        ax.set_xticks([], minor=True)
        log_scale(ax)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(folder / "a-step.png", facecolor="white")
    caption = (
        "Seconds a step: backpropagation and update, against a fit and 1000 predicted steps shared "
        "out. Right: at width 256, where a predicted step (dashed) knows no batch size."
    )
    return Drawing(to_svg(figure, "a-step"), caption)


def _study_table(studies: Iterable[dict[str, Any]]) -> Table:
    rows = [
        [
            study["title"],
            study["size"],
            f"{study['exponent']:.2f}",
            _interval(study),
            _theory(study),
            f"± {study['tolerance']:g}",
            study["why"],
        ]
        for study in studies
    ]
    heads = ["what", "against", "exponent", "95%", "theory", "tolerance", "because"]
    return Table(heads, rows, words=(0, 1, 6))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return " x ".join(_value(inner) for inner in value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _run_table(benchmarks: Iterable[dict[str, Any]]) -> Table:
    rows = []
    for benchmark in benchmarks:
        stats, info = benchmark["stats"], dict(benchmark["extra_info"])
        info.pop("study", None)
        if isinstance(info.get("quartiles"), list):
            info["quartiles"] = " to ".join(_value(v) for v in info["quartiles"])
        rows.append(
            [
                benchmark["name"].removeprefix("test_").replace("_", " "),
                f"{1e3 * stats['median']:.3f}",
                f"{1e3 * stats['q1']:.3f} to {1e3 * stats['q3']:.3f}",
                "; ".join(f"{key} {_value(value)}" for key, value in info.items()),
            ]
        )
    return Table(["benchmark", "median, ms", "quartiles", "noted"], rows, words=(0, 3))


def report(result: dict[str, Any], folder: Path) -> Path:
    """Write drawings and page; returns the page."""

    groups: dict[str, list[dict[str, Any]]] = {}
    for benchmark in result["benchmarks"]:
        groups.setdefault(benchmark["group"] or "others", []).append(benchmark)
    growth, others = [], []
    with drawing_style():
        for group, benchmarks in groups.items():
            title = group[0].upper() + group[1:]
            studies = [b["extra_info"]["study"] for b in benchmarks if "study" in b["extra_info"]]
            if not studies:
                others.append(Section(title, [_run_table(benchmarks)]))
                continue
            name = re.sub(r"\W+", "-", group.lower())
            items: list[Item] = [_drawing(name, studies, folder), _study_table(studies)]
            growth.append(Section(title, items))
        compared = _compare(result, folder)
    if compared is not None:
        growth.append(Section("A step: predicted against trained", [compared]))
    note = Prose(
        "speed_up: the named peer's time over koopfast's, median of the ratios of rounds that took "
        "turns. target: what is aimed at; reached: whether this run did. GB/s counts the bytes "
        "that must be moved. Memory is resident memory at its peak beyond what was resident "
        "before the call."
    )
    page = Page(
        title="How the cost grows, and against whom",
        lede="Scaling studies with their exponents, then kernels and peers, all from one run.",
        facts=machine(),
        sections=[*growth, Section("How to read the tables", [note]), *others],
    )
    return save_page(page, folder / "report.html")


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    run = stripped(json.loads(source.read_text(encoding="utf-8")))
    (target / "benchmarks.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    print(report(run, target))
