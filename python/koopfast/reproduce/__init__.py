# SPDX-License-Identifier: BSD-3-Clause
"""``koopfast reproduce``: the experiments of Dogra & Redman (NeurIPS 2020), again.

Only :func:`run` imports what the extra ``demo`` brings.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from time import perf_counter
from typing import Any

from koopfast._command import check_folder, check_packages, check_threads
from koopfast.commands import add_output_arguments, show
from koopfast.errors import ConfigError, KoopfastError

__all__ = ["add_arguments", "run"]

_NONE_UNSEEN = "*Of the networks of `--quick` there is none that no choice was made on.*"
_EXPERIMENTS = {"de-solver": "solver", "mnist": "digits"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "experiment", choices=list(_EXPERIMENTS), metavar="experiment",
        help="de-solver (differential-equation solver) or mnist (digits)",
    )  # fmt: skip
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="5 networks an optimizer, or 5 seeds (the default)"
    )
    size.add_argument("--full", action="store_true", help="25 networks, or 10 seeds")
    size.add_argument("--networks", type=int, metavar="N", help="so many networks, or seeds")
    parser.add_argument(
        "--out", type=Path, default=Path("out/reproduce"), metavar="DIR",
        help="folder for results, figures and what a killed run goes on from "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--doc", type=Path, metavar="FILE",
        help="Markdown file whose tables are written anew (default: reproduction.md in the folder)",
    )  # fmt: skip
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder with the four MNIST files, as demo's"
    )
    parser.add_argument(
        "--workers", type=int, default=min(2, os.cpu_count() or 1),
        help="processes that train solver networks (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--refit", action="store_true", help="keep the trainings, fit and measure again"
    )
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Do one experiment, or what is left of it; write results, figures, page and tables.

    Raises:
        ConfigError: more workers than processors, or a folder that cannot be written.
        KoopfastError: a package of the extra ``demo`` is missing, MNIST cannot be read, or a file
            cannot be written.
    """
    check_packages("reproduce")
    check_threads(args.workers, "--workers")
    if args.networks is not None and args.networks < 1:
        raise ConfigError(f"--networks: expected at least 1, got {args.networks}")
    import torch

    torch.set_num_threads(1)  # networks this small: a second thread costs more than it brings
    name = _EXPERIMENTS[args.experiment]
    check_folder(args.out, (f"{name}.json", f"{name}.html"))
    empty = not any((args.out / kept).exists() for kept in ("runs", "fits", "digits"))
    begin = perf_counter()
    result = _experiment(args)
    took = _took(args, perf_counter() - begin, empty)
    try:
        publish(name, result, args, took)
    except OSError as error:
        raise KoopfastError(f"--out: cannot write: {error}") from error
    return 0


def _command(args: argparse.Namespace) -> str:
    size = f"--networks {args.networks}" if args.networks else "--full" if args.full else "--quick"
    return f"koopfast reproduce {args.experiment} {size}"


def _took(args: argparse.Namespace, seconds: float, empty: bool) -> str:
    """How long the command ran, and from what."""
    times = os.times()
    busy = times.user + times.system + times.children_user + times.children_system
    since = "from an empty folder" if empty else "from what was there"
    return (
        f"`{_command(args)}` took {seconds / 60:.1f} minutes {since}, with {busy / 60:.1f} minutes "
        "of processor time in all its processes"
    )


def _experiment(args: argparse.Namespace) -> dict[str, Any]:
    if args.experiment == "mnist":
        from koopfast.data import mnist
        from koopfast.reproduce import digits

        settings = digits.DigitsSettings(seeds=args.networks or (10 if args.full else 5))
        return digits.digits_experiment(mnist(args.data_dir), settings, args.out, refit=args.refit)
    from koopfast.reproduce import solver

    sizes = solver.SolverSettings()
    networks = args.networks or (25 if args.full else sizes.networks)
    sizes = dataclasses.replace(sizes, networks=networks, noisy=min(sizes.noisy, networks))
    return solver.solver_experiment(sizes, args.out, workers=args.workers, refit=args.refit)


def publish(name: str, result: dict[str, Any], args: argparse.Namespace, took: str) -> None:
    """Write JSON, figures and page into the folder and the tables into the document; ``took`` is
    a sentence on the time.

    Raises:
        OSError: a file cannot be written.
    """
    from koopfast import report
    from koopfast._files import write_json
    from koopfast.reproduce import document, figures, page, tables

    machine = report.machine()
    command = _command(args)
    facts = [*machine, command]
    write_json(args.out / f"{name}.json", {**result, "machine": machine, "command": command})
    made = getattr(tables, f"{name}_tables")(result)
    with report.drawing_style():
        drawn = getattr(figures, f"{name}_figures")(result)
        for stem, (figure, _) in drawn.items():
            figures.save_figure(figure, args.out / stem)
        the_page = page.reproduction_page(name, made, drawn, facts)
    where = report.save_page(the_page, args.out / f"{name}.html")
    parts = {key: document.markdown(table) for key, table in made.items()}
    parts[f"{name}-command"] = f"`{command}` on {', '.join(machine)}."
    parts["complexity"] = document.markdown(tables.complexity_table())
    if name == "solver":
        parts.setdefault("solver-errors-unseen", _NONE_UNSEEN)
    if "from an empty folder" in took:  # the time of a whole run stays until there is another one
        parts[f"{name}-time"] = f"{took}."
    doc = document.update(args.doc or args.out / "reproduction.md", parts)
    text = [parts[f"{name}-verdict"], "", f"numbers  {args.out / name}.json", f"page     {where}"]
    text += [f"tables   {doc}", took]
    show(args, {**result, "machine": machine, "command": command}, text)
