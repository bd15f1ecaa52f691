# SPDX-License-Identifier: BSD-3-Clause
"""``koopfast inspect CHECKPOINT``: what a saved trainer has done and where it stands."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from koopfast.commands import add_output_arguments, lines, show
from koopfast.errors import CheckpointError

__all__ = ["add_arguments", "load", "run", "trainer_states"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "checkpoint", type=Path,
        help="file of torch.save with a trainer's state_dict() in it, at any depth",
    )  # fmt: skip
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print configuration, parameters, counts and the place in the window."""
    found = [
        (where, _facts(state)) for where, state in trainer_states(load(options.checkpoint)).items()
    ]
    text: list[str] = []
    for where, facts in found:
        rows = [("trainer at", where or "the top"), *facts.items()]
        text += [*lines([(name.replace("_", " "), value) for name, value in rows]), ""]
    show(options, dict(found), text[:-1])
    return 0


def load(path: Path) -> Any:
    """What ``torch.save`` wrote to ``path``; only tensors and primitives are read.

    Raises:
        CheckpointError: there is no such file, or it is something else.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        what = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: expected a file of torch.save with tensors and primitives, got something "
            f"else ({what})"
        ) from error


def trainer_states(data: Any) -> dict[str, Mapping[str, Any]]:
    """Place -> state, for every trainer's ``state_dict()`` within ``data``.

    Raises:
        CheckpointError: there is none.
    """
    found = dict(_walk(data, ""))
    if not found:
        raise CheckpointError(
            "checkpoint: expected a KoopmanTrainer's state_dict() somewhere in it, found none; "
            "save one with torch.save({'trainer': trainer.state_dict(), ...}, path)"
        )
    return found


def _walk(data: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(data, Mapping):
        return
    if {"config", "history", "snapshots", "parameters"} <= set(data):
        yield where, data
        return
    for key, value in data.items():
        yield from _walk(value, f"{where}[{key!r}]")


def _facts(state: Mapping[str, Any]) -> dict[str, Any]:
    from koopfast.config import KoopmanConfig
    from koopfast.history import History

    config = KoopmanConfig.from_dict(state["config"]).to_dict()
    counters = History.from_dict(state["history"]).counters
    usual = KoopmanConfig().to_dict()
    chosen = {name: value for name, value in config.items() if value != usual.get(name)}
    snapshots = state["snapshots"]
    shapes = [shape for _, shape, _ in state["parameters"]]
    return {
        "format": state["format"],
        "config": ", ".join(f"{k}={v!r}" for k, v in chosen.items()) or "the default",
        "parameters": len(shapes),
        "weights": sum(snapshots["lengths"]),
        "enabled": state["enabled"],
        "optimizer_steps": counters.optimizer_steps,
        "predicted_steps": counters.predicted_steps,
        "jumps_accepted": counters.jumps_accepted,
        "jumps_refused": counters.jumps_refused,
        "jumps_rolled_back": counters.jumps_rolled_back,
        "windows_split": counters.windows_split,
        "window": f"{len(snapshots['snapshots'])} of {snapshots['capacity']} snapshots recorded",
    }
