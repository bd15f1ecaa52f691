# SPDX-License-Identifier: BSD-3-Clause
"""The demo's figures as numbers: what is printed, and what results.json holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from koopfast.demo.race import RaceResult, Run
from koopfast.demo.stretch import StretchResult
from koopfast.demo.tasks import Task

__all__ = [
    "RUN_HEADS",
    "STRETCH_HEADS",
    "TaskResult",
    "as_facts",
    "in_words",
    "run_rows",
    "show_error",
    "stretch_rows",
    "text_table",
]


@dataclass(frozen=True)
class TaskResult:
    """All of one task: a race and a stretch for each optimizer, in the same order."""

    task: Task
    races: Sequence[RaceResult]
    stretches: Sequence[StretchResult]


RUN_HEADS = ["optimizer", "run", "steps", "gradients", "probes", "predicted", "jumps kept"]
RUN_HEADS += ["seconds", "final loss", "steps to plain's"]

STRETCH_HEADS = ["optimizer", "steps", "backprop, ms", "fit, ms", "predict, ms", "faster"]
STRETCH_HEADS += ["faster, fitted", "error", "loss now", "loss predicted", "loss true"]


def run_rows(result: TaskResult) -> list[list[str]]:
    """One row for each run, under RUN_HEADS and the task's outcome."""
    rows = []
    for race in result.races:
        c = race.history.counters
        tried = c.jumps_accepted + c.jumps_refused
        jumps = {"plain": ["–", "–"], "koopman": [f"{c.predicted_steps:,}", f"{c.jumps_accepted}"]}
        jumps["koopman"][1] += f" of {tried}"
        for name, run in (("plain", race.plain), ("koopman", race.koopman)):
            reached = run.steps_to(race.plain.score)
            rows.append(
                [
                    race.optimizer,
                    name,
                    f"{run.steps[-1]:,}",
                    f"{run.gradients:,}",
                    f"{run.probes:,}",
                    *jumps[name],
                    f"{run.seconds[-1]:.2f}",
                    f"{run.score:.4g}",
                    f"{reached:,}" if reached is not None else "not reached",
                    result.task.show_outcome(run.outcome),
                ]
            )
    return rows


def stretch_rows(result: TaskResult) -> list[list[str]]:
    """One row for each optimizer, under STRETCH_HEADS."""
    return [
        [
            s.optimizer,
            f"{s.steps:,}",
            f"{1e3 * s.backprop:.1f}",
            f"{1e3 * s.fit:.2f}",
            f"{1e3 * s.predict:.2f}",
            f"{s.ratio:.1f}×",
            f"{s.ratio_predict:.0f}×",
            show_error(s.error),
            f"{s.score_now:.4g}",
            f"{s.score_predicted:.4g}",
            f"{s.score_true:.4g}",
        ]
        for s in result.stretches
    ]


def show_error(error: float) -> str:
    """A relative error with as many digits as mean something."""
    return "<0.001" if error < 0.001 else f"{error:.3f}" if error < 0.1 else f"{error:.2f}"


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """Columns of plain text; the first `words` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["─" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def in_words(result: TaskResult) -> str:
    """The two tables of a task."""
    heads = [*RUN_HEADS, result.task.outcome_label]
    return "\n".join(
        [
            f"\n{result.task.title}: {result.task.score_label}",
            text_table(heads, run_rows(result), words=2),
            "\nAs many steps by operator and by backpropagation",
            text_table(STRETCH_HEADS, stretch_rows(result), words=1),
        ]
    )


def as_facts(
    results: Sequence[TaskResult], settings: dict[str, Any], machine: Sequence[str]
) -> dict[str, Any]:
    """Everything in the tables and curves."""
    return {
        "settings": settings,
        "machine": list(machine),
        "tasks": {
            result.task.name: {
                race.optimizer: {
                    "plain": _run(race.plain),
                    "koopman": _run(race.koopman),
                    "history": race.history.to_dict(),
                    "config": race.config.to_dict(),
                    "stretch": _stretch(stretch),
                }
                for race, stretch in zip(result.races, result.stretches, strict=True)
            }
            for result in results
        },
    }


def _run(run: Run) -> dict[str, Any]:
    names = ("steps", "scores", "seconds", "gradients", "probes", "outcome")
    return {name: getattr(run, name) for name in names}


def _stretch(stretch: StretchResult) -> dict[str, Any]:
    names = ["first", "watched", "steps", "backprop", "record", "fit", "predict", "ratio"]
    names += ["ratio_predict", "error", "score_now", "score_predicted", "score_true"]
    return {name: getattr(stretch, name) for name in names}
