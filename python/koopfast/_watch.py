# SPDX-License-Identifier: BSD-3-Clause
"""What happens between two recorded steps and breaks the dynamics that a window is to show.

Weights that somebody else wrote (an average swapped in, a checkpoint loaded), a learning rate that
was changed, and calls that no optimizer step stands behind.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from koopfast._attach import undisturbed
from koopfast.parameters import ParameterVector

__all__ = ["RateWatch", "StepWatch", "StrangerWatch", "WeightWatch"]

# Whoever writes weights in the middle of training writes all of them, so a sample shows it: of at
# most so many parameters, spread over all, so many neighbouring weights each.
_MOST_PARAMETERS = 64
_WEIGHTS_EACH = 8
# A schedule that changes the rate a little at every step is part of the dynamics; a change at once
# by more than this share is the end of one dynamics and the beginning of another. It is a share of
# the largest rate in the window, which is what moved the weights there: a rate that falls evenly to
# zero falls by ever larger shares of itself, and means ever less.
_RATE_STEP = 0.1

# So many times in a row weights are not written by a checkpoint or an average.
_STRANGE_MOVES = 10

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class StepWatch:
    """Calls ``before_step`` before each step of an optimizer and knows whether one was taken.

    Holds ``before_step``, a bound method, weakly: the optimizer does not keep its owner alive.
    Optimizers without hooks are not watched.
    """

    def __init__(self, optimizer: Any, before_step: Callable[[], None]) -> None:
        # torch wraps the step() of every class whose __init__ calls Optimizer.__init__.
        self._sees_steps = hasattr(optimizer, "register_step_pre_hook") and getattr(
            type(optimizer).step, "hooked", False
        )
        #: whether a step began since :meth:`stepped` asked last; True where steps are not seen
        self.began = not self._sees_steps
        if not self._sees_steps:
            return
        method = weakref.WeakMethod(before_step)

        def hook(*_: Any) -> None:
            call = method()
            if call is not None:
                call()
                self.began = True

        handle = optimizer.register_step_pre_hook(undisturbed(hook))
        weakref.finalize(before_step.__self__, handle.remove).atexit = False  # type: ignore[attr-defined]

    def stepped(self) -> bool:
        """Whether a step began since the last call; always True where steps cannot be seen."""
        began, self.began = self.began, not self._sees_steps
        return began


class WeightWatch:
    """Notices weights that changed between one step and the next.

    A sample is compared bit for bit, so an average that is swapped in for a validation and out
    again is no change. On a device whose answers must be waited for, the comparison is left there
    until :meth:`broken` asks.
    """

    def __init__(self, parameters: ParameterVector) -> None:
        self._vector = parameters
        self._spacing = -(-len(parameters) // _MOST_PARAMETERS)
        self._device = parameters.device
        self._places: list[int] = []
        self._views: list[Tensor] = []
        # The same memory outside of torch, where that can be: reading it is ten times as fast, and
        # this is done twice a step.
        self._memory: list[memoryview] | None = None
        self._seen: Tensor | bytes | None = None
        self._seen_dtype = parameters.dtype
        self._changed: Tensor | None = None

    def note(self) -> None:
        """The weights are now as the dynamics left them."""
        self._seen = self._sample()
        self._seen_dtype = self._views[0].dtype if self._views else self._seen_dtype

    def forget(self) -> None:
        """There is no window that could be broken."""
        self._seen = self._changed = None

    def compare(self) -> bool:
        """Compare the weights with those noted; True if they are known to differ."""
        if self._seen is None:
            return False
        sample = self._sample()
        if isinstance(sample, bytes):
            if isinstance(self._seen, bytes):
                # As below of a cast.
                return sample != self._seen and self._views[0].dtype == self._seen_dtype
            sample = self._as_tensor(sample)
        elif isinstance(self._seen, bytes):
            return False
        if sample.shape != self._seen.shape:
            return True
        if sample.dtype != self._seen.dtype or sample.device != self._seen.device:
            return False  # a cast or a move is reported by the check of the parameters
        if self._device.type == "cpu":
            return not torch.equal(sample, self._seen)
        changed = (sample != self._seen).any()
        self._changed = changed if self._changed is None else self._changed | changed
        return False

    def broken(self) -> bool:
        """Whether a comparison since the last :meth:`forget` found a change; waits for it."""
        return self._changed is not None and bool(self._changed)

    @property
    def noted(self) -> Tensor | None:
        """What :meth:`compare` compares with, to be saved; nothing equals it after a change."""
        seen = self._as_tensor(self._seen) if isinstance(self._seen, bytes) else self._seen
        return None if seen is None else seen[: 0 if self.broken() else None].clone()

    @noted.setter
    def noted(self, sample: Tensor | None) -> None:
        self.forget()
        self._seen = None if sample is None else sample.to(self._device)

    def _sample(self) -> Tensor | bytes:
        chosen = self._vector.tensors[:: self._spacing]
        places = [p.data_ptr() for p in chosen]
        if places != self._places:  # also when p.data was exchanged
            self._views = [_few(p.detach()) for p in chosen if p.numel() > 0]
            self._memory = self._as_memory(self._views)
            self._places = places
        if self._memory is not None:
            return b"".join(self._memory)
        if not self._views:  # a shard without weights
            return torch.empty(0, dtype=torch.int64, device=self._device)
        return _bits(torch.cat(self._views)).flatten()

    def _as_memory(self, views: list[Tensor]) -> list[memoryview] | None:
        """None unless they lie where Python reads and are of one dtype, as a saved sample is."""
        dtypes = {view.dtype for view in views}
        here = self._device.type == "cpu" and all(type(view) is Tensor for view in views)
        if not here or len(dtypes) != 1 or not all(view.is_contiguous() for view in views):
            return None
        return [_bits(view).numpy().data for view in views]

    def _as_tensor(self, sample: bytes) -> Tensor:
        return torch.frombuffer(bytearray(sample), dtype=_bits(self._views[0]).dtype)


def _bits(values: Tensor) -> Tensor:
    """The same memory as integers, of complex numbers (k, 2): NaN equals itself then."""
    parts = torch.view_as_real(values) if values.is_complex() else values
    return parts.view(_BITS[parts.element_size()])


def _few(p: Tensor) -> Tensor:
    """A view of neighbouring elements in the middle of a parameter, (at most 8,)."""
    while p.dim() > 1:
        p = p[p.shape[0] // 2]
    return p.reshape(-1)[:_WEIGHTS_EACH]


class StrangerWatch:
    """Notices that weights move from call to call though the optimizer takes no step.

    Somebody made another optimizer, after unfreezing a layer perhaps, and it trains them now.
    """

    def __init__(self, parameters: ParameterVector) -> None:
        self._weights = WeightWatch(parameters)
        self._moves = 0

    def stepped(self) -> None:
        """The optimizer took a step."""
        self._weights.forget()
        self._moves = 0

    def trains(self) -> bool:
        """A call without a step; True when there were many, and weights moved before each."""
        self._moves += self._weights.compare() or self._weights.broken()
        self._weights.forget()
        self._weights.note()
        return self._moves >= _STRANGE_MOVES


class RateWatch:
    """Notices learning rates that change at once by more than a tenth of the window's largest."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        #: those that :meth:`changed` compares with
        self.rates = self._read()
        #: the largest of each group in the window so far
        self.largest = [abs(rate) for rate in self.rates]

    def changed(self, within: bool) -> bool:
        """Whether one has since the last call; a group more or less counts too.

        Args:
            within: a window has begun. False: the next one begins with the rates of now.
        """
        before, self.rates = self.rates, self._read()
        if within and before == self.rates:
            return False
        changed = within and (
            len(before) != len(self.rates)
            or any(
                abs(now - was) > _RATE_STEP * max(largest, abs(now))
                for was, now, largest in zip(before, self.rates, self.largest, strict=True)
            )
        )
        if changed or not within:
            self.largest = [abs(rate) for rate in self.rates]
        else:
            pairs = zip(self.largest, self.rates, strict=True)
            self.largest = [max(largest, abs(rate)) for largest, rate in pairs]
        return changed

    def _read(self) -> list[float]:
        rates = (group.get("lr", 0.0) for group in self._optimizer.param_groups)
        return [rate if type(rate) is float else _number(rate) for rate in rates]


def _number(rate: Any) -> float:
    # A rate kept on the GPU would have to be waited for at every step.
    elsewhere = rate is None or (isinstance(rate, Tensor) and rate.is_cuda)
    return 0.0 if elsewhere else float(rate)
