# SPDX-License-Identifier: BSD-3-Clause
"""What trying out weights may disturb, saved and put back bit for bit.

One small class for each kind of thing; each saves when it is made and has a ``restore()``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from koopfast._attach import inner_optimizers
from koopfast.errors import CheckpointError

__all__ = [
    "Buffers",
    "Gradients",
    "Modes",
    "OptimizerState",
    "RandomStreams",
    "ReturnPoint",
    "Savepoint",
    "Weights",
    "restore_all",
]


_MOMENTA = ("momentum_buffer", "exp_avg", "grad_avg")


class Restorable(Protocol):
    """Anything that can be put back as it was."""

    def restore(self) -> None: ...


class Weights:
    """Exact copies of parameters, each in its own dtype and memory format."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = tuple(parameters)
        self._values = [p.detach().clone() for p in self._parameters]

    def restore(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._values)

    @property
    def values(self) -> list[Tensor]:
        """The copies, one a parameter."""
        return self._values

    @values.setter
    def values(self, values: Sequence[Tensor]) -> None:
        self._values = _matching("weights", self._values, values)


class Gradients:
    """The ``.grad`` of every parameter: the very tensors, not copies.

    :meth:`hide` takes them off their parameters, so that a backward pass can neither add to them
    nor find them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._saved = [(p, p.grad) for p in model.parameters()]

    def hide(self) -> None:
        for p, _ in self._saved:
            p.grad = None

    def restore(self) -> None:
        for p, grad in self._saved:
            p.grad = grad


class Buffers:
    """Values and identity of the buffers of a model (running statistics, counts, caches)."""

    def __init__(self, model: nn.Module) -> None:
        # Always by value: batch normalisation writes its statistics without raising their
        # version counter, so that an unchanged counter proves nothing.
        self._saved = [
            (module, name, buffer, None if _shares_memory(buffer) else buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    @property
    def values(self) -> list[Tensor]:
        """The copies, one for each buffer that has memory of its own."""
        return [value for *_, value in self._saved if value is not None]

    @values.setter
    def values(self, values: Sequence[Tensor]) -> None:
        new = iter(_matching("buffers", self.values, values))
        self._saved = [
            (module, name, buffer, None if value is None else next(new))
            for module, name, buffer, value in self._saved
        ]

    @torch.no_grad()
    def restore(self) -> None:
        for module, name, buffer, value in self._saved:
            if getattr(module, name, None) is not buffer:
                setattr(module, name, buffer)
            if value is None:
                continue
            if buffer.shape == value.shape and buffer.dtype == value.dtype:
                buffer.copy_(value)
            else:
                buffer.data = value.clone()


def _shares_memory(buffer: Tensor) -> bool:
    """True for expanded tensors: torch refuses to write to them, so they stay what they are."""
    if buffer.layout != torch.strided:
        return False
    return any(
        step == 0 < size - 1 for step, size in zip(buffer.stride(), buffer.shape, strict=True)
    )


class Modes:
    """Train or eval, module by module."""

    def __init__(self, model: nn.Module) -> None:
        self._saved = [(module, module.training) for module in model.modules()]

    def restore(self) -> None:
        for module, training in self._saved:
            if module.training is not training:  # setting an attribute of a module is slow
                module.training = training


class RandomStreams:
    """The global random streams: torch on the CPU and on ``device``, Python's and numpy's.

    A ``torch.Generator`` or ``numpy.random.Generator`` of the user's own is out of reach.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._mps = torch.mps.get_rng_state() if device.type == "mps" else None
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 - the legacy stream is what users share

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002


