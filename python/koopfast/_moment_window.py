# SPDX-License-Identifier: BSD-3-Clause
"""What an optimizer keeps of every weight (momenta, squared gradients), recorded beside the weights
and predicted with them."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from koopfast import _ops
from koopfast._attach import inner_optimizers
from koopfast._blocks import BlockTable
from koopfast._distributed import FitFailure, fit_failures
from koopfast._options import FitOptions
from koopfast.errors import CheckpointError, ConfigError
from koopfast.parameters import ParameterVector
from koopfast.partition import Partition
from koopfast.snapshots import SnapshotBuffer

__all__ = ["MomentWindow", "moment_names", "tensors_a_weight"]

_COUNTER = "step"
_KEYS = {"names", "rows"}


def moment_names(entry: Mapping[str, Any], parameter: Tensor) -> tuple[str, ...] | None:
    """What of a parameter's state is predicted: its floating tensors of the parameter's shape.

    None where there is a tensor of another kind (a factored moment, a product of rates): the parts
    of such a state would no longer belong together. The counter of steps is not meant.
    """
    names = []
    for name, value in entry.items():
        if not isinstance(value, Tensor) or name == _COUNTER:
            continue
        dense = value.layout == torch.strided and value.device == parameter.device
        if not dense or value.shape != parameter.shape or not value.is_floating_point():
            return None
        names.append(name)
    return tuple(names)


def tensors_a_weight(optimizer: torch.optim.Optimizer) -> int:
    """How many numbers an optimizer of torch keeps of each weight, told before it has begun.

    A stand-in of the same settings takes a step. 0 where that cannot be told.
    """
    if not type(optimizer).__module__.startswith("torch.optim."):
        return 0
    group = optimizer.param_groups[0]
    like = group["params"][0]
    stand_in = torch.nn.Parameter(torch.zeros(2, dtype=like.dtype, device=like.device))
    settings = {name: value for name, value in group.items() if name != "params"}
    with contextlib.suppress(Exception):  # it wants a closure, or the like
        alike = type(optimizer)([{**settings, "params": [stand_in]}])  # type: ignore[call-arg]
        stand_in.grad = torch.zeros_like(stand_in)
        alike.step()
        return len(moment_names(alike.state[stand_in], stand_in) or ())
    return 0


class MomentWindow:
    """Snapshots of the state of an optimizer, taken in step with those of the weights.

    Args:
        optimizer: whose.
        beside: the snapshots of the weights.
        max_bytes: most bytes that both windows may take.

    Attributes:
        trouble: why nothing is recorded in this window, "" where something is or could be.

    Raises:
        ConfigError: an optimizer of torch needs more than ``max_bytes``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        beside: SnapshotBuffer,
        max_bytes: int | None,
    ) -> None:
        self._optimizer = optimizer
        self._vector = vector = beside.vector
        self._beside = beside
        self._max_bytes = max_bytes
        self._names: tuple[str, ...] = ()
        self._tensors: list[Tensor] = []
        self._rows: SnapshotBuffer | None = None
        self.trouble = ""
        self._fresh = True
        self._loaded: Mapping[str, Any] | None = None
        count = tensors_a_weight(optimizer)
        needed = (1 + count) * beside.nbytes_needed
        if max_bytes is not None and needed > max_bytes:
            raise ConfigError(
                f"max_bytes: expected room for {beside.capacity} snapshots of {vector.n} weights "
                f'and, for optimizer_state="predict", of {count} numbers more of each, {needed} '
                f"bytes, got {max_bytes}; record fewer snapshots or choose another optimizer_state"
            )

    def clear(self) -> None:
        """A window begins: with the state as it is then."""
        self._fresh, self._loaded = True, None

    def record(self) -> None:
        """Note one optimizer step; called after each one that the weights' window notes."""
        if self._fresh:
            self._begin()
        if self._rows is None:
            return
        if any(a is not b for a, b in zip(self._now(), self._tensors, strict=True)):
            self._rows, self.trouble = None, "it was replaced in the middle of a window"
            return
        self._rows.record()

    def predicted(
        self, partition: Partition, options: FitOptions, horizon: float, steps: int
    ) -> dict[Tensor, dict[str, Any]]:
        """The state's new entries, by parameter: nothing is written.

        Args:
            partition, options: what the operator of the weights was fitted with.
            horizon: in recorded intervals.
            steps: the same in optimizer steps; 0 for the mean of the window's second half.

        Returns:
            Nothing where nothing was recorded.
        """
        try:
            with fit_failures():
                return self._predicted(partition, options, horizon, steps)
        except FitFailure as failure:
            self.trouble = str(failure)
            return {}

    def _predicted(
        self, partition: Partition, options: FitOptions, horizon: float, steps: int
    ) -> dict[Tensor, dict[str, Any]]:
        rows = self._rows
        if rows is None or rows.count != self._beside.count:
            return {}
        n = self._vector.n
        seen = rows.snapshots
        table = BlockTable.of(partition)
        fitted = None if steps == 0 else _ops.dual_fit(self._beside.snapshots, table, options)
        found: dict[Tensor, dict[str, Any]] = {
            p: dict(self._optimizer.state[p]) for p in self._vector.parameters
        }
        for k, name in enumerate(self._names):
            part = seen[:, k * n : (k + 1) * n]
            if fitted is None:
                row = part[rows.count // 2 :].mean(dim=0)
            else:
                row = torch.empty(1, n, dtype=part.dtype, device=part.device)
                _ops.predict(part, table, fitted, [horizon], row)
                row = row[0]
            views = zip(
                self._vector.parameters,
                self._vector.views(row),
                self._vector.views(part.amin(dim=0)),
                strict=True,
            )
            for p, value, least in views:
                # What never was negative is a mean of squares or the like, and steps go by the
                # inverse of its root: a quarter of the least seen doubles them at most.
                value = torch.maximum(value, least / 4) if bool((least >= 0).all()) else value
                own = found[p][name]
                found[p][name] = torch.empty_like(own).copy_(value)
        for entry in found.values():
            if _COUNTER in entry:
                # The moments are those of then, and their bias correction must be too.
                entry[_COUNTER] = entry[_COUNTER] + steps
        return found

    def state_dict(self) -> dict[str, Any] | None:
        """The rows and whose they are; None where there are none."""
        if self._loaded is not None:
            return dict(self._loaded)
        if self._rows is None or self._fresh:
            return None
        return {"names": list(self._names), "rows": self._rows.state_dict()}

    def load_state_dict(self, state: Any) -> None:
        """Go on from :meth:`state_dict`, with the state that the optimizer has at the next step.

        Raises:
            CheckpointError: it is something else.
        """
        if state is not None and not (isinstance(state, Mapping) and set(state) == _KEYS):
            raise CheckpointError(
                f"state['moments']: expected {sorted(_KEYS)} or None, got {type(state).__name__}"
            )
        self._rows, self._loaded = None, state
        self._fresh = state is not None or not self._beside.begun

    def _begin(self) -> None:
        """Find what there is to record."""
        self._fresh = False
        kept, self._rows = self._rows, None
        state, parameters = self._optimizer.state, self._vector.parameters
        names = [moment_names(state[p], p) if p in state else () for p in parameters]
        first = names[0]
        if inner_optimizers(self._optimizer):
            self.trouble = "it is that of several optimizers, one in the other"
            return
        if first is None or any(other != first for other in names):
            self.trouble = (
                f"{type(self._optimizer).__name__} keeps something else than tensors of the "
                "parameters' shapes, or not of every parameter"
            )
            return
        self.trouble = ""
        self._names = first
        if not first:
            return
        before, self._tensors = self._tensors, self._now()
        beside = self._beside
        same = len(before) == len(self._tensors)
        if kept is not None and same and all(map(operator.is_, before, self._tensors)):
            self._rows = kept
        else:
            named = [(str(i), tensor) for i, tensor in enumerate(self._tensors)]
            vector = ParameterVector(named)
            self._rows = SnapshotBuffer(
                vector, beside.capacity, samples=beside.samples, offload=beside.offload
            )
        self._rows.clear(stride=beside.stride, average=beside.average)
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._go_on(loaded)
            return
        needed = self._rows.nbytes_needed + beside.nbytes_needed
        if self._max_bytes is not None and needed > self._max_bytes:
            self._rows = None
            self.trouble = f"both windows need {needed} bytes and max_bytes is {self._max_bytes}"

    def _go_on(self, loaded: Mapping[str, Any]) -> None:
        """With the rows that were saved."""
        try:
            if self._rows is not None and loaded["names"] == list(self._names):
                self._rows.load_state_dict(loaded["rows"])
                return
        except CheckpointError:
            pass
        self._rows, self.trouble = None, "the window that was loaded is of another state"

    def _now(self) -> list[Tensor]:
        state = self._optimizer.state
        return [state[p].get(name) for name in self._names for p in self._vector.parameters]
