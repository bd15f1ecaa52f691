# SPDX-License-Identifier: BSD-3-Clause
"""``koopfast demo``: two networks trained with and without Koopman jumps, and a report.

Only :func:`run` imports what the extra ``demo`` brings, so that ``koopfast demo --help`` works
without it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from koopfast._command import check_folder, check_packages, check_threads
from koopfast._files import write_json
from koopfast.commands import add_output_arguments, add_seed, show
from koopfast.errors import KoopfastError

if TYPE_CHECKING:
    from koopfast.data import Mnist
    from koopfast.demo.results import TaskResult
    from koopfast.demo.tasks import Task

__all__ = ["add_arguments", "run"]

_TASKS = ("oscillator", "mnist")
_NUMBERS, _PICTURE, _PAGE = "results.json", "report.png", "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the demo."""
    parser.add_argument(
        "--out", type=Path, default=Path("out/demo"), metavar="DIR",
        help="folder for report.html, report.png and results.json (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR",
        help="folder with the four MNIST files in IDX format, plain or .gz (default: "
        "KOOPFAST_DATA, else a cache that is filled once with pip)",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", nargs="+", choices=_TASKS, default=list(_TASKS), metavar="TASK",
        help=f"which of {', '.join(_TASKS)} (default: both)",
    )  # fmt: skip
    add_seed(parser, "weights and batches")
    # Two cores, networks this small: a second thread costs more than it brings.
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch and the operator (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few hundred steps each: does it run at all?"
    )
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train, measure, print the tables and write the report; returns the exit code.

    Raises:
        ConfigError: more threads than processors, or the folder of the report cannot be written.
        KoopfastError: a package of the extra ``demo`` is missing, MNIST cannot be read, or a file
            cannot be written at the end (the results are printed by then).
    """
    check_packages("the demo")
    import torch

    from koopfast import report
    from koopfast.demo import figures, page, race, results, stretch

    check_threads(args.threads)
    torch.set_num_threads(args.threads)
    begin = perf_counter()
    out: Path = args.out
    check_folder(out, (_NUMBERS, _PICTURE, _PAGE))
    in_full = not (args.json or args.quiet)
    done: list[TaskResult] = []
    for task in _tasks(args):
        if in_full:
            print(f"{task.title}: {task.steps:,} steps, twice with each optimizer")
        races = [race.race(task, name, seed=args.seed) for name in race.OPTIMIZERS]
        repeats = 1 if args.quick else 7
        stretches = [
            stretch.measure_stretch(
                task, r.optimizer, r.middle, r.config.replace(**task.stretch), repeats=repeats
            )
            for r in races
        ]
        done.append(results.TaskResult(task, races, stretches))

    machine = report.machine()
    settings = {
        "seed": args.seed,
        "threads": args.threads,
        "quick": args.quick,
        "optimizers": "Adam, Adadelta and Adagrad with torch's own defaults",
        **{f"steps, {r.task.name}": r.task.steps for r in done},
    }
    seconds = perf_counter() - begin
    if in_full:
        print("\n".join([*map(results.in_words, done), f"\n{seconds:.0f} s in all"]), flush=True)
    facts = results.as_facts(done, settings, machine)
    if args.json:
        show(args, facts, [])

    try:
        write_json(out / _NUMBERS, facts)
        with report.drawing_style():
            figures.save_picture(done, out / _PICTURE)
            the_page = page.demo_page(done, settings, machine, seconds)
        report.save_page(the_page, out / _PAGE)
    except OSError as error:
        raise KoopfastError(
            f"--out: cannot write to {str(out)!r}: {error}; the results are printed above"
        ) from error
    if args.quiet:
        print(out / _PAGE)
    elif in_full:
        print(f"picture  {out / _PICTURE}\nnumbers  {out / _NUMBERS}\nreport   {out / _PAGE}")
    return 0


def _tasks(args: argparse.Namespace) -> Iterable[Task]:
    from koopfast.data import mnist
    from koopfast.demo.tasks import DigitsTask, OscillatorTask

    # The digits first: whatever is wrong with them should not wait for the other task to end.
    digits = mnist(args.data_dir) if "mnist" in args.tasks else None
    if "oscillator" in args.tasks:
        yield OscillatorTask(steps=150) if args.quick else OscillatorTask()
    if digits is not None:
        yield _quick_digits(digits, args.seed) if args.quick else DigitsTask(digits, seed=args.seed)


def _quick_digits(digits: Mnist, seed: int) -> Task:
    from koopfast.demo.tasks import DigitsTask

    few = {"average": True, "stride": 4, "window": 10}
    return DigitsTask(
        digits, steps=100, width=16, batch=10, probe=50, scored=50, seed=seed, stretch=few
    )
