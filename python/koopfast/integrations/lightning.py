# SPDX-License-Identifier: BSD-3-Clause
"""Lightning: a ``Callback``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from koopfast.config import KoopmanConfig
from koopfast.errors import ConfigError
from koopfast.integrations._attachment import Attachment
from koopfast.trainer import KoopmanTrainer

__all__ = ["LightningKoopman"]


class LightningKoopman(Callback):
    """Koopman training in a Lightning ``Trainer``; its state is kept in Lightning's checkpoints.

    Args:
        config: a :class:`~koopfast.KoopmanConfig`; None means the default one.
        loss: ``loss(module, batch, batch_index)`` returns the loss at the weights of the moment.
            None calls ``training_step`` again, with its logging off and its metrics put back;
            with manual optimization a loss of your own is needed.
        optimizer: which of the module's optimizers, counted from 0.
        **overrides: fields of the configuration to replace.
    """

    def __init__(
        self,
        config: KoopmanConfig | None = None,
        *,
        loss: Callable[[LightningModule, Any, int], Any] | None = None,
        optimizer: int = 0,
        **overrides: Any,
    ) -> None:
        self._attachment = Attachment(config, overrides)
        self._loss = loss
        self._index = optimizer
        self._batch: tuple[Any, int] | None = None

    @property
    def trainer(self) -> KoopmanTrainer:
        """The :class:`~koopfast.KoopmanTrainer`, once training has begun."""
        return self._attachment.trainer

    @property
    def state_key(self) -> str:
        """Under which Lightning keeps the state: one for each optimizer."""
        return self._generate_state_key(optimizer=self._index)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loss is None and not pl_module.automatic_optimization:
            raise ConfigError(
                "loss: with manual optimization training_step steps the optimizers, so it cannot "
                "be the probe; pass loss=lambda module, batch, index: ..."
            )
        if self._index >= len(trainer.optimizers):
            raise ConfigError(
                f"optimizer: expected one of the {len(trainer.optimizers)} that "
                f"configure_optimizers made, got {self._index}"
            )

        def probe() -> Any:
            assert self._batch is not None
            with trainer.precision_plugin.train_step_context():
                return (self._loss or _training_loss)(pl_module, *self._batch)

        self._attachment.begin(pl_module, trainer.optimizers[self._index], probe)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch, batch_idx

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        return self._attachment.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._attachment.load_state_dict(state_dict)

    def _finish(self) -> None:
        self._attachment.end()
        self._batch = None


def _training_loss(module: LightningModule, batch: Any, index: int) -> Any:
    with _unlogged(module), _metrics_kept(module):
        output = module.training_step(batch, index)
    return output["loss"] if isinstance(output, dict) else output


@contextlib.contextmanager
def _unlogged(module: LightningModule) -> Iterator[None]:
    """``self.log`` and ``self.log_dict`` do nothing: a candidate's loss is no news."""
    names = ("log", "log_dict")
    own = {name: vars(module)[name] for name in names if name in vars(module)}
    vars(module).update(dict.fromkeys(names, _nothing))
    try:
        yield
    finally:
        for name in names:
            vars(module).pop(name, None)
        vars(module).update(own)


def _nothing(*_: Any, **__: Any) -> None:
    pass


@contextlib.contextmanager
def _metrics_kept(module: LightningModule) -> Iterator[None]:
    """Metrics that ``training_step`` updates count a batch once: their attributes come back."""
    metrics = [m for m in module.modules() if isinstance(m, Metric)]
    saved = [{key: _copied(value) for key, value in vars(m).items()} for m in metrics]
    try:
        yield
    finally:
        for metric, attributes in zip(metrics, saved, strict=True):
            vars(metric).clear()
            vars(metric).update(attributes)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else value