class OptimizerState:
    """The per-parameter state of an optimizer (momenta, step counts), param_groups left alone.

    That of the optimizers that it wraps is part of it.

    Args:
        optimizer: whose ``.state`` to save.
        copy: False keeps the state's own tensors: enough to undo a :meth:`reset`, which never
            writes to them. True copies them, which outlives further steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, copy: bool) -> None:
        self._optimizer = optimizer
        self._entries: dict[Any, Any] = dict(optimizer.state)
        if copy:
            self._entries = {key: _copied(entry) for key, entry in self._entries.items()}
        self._inner = [OptimizerState(o, copy=copy) for o in inner_optimizers(optimizer)]

    def restore(self) -> None:
        """Put the state back. It is handed over, so a saved copy serves once."""
        state = self._optimizer.state
        for key in [key for key in state if key not in self._entries]:
            del state[key]
        for key, entry in self._entries.items():
            state[key] = entry
        restore_all(*self._inner)

    @property
    def entries(self) -> list[dict[int, Any]]:
        """Copies of the parameters' entries, by the parameters' places in the optimizer.

        The first is the optimizer's own, the others are those of the optimizers that it wraps.
        """
        places = self._places()
        own = {i: _copied(self._entries[p]) for i, p in enumerate(places) if p in self._entries}
        return [own, *(entry for inner in self._inner for entry in inner.entries)]

    @entries.setter
    def entries(self, entries: Sequence[Mapping[Any, Any]]) -> None:
        for state, entry in zip(self._all(), entries, strict=True):
            state._adopt(entry)

    def _all(self) -> list[OptimizerState]:
        return [self, *(state for inner in self._inner for state in inner._all())]

    def _adopt(self, entries: Mapping[Any, Any]) -> None:
        places = self._places()
        known = {id(p) for p in places}
        other = {key: entry for key, entry in self._entries.items() if id(key) not in known}
        self._entries = {**other, **{places[i]: _copied(entry) for i, entry in entries.items()}}

    def _places(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @property
    def resettable(self) -> bool:
        """Whether there is something to forget, in an optimizer known to begin anew without it."""
        ours = type(self._optimizer).__module__.startswith("torch.optim.")
        return ours and any(True for _ in self._names())

    @property
    def scaled(self) -> bool:
        """Whether a resettable one holds more than momenta: how large gradients were, as Adam's."""
        return self.resettable and any(name not in ("step", *_MOMENTA) for name in self._names())

    def _names(self) -> Iterator[str]:
        """Of the tensors in it, as torch's optimizers call them."""
        for entry in self._entries.values():
            yield from (name for name, value in entry.items() if isinstance(value, Tensor))

    def decay(self, parameters: Sequence[Tensor]) -> None:
        """Halve the momenta of ``parameters``, by the names that torch's optimizers give them.

        They point where the weights before the jump were to go; how large gradients are, which
        squares tell, is true behind it too.
        """
        for inner in self._inner:
            inner.decay(parameters)
        state = self._optimizer.state
        for p in parameters:
            entry = state.get(p, {})
            momenta = {
                name: value / 2
                for name, value in entry.items()
                if name in _MOMENTA and isinstance(value, Tensor)
            }
            if momenta:
                state[p] = {**entry, **momenta}

    def replace(self, entries: Mapping[Tensor, dict[str, Any]]) -> None:
        """Give parameters other entries; what they had is left as it is, for :meth:`restore`."""
        for p, entry in entries.items():
            self._optimizer.state[p] = entry

    def reset(self, parameters: Sequence[Tensor]) -> None:
        """Forget the state of ``parameters``, so that the optimizer starts it anew.

        Adagrad makes its state when it is constructed and expects it to be there, so it gets a
        new one; for the others the entry is removed.
        """
        for inner in self._inner:
            inner.reset(parameters)
        state = self._optimizer.state
        if not isinstance(self._optimizer, torch.optim.Adagrad):
            for p in parameters:
                state.pop(p, None)
            return
        wanted = {id(p) for p in parameters}
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                if id(p) in wanted and p in state:
                    entry = state[p]
                    start = group["initial_accumulator_value"]
                    state[p] = {
                        **entry,
                        "step": torch.zeros_like(entry["step"]),
                        "sum": torch.full_like(entry["sum"], start),
                    }


def _copied(value: Any) -> Any:
    """A copy of nested state; parameters that it refers to stay themselves."""
    if isinstance(value, nn.Parameter):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_copied(item) for item in value)
    return value


def restore_all(*saved: Restorable) -> None:
    """Restore each of ``saved``, whatever happens to the others, then raise what happened.

    An interrupt from the keyboard does not stop it: it waits until all is back.
    """
    troubles = [trouble for item in saved if (trouble := _restore(item)) is not None]
    if troubles:
        raise troubles[0]


def _restore(item: Restorable) -> BaseException | None:
    try:
        item.restore()
    except KeyboardInterrupt as interrupt:
        return _restore(item) or interrupt
    except BaseException as error:
        return error
    return None


class ReturnPoint:
    """What an accepted jump can be undone to."""

    def __init__(self, weights: Weights, buffers: Buffers, optimizer: OptimizerState) -> None:
        self._weights = weights
        self._buffers = buffers
        self._optimizer = optimizer

    def restore(self) -> None:
        """Put it all back. The optimizer's state is handed over, so this serves once."""
        restore_all(self._weights, self._buffers, self._optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Copies, as tensors and what an optimizer keeps beside them."""
        return {
            "weights": [value.clone() for value in self._weights.values],
            "buffers": [value.clone() for value in self._buffers.values],
            "optimizer": self._optimizer.entries,
        }

    def load_state_dict(self, state: Any) -> None:
        """Go back, from now on, to what :meth:`state_dict` gave.

        Raises:
            CheckpointError: it is of another model.
        """
        if not isinstance(state, Mapping) or set(state) != {"weights", "buffers", "optimizer"}:
            raise CheckpointError("state['undo']: expected weights, buffers and optimizer")
        self._weights.values = state["weights"]
        self._buffers.values = state["buffers"]
        try:
            self._optimizer.entries = state["optimizer"]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                "state['undo']: its optimizer state is not one of this optimizer"
            ) from error


def _matching(what: str, own: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the given tensors, each on the device of its own counterpart."""
    if len(own) != len(given) or any(
        a.shape != b.shape or a.dtype != b.dtype for a, b in zip(own, given, strict=False)
    ):
        raise CheckpointError(f"state['undo']: its {what} are not those of this model")
    return [b.detach().to(a.device, copy=True) for a, b in zip(own, given, strict=True)]


class Savepoint:
    """Everything that trying out weights may disturb.

    Args:
        model: whose gradients, buffers and modes are saved.
        parameters: whose weights are saved, by value.
        device: where the model lies (for its random stream).
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[Tensor], device: torch.device
    ) -> None:
        self.weights = Weights(parameters)
        self.gradients = Gradients(model)
        self.buffers = Buffers(model)
        self.modes = Modes(model)
        self.random = RandomStreams(device)

    def restore_surroundings(self) -> None:
        """Put back all but the weights."""
        restore_all(self.gradients, self.buffers, self.modes, self.random)

    def restore(self) -> None:
        """Put back everything."""
        restore_all(self.weights, self.gradients, self.buffers, self.modes, self.random)
