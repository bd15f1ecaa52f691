# SPDX-License-Identifier: BSD-3-Clause
"""The demo's report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from koopfast.demo import figures
from koopfast.demo.results import RUN_HEADS, STRETCH_HEADS, TaskResult, run_rows, stretch_rows
from koopfast.report import (
    Item,
    Page,
    Prose,
    Section,
    Table,
    Tiles,
    draw_eigenvalues,
    jump_table,
    settings_table,
)

__all__ = ["demo_page"]

_GOOD = 0.5  # error of a stretch; standing still gives 1

_COUNTS = (
    "Gradients and probes are counted apart: a gradient is a forward and a backward pass of a "
    "training step, a probe a forward pass to judge a prediction. Predicted: optimizer steps that "
    "kept jumps leapt over. Seconds are those of training, "
    "jumps and probes included; the runs took turns in one process. Steps to plain's: optimizer "
    "steps until the run was first at or below the plain run's final loss."
)
_AVERAGED = (
    "Under minibatch noise a loss goes up and down by more than some of these differences, and "
    "these are single runs. Runs with koopfast are shown at the mean of the weights of late where "
    "that has the lower loss, as trainer.averaged() gives it: most of the gain is that."
)
_STRETCH = (
    "The steps after that are predicted by the operator and done by backpropagation, from the "
    "same weights and in turns; times are medians. Faster: backpropagation's time over that of "
    "fit and prediction together; “faster, fitted”: over that of predicting and writing the "
    "weights alone. Error: distance of the predicted weights from the true ones, relative to the "
    "distance truly travelled; standing still would give 1."
)


def demo_page(
    results: Sequence[TaskResult],
    settings: Mapping[str, Any],
    machine: Sequence[str],
    seconds: float,
) -> Page:
    """Headline figures, then for each task its runs, its stretch and its jumps."""
    optimizers = [race.optimizer for race in results[0].races]
    return Page(
        title="Training with koopfast and without",
        lede=(
            f"{' and '.join(r.task.title for r in results)}: each trained with "
            f"{', '.join(optimizers[:-1])} and {optimizers[-1]}, twice from the same initial "
            f"weights on the same batches. "
            f"One run is the plain optimizer; the other watches its own weights, predicts them "
            f"ahead with a linear operator, and keeps a prediction only if the loss agrees."
        ),
        facts=[*machine, f"{seconds:.0f} s in all"],
        sections=[
            Section("At a glance", _glance(results)),
            *(Section(result.task.title, _task(result)) for result in results),
            Section("Jump log", _jumps(results)),
            Section("Settings", _settings(results, settings)),
        ],
    )


def _glance(results: Sequence[TaskResult]) -> list[Item]:
    races = [race for result in results for race in result.races]
    stretches = [stretch for result in results for stretch in result.stretches]
    kept = sum(race.history.counters.jumps_accepted for race in races)
    tried = kept + sum(race.history.counters.jumps_refused for race in races)
    tiles = [
        (
            f"{min(s.ratio for s in stretches):.0f} to {max(s.ratio for s in stretches):.0f}×",
            "operator faster than backpropagation of as many steps, fit included",
        ),
        (
            f"{sum(s.error < _GOOD for s in stretches)} of {len(stretches)}",
            f"stretches predicted clearly better than standing still (error below {_GOOD:g})",
        ),
        (f"{kept} of {tried}", "jumps kept by the guard"),
    ]
    for result in results:
        lower = sum(race.koopman.score < race.plain.score for race in result.races)
        label = f"optimizers end at a lower loss with koopfast: {result.task.title}"
        tiles.append((f"{lower} of {len(result.races)}", label))
    return [Tiles(tiles), figures.draw_times(results)]


def _task(result: TaskResult) -> list[Item]:
    task = result.task
    averaged = any(race.history.counters.lead_of_mean > 0 for race in result.races)
    runs = Table(
        [*RUN_HEADS, task.outcome_label],
        run_rows(result),
        "Both runs of each optimizer",
        words=(0, 1),
        notes=[_COUNTS, _AVERAGED] if averaged else [_COUNTS],
    )
    first = result.stretches[0]
    stretch = Table(
        STRETCH_HEADS,
        stretch_rows(result),
        f"{first.steps:,} steps, predicted and done",
        notes=[
            f"The plain run is watched for {first.watched:,} steps after {first.first:,}. "
            + _STRETCH,
        ],
    )
    items: list[Item] = [Prose(task.description), figures.draw_curves(result)]
    if task.name == "oscillator":
        items.append(figures.draw_solutions(result))
    items += [runs, stretch, figures.draw_weights(result)]
    operators = [(s.optimizer, s.operator) for s in result.stretches]
    items.append(draw_eigenvalues(operators, task.name))
    return items


def _jumps(results: Sequence[TaskResult]) -> list[Item]:
    items: list[Item] = []
    for result in results:
        for race in result.races:
            c = race.history.counters
            caption = (
                f"{result.task.title}, {race.optimizer}: {c.jumps_accepted} kept, "
                f"{c.jumps_refused} refused, {c.predicted_steps:,} steps predicted; "
                f"{c.seconds_record:.3f} s recording, {c.seconds_fit:.3f} s fitting, "
                f"{c.seconds_predict:.3f} s predicting, {c.seconds_probe:.3f} s probing"
            )
            items.append(jump_table(race.history.jumps, caption, folded=True))
    return items


def _settings(results: Sequence[TaskResult], settings: Mapping[str, Any]) -> list[Item]:
    rows = [[name, str(value)] for name, value in settings.items()]
    items: list[Item] = [Table(["setting", "value"], rows, "The demo", words=(0, 1))]
    for result in results:
        caption = f"Trainer of the {result.task.title.lower()}"
        table = settings_table(result.races[0].config)
        items.append(Table(table.columns, table.rows, caption, words=table.words, folded=True))
    return items
