# SPDX-License-Identifier: BSD-3-Clause
"""The acceleration study: python bench/acceleration/study.py [--quick] [--seeds N] [--share X] ...

Trains every row of tasks.py by every method of methods.py at the default learning rate and at the
one that is best for the optimizer alone, from the same seeds in turns, and writes curves, tables
and a page to the folder. Cells that lie in the folder already are not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from koopfast._files import write_whole

# The folder of this file is where its neighbours lie, however it is started.
sys.path.insert(0, str(Path(__file__).parent))

from trace import Trace, race

from tables import Cell, markdown
from tasks import Experiment, experiments

_SWEEP_SEED = 1000  # none of those that are compared
_QUICK_ROWS = ("solver, Adam", "MLP minibatch, SGD")


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        rows: experiments.
        seeds: how many, from 0 on.
        share: of each row's budget of gradient evaluations.
        least: evaluations at least, whatever the share.
        tuned: whether to train at the best rate too.
        folder: of the cells.
    """

    rows: Sequence[Experiment]
    seeds: int
    share: float
    least: int
    tuned: bool
    folder: Path

    def steps(self, row: Experiment) -> int:
        return max(self.least, round(row.steps * self.share))


def swept(plan: Plan, row: Experiment) -> dict[float, float]:
    """The loss at which the optimizer alone ends, for each rate; of a diverging one, infinity."""
    path = plan.folder / f"{_slug(row.name)}-sweep-{plan.steps(row)}.json"
    if path.exists():
        return {float(rate): float(loss) for rate, loss in json.loads(path.read_text()).items()}
    losses = {}
    for rate in row.rates:
        plain = race(row, rate, _SWEEP_SEED, plan.steps(row), ["plain"])["plain"]
        end = plain.end
        losses[rate] = end if end == end else float("inf")
        _say(f"{row.name}: rate {rate:g} alone ends at {end:.4g}")
    _save(path, losses)
    return losses


def cells(plan: Plan) -> Iterator[Cell]:
    """Train what is not in the folder yet, row after row."""
    for row in plan.rows:
        rates = {"default": row.default_rate}
        if plan.tuned:
            losses = swept(plan, row)
            rates["tuned"] = min(losses, key=lambda rate: losses[rate])
        for seed in range(plan.seeds):
            traces: dict[float, dict[str, Trace]] = {}
            for kind, rate in rates.items():
                if rate not in traces:
                    traces[rate] = _cell(plan, row, rate, seed)
                yield Cell(row, kind, rate, seed, plan.steps(row), traces[rate])


def _cell(plan: Plan, row: Experiment, rate: float, seed: int) -> dict[str, Trace]:
    path = plan.folder / f"{_slug(row.name)}-{rate:g}-{seed}-{plan.steps(row)}.json"
    if path.exists():
        return {name: Trace(**trace) for name, trace in json.loads(path.read_text()).items()}
    traces = race(row, rate, seed, plan.steps(row))
    _save(path, {name: trace.to_dict() for name, trace in traces.items()})
    evaluations = [t.first_below(traces["plain"].end) for t in traces.values()]
    reached = statistics.median(e[0] for e in evaluations if e is not None)
    _say(f"{row.name}: rate {rate:g}, seed {seed}, the median method needs {reached:.0f}")
    return traces


def _save(path: Path, data: Any) -> None:
    write_whole(path, f"{json.dumps(data)}\n".encode())


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-").lower()


def _say(text: str) -> None:
    print(text, flush=True)


def _plan(arguments: argparse.Namespace) -> Plan:
    rows = experiments()
    names = [name for name in rows if any(part in name for part in arguments.only)]
    if arguments.quick:
        names = [name for name in _QUICK_ROWS if name in names]
    return Plan(
        rows=[rows[name] for name in names],
        seeds=1 if arguments.quick else arguments.seeds,
        share=0.0 if arguments.quick else arguments.share,
        least=60 if arguments.quick else 100,
        tuned=not arguments.quick,
        folder=Path(arguments.folder) / ("quick" if arguments.quick else "cells"),
    )


def _command(arguments: argparse.Namespace) -> str:
    """What makes the same tables."""
    if arguments.quick:
        return "python bench/acceleration/study.py --quick"
    options = f"--seeds {arguments.seeds} --share {arguments.share:g}"
    if any(arguments.only):
        options += " --only " + " ".join(f"'{part}'" for part in arguments.only)
    return f'make acceleration ACCELERATION_ARGS="{options}"'


def main() -> None:
    parser = argparse.ArgumentParser(description="Does training reach the loss sooner?")
    parser.add_argument("--quick", action="store_true", help="tiny budgets, to see that all runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of each row's budget")
    parser.add_argument(
        "--only", nargs="*", default=[""], help="rows with one of these in the name"
    )
    parser.add_argument("--folder", default="out/acceleration")
    parser.add_argument("--document", help="write the tables to this file too, as Markdown")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the networks are small, and the methods must not disturb each other
    done = list(cells(_plan(arguments)))
    command = _command(arguments)
    text = markdown(done, command)
    folder = Path(arguments.folder) / ("quick" if arguments.quick else "")
    write_whole(folder / "acceleration.md", text.encode())
    if arguments.document:
        write_whole(arguments.document, text.encode())
    from figures import save_figures

    page = save_figures(done, command, folder)
    _say(f"{len(done)} cells; tables in {folder / 'acceleration.md'}, curves in {page}")


if __name__ == "__main__":
    main()
