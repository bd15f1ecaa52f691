# SPDX-License-Identifier: BSD-3-Clause
"""Hugging Face transformers: a ``TrainerCallback``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from koopfast._files import written_whole
from koopfast.config import KoopmanConfig
from koopfast.errors import ConfigError, KoopmanWarning
from koopfast.integrations._attachment import Attachment
from koopfast.trainer import KoopmanTrainer

__all__ = ["TransformersKoopman"]

_FILE = "koopman.pt"


class TransformersKoopman(TrainerCallback):
    """Koopman training in a transformers ``Trainer``.

    The state lies as ``koopman.pt`` in each ``checkpoint-<step>`` folder. A resumed run looks for
    it in ``<output_dir>/checkpoint-<step>``, or in the folder given as ``resume_from``.

    Args:
        config: a :class:`~koopfast.KoopmanConfig`; None means the default one.
        loss: ``loss(model)`` returns the loss at the weights of the moment. None calls the model
            again with the arguments of its last training forward and takes ``.loss``.
        resume_from: folder of the checkpoint resumed from, where it is not in ``output_dir``.
        **overrides: fields of the configuration to replace.
    """

    def __init__(
        self,
        config: KoopmanConfig | None = None,
        *,
        loss: Callable[[nn.Module], Any] | None = None,
        resume_from: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        self._attachment = Attachment(config, overrides)
        self._loss = loss
        self._resume_from = resume_from
        self._forward: RemovableHandle | None = None
        self._last: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    @property
    def trainer(self) -> KoopmanTrainer:
        """The :class:`~koopfast.KoopmanTrainer`, once training has begun."""
        return self._attachment.trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self._finish()
        if state.global_step > 0:
            self._load(args, state)
        if self._loss is None:
            self._forward = model.register_forward_pre_hook(self._keep, with_kwargs=True)

        def probe() -> Any:
            return _loss_again(model, self._last) if self._loss is None else self._loss(model)

        self._attachment.begin(model, optimizer, probe)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        folder = _folder(args, state)
        if state.is_world_process_zero and folder.is_dir():
            with written_whole(folder / _FILE) as file:
                torch.save(self._attachment.state_dict(), file)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._finish()

    def _keep(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Only what training asks for; the model is in eval mode where it is evaluated.
        if model.training:
            self._last = args, kwargs

    def _load(self, args: TrainingArguments, state: TrainerState) -> None:
        path = Path(self._resume_from or _folder(args, state)) / _FILE
        if path.is_file():
            saved = torch.load(path, map_location="cpu", weights_only=True)
            self._attachment.load_state_dict(saved)
        elif self._resume_from is not None:
            raise ConfigError(f"resume_from: there is no {_FILE} in {str(self._resume_from)!r}")
        else:
            warnings.warn(
                f"the run resumes at step {state.global_step}, but there is no {str(path)!r}; the "
                "Koopman window begins anew (pass resume_from=<folder> if it lies elsewhere)",
                KoopmanWarning,
                stacklevel=2,
            )

    def _finish(self) -> None:
        self._attachment.end()
        if self._forward is not None:
            self._forward.remove()
        self._forward = self._last = None


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or "") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _loss_again(model: nn.Module, last: tuple[tuple[Any, ...], dict[str, Any]] | None) -> Any:
    args, kwargs = last or ((), {})
    output = model(*args, **kwargs)
    loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if loss is None:
        raise ConfigError(
            f"loss: {type(model).__name__} returned no loss (its inputs hold no labels, or the "
            "Trainer computes it); pass loss=lambda model: ... to TransformersKoopman"
        )
    return loss
