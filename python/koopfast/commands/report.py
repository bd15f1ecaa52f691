# SPDX-License-Identifier: BSD-3-Clause
"""``koopfast report RUN``: the page of a run that was saved as data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from koopfast.commands import add_output_arguments, inspect, show
from koopfast.errors import CheckpointError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "run_file", metavar="RUN", type=Path,
        help="what trainer.report('run.json') wrote, or a checkpoint with a trainer's state in it",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="the page to write (default: RUN with the suffix .html)",
    )  # fmt: skip
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Write the page, print the counts and where it is; with ``--json`` print the data alone."""
    from koopfast.config import KoopmanConfig
    from koopfast.history import History

    path: Path = options.run_file
    saved = _read(path)
    history = History.from_dict(saved["history"])
    config = KoopmanConfig.from_dict(saved["config"])
    if options.json:
        show(options, {"config": saved["config"], "history": history.to_dict()}, [])
        return 0
    from koopfast.report import write_trainer_report

    page = write_trainer_report(history, config, options.out or path.with_suffix(".html"))
    show(options, {}, [history.summary(), "", str(page)])
    return 0


def _read(path: Path) -> Mapping[str, Any]:
    """``config`` and ``history`` of a run."""
    if path.suffix != ".json":
        return next(iter(inspect.trainer_states(inspect.load(path)).values()))
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON, got something else ({error})") from error
    if not isinstance(data, dict) or not {"config", "history"} <= set(data):
        raise CheckpointError(
            f"{path}: expected what trainer.report('run.json') wrote, with 'config' and 'history'"
        )
    return data
