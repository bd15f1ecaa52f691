# SPDX-License-Identifier: BSD-3-Clause
"""The acceleration study: python bench/acceleration/study.py [--quick] [--seeds N] [--share X] ...

Trains every row of tasks.py by every method at the default learning rate and at the one that is
best for the optimizer alone, from the same seeds, and writes curves, tables and a page to the
folder. A cell (row, rate, seed) is two races: one of the peers, one of KoopmanTrainer with its
controls, the optimizer alone in both. Races that lie in the folder already are not run again unless
another program ran them: so a change of the trainer does not train the peers anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import koopfast
from koopfast._files import write_whole

# The folder of this file is where its neighbours lie, however it is started.
sys.path.insert(0, str(Path(__file__).parent))

from trace import Trace, race

from methods import PEERS, Method, Plain
from ours import CONTROLS, OURS, Control
from tables import Cell, markdown
from tasks import Experiment, experiments

_SWEEP_SEED = 1000  # none of those that are compared
_QUICK_ROWS = ("solver, Adam", "MLP minibatch, SGD")
_HERE, _LIBRARY = Path(__file__).parent, Path(koopfast.__file__).parent
# What both races depend on, and what only the second one does.
_BENCH = ("methods.py", "tasks.py", "trace.py")
_TRAINER = ("*.py", "data/*.py")


@dataclass(frozen=True)
class Part:
    """One of the races that make a cell.

    Attributes:
        name: of its files.
        methods, controls: who runs.
        code: fingerprint of the program.
    """

    name: str
    methods: Mapping[str, type[Method]]
    controls: Mapping[str, type[Control]]
    code: str


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        rows: experiments.
        seeds: how many, from 0 on.
        share: of each row's budget of gradient evaluations.
        least: evaluations at least, whatever the share.
        tuned: whether to train at the best rate too.
        folder: of the races.
        any_code: take races that another program ran for what this one would give.
        train: False takes what is in the folder and trains nothing.
    """

    rows: Sequence[Experiment]
    seeds: int
    share: float
    least: int
    tuned: bool
    folder: Path
    any_code: bool = False
    train: bool = True

    def steps(self, row: Experiment) -> int:
        return max(self.least, round(row.steps * self.share))


def parts() -> dict[str, Part]:
    """The races of a cell, by name."""
    bench = [_HERE / name for name in _BENCH] + [_LIBRARY / "demo" / "tasks.py"]
    trainer = [_HERE / "ours.py", *(path for glob in _TRAINER for path in _LIBRARY.glob(glob))]
    both = (
        Part("peers", PEERS, {}, _fingerprint(bench)),
        Part("koopman", OURS, CONTROLS, _fingerprint(bench + trainer)),
    )
    return {part.name: part for part in both}


def _fingerprint(paths: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=4)
    for path in sorted(paths):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def swept(plan: Plan, row: Experiment) -> dict[float, float]:
    """The loss at which the optimizer alone ends, for each rate; of a diverging one, infinity."""
    path = plan.folder / f"{_slug(row.name)}-sweep-{plan.steps(row)}.json"
    if path.exists():
        return {float(rate): float(loss) for rate, loss in json.loads(path.read_text()).items()}
    losses: dict[float, float] = {}
    for rate in row.rates if plan.train else ():
        alone = race(row, rate, _SWEEP_SEED, plan.steps(row), {"plain": Plain}, {})["plain"]
        losses[rate] = alone.end if alone.end == alone.end else float("inf")
        _say(f"{row.name}: rate {rate:g} alone ends at {alone.end:.4g}")
    if losses:
        _save(path, losses)
    return losses


def rates(plan: Plan, row: Experiment) -> dict[str, float]:
    """The learning rates of a row, by kind."""
    losses = swept(plan, row) if plan.tuned else {}
    tuned = {"tuned": min(losses, key=lambda rate: losses[rate])} if losses else {}
    return {"default": row.default_rate, **tuned}


