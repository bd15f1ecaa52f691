# SPDX-License-Identifier: BSD-3-Clause
"""The ordinary training loop behind ``KoopmanTrainer.fit``."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from koopfast._rank import is_first_rank
from koopfast._savepoint import Modes
from koopfast.errors import ConfigError
from koopfast.guard import scalar_loss
from koopfast.history import EpochRecord, History

__all__ = ["HeldBatches", "run"]

# Enough that the spread between them tells luck from gain, and few, since a probe passes all of
# them through the network.
_MOST_HELD = 3


class HeldBatches:
    """The first batches that a loader gave, kept to judge jumps by.

    Losses at different times can be compared only if they are of the same batches.
    """

    def __init__(self) -> None:
        self._loader: object = None
        self._open = False
        self._batches: list[tuple[Any, Any]] = []

    def begin(self, loader: object) -> bool:
        """An iteration begins; True if it is the first one of this loader."""
        self._open = new = loader is not self._loader
        if new:
            self._loader = loader
            self._batches = []
        return new

    def offer(self, x: Any, y: Any) -> None:
        """A batch of the iteration, kept if there is room for it."""
        if self._open and len(self._batches) < _MOST_HELD:
            self._batches.append((x, y))

    @property
    def any(self) -> bool:
        """Whether one is held."""
        return bool(self._batches)

    def forward(self, model: nn.Module) -> Callable[[], object] | None:
        """Passes them through the model; None where none are held."""
        return (lambda: [model(x) for x, _ in self._batches]) if self.any else None

    def probe(
        self, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]
    ) -> Callable[[], list[Tensor]]:
        """The loss of each."""
        return lambda: [loss_fn(model(x), y) for x, y in self._batches]


def run(
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    after_step: Callable[[Callable[[], Any]], object],
    history: History,
    device: torch.device,
    loader: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor],
    epochs: int,
    validate: Callable[[nn.Module], Any] | None,
    progress: bool | None,
    max_steps: int | None,
    held: HeldBatches | None = None,
    new_batches: Callable[[], None] | None = None,
) -> None:
    """Train; arguments and errors as :meth:`koopfast.KoopmanTrainer.fit`.

    With ``held``, jumps are judged by what it holds, and otherwise by the batch of the step;
    ``new_batches`` is called when it begins to hold others.
    """
    _check_count("epochs", epochs)
    if max_steps is not None:
        _check_count("max_steps", max_steps)
    started = perf_counter()
    steps_left = max_steps
    bar = _bar(progress, loader, epochs, max_steps)
    try:
        for epoch in range(epochs):
            mean = _Mean(device)
            if held is not None and held.begin(loader) and new_batches is not None:
                new_batches()
            for batch in loader:
                x, y = _pair(batch, device)
                optimizer.zero_grad()
                loss: Any = loss_fn(model(x), y)
                if not isinstance(loss, Tensor) or loss.numel() != 1:
                    came = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                    raise ConfigError(
                        f"loss_fn: expected a scalar tensor, got {came}; reduce it, for example "
                        "with .mean()"
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                mean.add(loss)
                if held is None:
                    after_step(_batch_loss(model, loss_fn, x, y))
                else:
                    held.offer(x, y)
                    after_step(held.probe(model, loss_fn))
                bar.advance()
                if steps_left is not None:
                    steps_left -= 1
                    if steps_left == 0:
                        break
            if mean.count == 0:
                raise ConfigError(
                    f"loader: expected at least one batch, got none in epoch {epoch + 1} of "
                    f"{epochs}; pass something that can be iterated anew each epoch, such as a "
                    "DataLoader or a list"
                )
            value = None if validate is None else _validated(model, validate)
            record = EpochRecord(
                step=history.counters.optimizer_steps,
                loss=mean.value(),
                validation=value,
                seconds=perf_counter() - started,
            )
            history.epochs.append(record)
            bar.show(record, history)
            if steps_left == 0:
                return
    finally:
        bar.close()


def _batch_loss(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any
) -> Callable[[], Tensor]:
    return lambda: loss_fn(model(x), y)


class _Mean:
    """Mean of losses, summed where they are, so that no step waits for the device."""

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self._sum = torch.zeros((), dtype=dtype, device=device)
        self.count = 0

    def add(self, loss: Tensor) -> None:
        self._sum += loss.detach().reshape(())
        self.count += 1

    def value(self) -> float:
        return self._sum.item() / self.count


class _Bar:
    """A tqdm bar, or nothing."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def show(self, record: EpochRecord, history: History) -> None:
        if self._bar is not None:
            shown = {"loss": f"{record.loss:.4g}", "jumps": history.counters.jumps_accepted}
            if record.validation is not None:
                shown["validation"] = f"{record.validation:.4g}"
            self._bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _bar(progress: bool | None, loader: Any, epochs: int, max_steps: int | None) -> _Bar:
    installed = importlib.util.find_spec("tqdm") is not None
    if progress and not installed:
        raise ConfigError("progress: a bar needs tqdm; install it or pass progress=False")
    if progress is None:
        visible = sys.stderr is not None and sys.stderr.isatty() and is_first_rank()
        progress = installed and visible
    if not progress:
        return _Bar()
    from tqdm import tqdm

    total = max_steps
    with contextlib.suppress(TypeError):  # iterable data sets have no length
        whole = epochs * len(loader)
        total = whole if max_steps is None else min(whole, max_steps)
    return _Bar(tqdm(total=total, unit="step"))


def _pair(batch: Any, device: torch.device) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise ConfigError(
            f"loader: expected batches (x, y), got a {type(batch).__name__}{size}; write the loop "
            "yourself and call after_step(probe=...) after each optimizer.step()"
        )
    return _moved(batch[0], device), _moved(batch[1], device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(item, device) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device) for item in value)
    return value


def _validated(model: nn.Module, validate: Callable[[nn.Module], Any]) -> float:
    modes = Modes(model)
    try:
        return scalar_loss(validate(model), "validate")
    finally:
        modes.restore()


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}: expected an integer of 1 or more, got {value!r}")
