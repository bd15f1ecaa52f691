# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints of a whole run: one file, written whole, loaded whole."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from koopfast._files import written_whole
from koopfast._optimizer_checkpoint import KEY
from koopfast._random_state import check_random_state, random_state, set_random_state
from koopfast._savepoint import restore_all
from koopfast.errors import CheckpointError, ConfigError
from koopfast.trainer import KoopmanTrainer

__all__ = ["Stateful", "load_checkpoint", "save_checkpoint"]

_FORMAT = 1


def save_checkpoint(path: str | os.PathLike[str], trainer: KoopmanTrainer, **others: Any) -> Path:
    """Write model, optimizer, trainer, random streams and ``others`` to ``path``.

    The file is written beside, synced to the disk, and put in place in one step: whatever happens,
    ``path`` is the old file or the new one. ``torch.load(weights_only=True)`` reads it.

    Args:
        path: where to.
        trainer: the trainer, with its model and optimizer.
        **others: what else to save, each with a ``state_dict()``: ``scheduler=scheduler``,
            ``scaler=scaler``.

    Returns:
        The path written.

    Raises:
        ConfigError: ``path`` is no file name, one of ``others`` has no ``state_dict``, or the mean
            of the weights is in the model (``averaged``), from which nothing can be resumed.
        OSError: it cannot be written; what was there is still there.

    Example:
        >>> import tempfile
        >>> model = torch.nn.Linear(2, 1)
        >>> trainer = KoopmanTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_checkpoint(save_checkpoint(f"{folder}/run.pt", trainer), trainer)
    """
    parts = _parts(trainer, others)
    trainer._refuse_reentry()
    content = {
        "format": _FORMAT,
        "random": random_state(),
        **{name: part.state_dict() for name, part in parts.items()},
    }
    with written_whole(path) as file:
        torch.save(content, file)
    return Path(path)


def load_checkpoint(path: str | os.PathLike[str], trainer: KoopmanTrainer, **others: Any) -> None:
    """Resume from :func:`save_checkpoint`: all of it, or nothing and an error.

    Args:
        path: the file; tensors come to the devices that the parameters are on.
        trainer: made as it was for saving, with its model and optimizer.
        **others: the same names as were saved, each with ``state_dict`` and ``load_state_dict``.

    Raises:
        ConfigError: one of ``others`` cannot load a state.
        CheckpointError: the file is damaged or belongs to another run; the message lists the
            differences. Everything is left as it was.
        OSError: the file cannot be read.
    """
    parts = _parts(trainer, others)
    with Path(path).open("rb") as file:
        content = _read(file)
    wanted, found = {"format", "random", *parts}, set(content)
    if wanted != found:
        raise CheckpointError(
            f"checkpoint {str(path)!r}: missing {sorted(wanted - found)}, unknown "
            f"{sorted(found - wanted)}; pass to load_checkpoint what was passed to save_checkpoint"
        )
    if content["format"] != _FORMAT:
        raise CheckpointError(
            f"checkpoint {str(path)!r}: expected format {_FORMAT}, got {content['format']!r}, "
            "which another version of koopfast wrote"
        )
    check_random_state(content["random"])
    before: list[_Before] = []
    way_back, streams = _WayBack(trainer), random_state()
    try:
        for name, part in parts.items():
            before.append(_Before(part))
            _load(name, part, content[name])
        set_random_state(content["random"])
    except BaseException:
        restore_all(*before, way_back)
        set_random_state(streams)
        raise


class Stateful:
    """A trainer for ``torch.distributed.checkpoint``, which loads into tensors that are there.

    ``dcp.save({"model": …, "koopman": Stateful(trainer)}, …)``, and the same for ``dcp.load``. It
    is what ``torch.distributed.checkpoint.stateful.Stateful`` asks for.

    A new trainer has no snapshots for DCP to fill, so the trainer's state is one value, not a tree
    of tensors. Only of sharded parameters the window is saved as distributed tensors, one a
    parameter, each rank its own part: also another number of processes, and another sharding, goes
    on in the middle of it. The way back from a jump that is not judged yet is not saved then, and
    the mean of the weights begins anew.

    Args:
        trainer: whose state to save or load.
    """

    def __init__(self, trainer: KoopmanTrainer) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """The trainer's state as bytes that ``torch.load(weights_only=True)`` reads."""
        state = self._trainer.state_dict()
        window = self._trainer.spread_window()
        if window is not None:
            saved = state["snapshots"]
            # What differs from rank to rank is left out: DCP takes it from any of them.
            kept = {key: saved[key] for key in saved if key not in ("snapshots", "sum", "lengths")}
            kept |= {"count": len(saved["snapshots"]), "summed": saved["sum"] is not None}
            state |= {"snapshots": kept, "undo": None, "layout": ""}
            state |= {"noted": None, "increment": None}
            if state["average"] is not None:
                state["average"] = {**state["average"], "mean": None}
        file = io.BytesIO()
        torch.save(state, file)
        return {KEY: file.getvalue(), **(window or {})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume, after model and optimizer have loaded theirs.

        Raises:
            CheckpointError: as :meth:`KoopmanTrainer.load_state_dict`.
        """
        saved = state_dict.get(KEY)
        if not isinstance(saved, bytes):
            raise CheckpointError(
                f"state: expected bytes under {KEY!r}, got {type(saved).__name__}; save "
                "Stateful(trainer), not the trainer itself"
            )
        state = _read(io.BytesIO(saved))
        if self._trainer.spread_window() is not None:
            state = self._trainer.with_own_window(state)
        self._trainer.load_state_dict(state)


class _Before:
    """What a part was before loading, for the way back."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self._state = copy.deepcopy(part.state_dict())

    def restore(self) -> None:
        self._part.load_state_dict(self._state)


class _WayBack:
    """What a trainer could still undo, and its last fit: loading any state forgets them."""

    def __init__(self, trainer: KoopmanTrainer) -> None:
        self._trainer = trainer
        self._points, self._operator = (trainer._rollback, trainer._shorter), trainer.operator

    def restore(self) -> None:
        self._trainer._rollback, self._trainer._shorter = self._points
        self._trainer.operator = self._operator


def _parts(trainer: KoopmanTrainer, others: Mapping[str, Any]) -> dict[str, Any]:
    """Everything with a state, in the order of loading: the trainer after model and optimizer."""
    if not isinstance(trainer, KoopmanTrainer):
        raise ConfigError(f"trainer: expected a KoopmanTrainer, got {type(trainer).__name__}")
    parts: dict[str, Any] = {"model": trainer.model, "optimizer": trainer.optimizer, KEY: trainer}
    for name, part in others.items():
        if name in ("format", "random", *parts):
            raise ConfigError(f"{name}: this name is taken by a part that is saved anyway")
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise ConfigError(
                f"{name}: expected an object with state_dict() and load_state_dict(), got "
                f"{type(part).__name__}"
            )
        parts[name] = part
    return parts


def _read(file: IO[bytes]) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint: it cannot be read ({type(error).__name__}); it is damaged, or not one of "
            "save_checkpoint's"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint: expected a dict, got {type(content).__name__}")
    return content


def _load(name: str, part: Any, state: Any) -> None:
    try:
        part.load_state_dict(state)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint[{name!r}]: {error}") from error
