# SPDX-License-Identifier: BSD-3-Clause
"""skorch: a ``Callback``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.dataset import unpack_data

from koopfast.config import KoopmanConfig
from koopfast.integrations._attachment import Attachment
from koopfast.trainer import KoopmanTrainer

__all__ = ["SkorchKoopman"]


class SkorchKoopman(Callback):  # type: ignore[misc]
    """Koopman training in a skorch ``NeuralNet``.

    Its state is pickled with the net, and travels in the state of the optimizer, so skorch's
    ``Checkpoint`` keeps it (``f_optimizer``). List it before ``LoadInitState``, which loads when
    training begins.

    Args:
        config: a :class:`~koopfast.KoopmanConfig`; None means the default one.
        loss: ``loss(net, batch)`` returns the loss at the weights of the moment; None takes the
            net's own.
        **overrides: fields of the configuration to replace.
    """

    def __init__(
        self,
        config: KoopmanConfig | None = None,
        loss: Callable[[NeuralNet, Any], Any] | None = None,
        **overrides: Any,
    ) -> None:
        self.config = config
        self.loss = loss
        # Attributes, and names for skorch's get_params: so it can clone and set what is here.
        self.__dict__.update(overrides)
        self.overrides_ = tuple(overrides)
        self.initialize()

    @property
    def trainer(self) -> KoopmanTrainer:
        """The :class:`~koopfast.KoopmanTrainer`, once training has begun."""
        return self.attachment_.trainer

    def initialize(self) -> SkorchKoopman:
        """Begin anew, as skorch asks when it makes a new network."""
        overrides = {name: getattr(self, name) for name in self.overrides_}
        self.attachment_ = Attachment(self.config, overrides)
        self.batch_: Any = None
        return self

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        def probe() -> Any:
            return (self.loss or _loss_of)(net, self.batch_)

        trainer = self.attachment_.begin(net.module_, net.optimizer_, probe)
        trainer.save_with_optimizer()

    def on_batch_begin(
        self, net: NeuralNet, batch: Any = None, training: bool | None = None, **kwargs: Any
    ) -> None:
        if training:
            self.batch_ = batch

    def on_train_end(self, net: NeuralNet, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self.attachment_.end()
        self.batch_ = None

    def _get_param_names(self) -> list[str]:
        return ["config", "loss", *self.overrides_]


def _loss_of(net: NeuralNet, batch: Any) -> Any:
    x, y = unpack_data(batch)
    return net.get_loss(net.infer(x), y, X=x, training=True)