def cells(plan: Plan, wanted: Sequence[Part]) -> Iterator[Cell]:
    """Train what is not in the folder yet, seed after seed, and yield the cells.

    Where nothing is trained, a cell may lack the peers' race.
    """
    needed = {part.name for part in wanted} - (set() if plan.train else {"peers"})
    for seed in range(plan.seeds):
        for row in plan.rows:
            done: dict[float, dict[str, tuple[str, dict[str, Trace]]]] = {}
            for kind, rate in rates(plan, row).items():
                if rate not in done:
                    found = {part.name: _raced(plan, part, row, rate, seed) for part in wanted}
                    done[rate] = {name: race for name, race in found.items() if race is not None}
                if needed <= set(done[rate]):
                    codes, races = zip(*done[rate].values(), strict=True)
                    yield Cell(row, kind, rate, seed, plan.steps(row), races, codes)


def _raced(
    plan: Plan, part: Part, row: Experiment, rate: float, seed: int
) -> tuple[str, dict[str, Trace]] | None:
    """The program that ran a race, and its traces by method."""
    steps = plan.steps(row)
    path = plan.folder / f"{_slug(row.name)}-{rate:g}-{seed}-{steps}-{part.name}.json"
    if path.exists():
        data = json.loads(path.read_text())
        if plan.any_code or data["code"] == part.code:
            return data["code"], {name: Trace(**t) for name, t in data["traces"].items()}
    if not plan.train:
        return None
    traces = race(row, rate, seed, steps, part.methods, part.controls)
    _save(path, {"code": part.code, "traces": {name: t.to_dict() for name, t in traces.items()}})
    target = traces["plain"].end
    reached = {
        name: trace.first_below(target, jitters=not row.full_batch)
        for name, trace in traces.items()
    }
    told = ", ".join(f"{name} {at[0]:.0f}" for name, at in reached.items() if at is not None)
    _say(f"{row.name}: rate {rate:g}, seed {seed}, {part.name}: evaluations to the target: {told}")
    return part.code, traces


def _save(path: Path, data: Any) -> None:
    write_whole(path, f"{json.dumps(data)}\n".encode())


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-").lower()


def _say(text: str) -> None:
    print(text, flush=True)


def _plan(arguments: argparse.Namespace) -> Plan:
    rows = experiments()
    # In the order asked for, so that what matters most is trained first.
    asked = (name for part in arguments.only for name in rows if part in name)
    names = list(dict.fromkeys(asked))
    if arguments.quick:
        names = [name for name in _QUICK_ROWS if name in names]
    return Plan(
        rows=[rows[name] for name in names],
        seeds=1 if arguments.quick else arguments.seeds,
        share=0.0 if arguments.quick else arguments.share,
        least=60 if arguments.quick else 100,
        tuned=not arguments.quick,
        folder=Path(arguments.folder) / ("quick" if arguments.quick else "cells"),
        any_code=arguments.any_code,
        train=not arguments.no_training,
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
        "--only", nargs="*", default=[""], help="rows with one of these in the name, in this order"
    )
    parser.add_argument("--folder", default="out/acceleration")
    parser.add_argument("--document", help="write the tables to this file too, as Markdown")
    parser.add_argument("--part", choices=list(parts()), help="train this part only, no tables")
    parser.add_argument("--any-code", action="store_true", help="use races of other programs too")
    parser.add_argument("--no-training", action="store_true", help="tables of what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the networks are small, and the methods must not disturb each other
    plan = _plan(arguments)
    if arguments.part is not None:
        count = sum(1 for _ in cells(plan, [parts()[arguments.part]]))
        _say(f"{count} cells have their {arguments.part} part; run again without --part for tables")
        return
    done = list(cells(plan, list(parts().values())))
    if not done:
        _say(f"no cell of which all is there in {plan.folder}; run without --no-training")
        return
    command = _command(arguments)
    text = markdown(done, command, parts()["koopman"].code)
    folder = Path(arguments.folder) / ("quick" if arguments.quick else "")
    write_whole(folder / "acceleration.md", text.encode())
    if arguments.document:
        write_whole(arguments.document, text.encode())
    from figures import save_figures

    page = save_figures(done, command, folder)
    _say(f"{len(done)} cells; tables in {folder / 'acceleration.md'}, curves in {page}")


if __name__ == "__main__":
    main()
