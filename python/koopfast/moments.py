# SPDX-License-Identifier: BSD-3-Clause
"""Moments of the snapshots, summed as they arrive: operators without a window of snapshots."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from koopfast import _blocks, _device, _moment_ops
from koopfast._checks import whole
from koopfast._options import FitOptions
from koopfast.errors import CheckpointError, ConfigError
from koopfast.operator import KoopmanOperator
from koopfast.parameters import ParameterVector, as_named
from koopfast.partition import Partition
from koopfast.snapshots import SnapshotBuffer

__all__ = ["MomentBuffer"]

# Snapshots that are added to the moments together: each moment is then read and written once for
# so many snapshots.
_TOGETHER = 32


# What moments and recent snapshots may take together unless told otherwise.
DEFAULT_MAX_BYTES = 1 << 28


class MomentBuffer:
    """What a fit needs of a training run of any length, recorded as it goes.

    The primal form of a block of n_b weights is made of the moments F F^T and F' F^T of its
    observables (F, F' as in :mod:`koopfast._reference`). They are summed here in double, about
    the first snapshot or as differences, so that motion by parts in a thousand keeps its digits:
    ``(delays + 1) n_b^2`` numbers a block, however many snapshots there were. Beside them the
    latest snapshots are kept, ``held_out + delays + 33`` at most, in the parameters' dtype: those
    that ``rank="auto"`` predicts, and those that are yet to be added.

    Call :meth:`record` once per optimizer step, and :meth:`fit` when an operator is wanted: it is
    the operator of all that was recorded, and recording can go on. Moments are Gram matrices:
    directions below about 1e-7 of the largest singular value are lost.

    Args:
        parameters: what to record, as for :class:`~koopfast.SnapshotBuffer`; None to hand flat
            vectors to :meth:`record`.
        partition: the blocks. Default: one of all weights.
        observables: "state" or "increments", as for :meth:`KoopmanOperator.fit`.
        delays: consecutive observables in one, likewise.
        stride, average: as for :class:`~koopfast.SnapshotBuffer`.
        held_out: the most latest intervals that ``rank="auto"`` predicts to choose by (it takes a
            third of the run where that is less).
        capacity: how many snapshots are taken; further ones change nothing until :meth:`clear`.
            None: any number.
        max_bytes: the most memory that moments and snapshots may take together.
        dtype: of flat vectors, where ``parameters`` is None.

    Attributes:
        vector: the parameters that are recorded.
        partition, observables, delays, stride, average, held_out, capacity: as given.

    Raises:
        ConfigError: an argument cannot work, parameters are complex, or the blocks are too large
            for ``max_bytes``: where a block has more weights than there will be snapshots, a
            :class:`~koopfast.SnapshotBuffer` is smaller.
        UnsupportedParameterError: a parameter is integer, sparse, on the meta device, ...

    Example:
        >>> partition = Partition.from_segments([[(0, 1)], [(1, 2)]], 3)
        >>> buffer = MomentBuffer(None, partition, dtype=torch.float64)
        >>> for t in range(1000):
        ...     _ = buffer.record(torch.tensor([1.0, 2.0, 3.0]) * 0.99**t)
        >>> buffer.count, buffer.nbytes < 4000
        (1000, True)
        >>> buffer.fit(rank=1).predict(50) / 0.99**1049
        tensor([[1.0000, 2.0000, 3.0000]], dtype=torch.float64)
    """

    def __init__(
        self,
        parameters: ParameterVector | nn.Module | Iterable[Tensor | tuple[str, Tensor]] | None,
        partition: Partition | None = None,
        *,
        observables: Literal["state", "increments"] = "increments",
        delays: int = 1,
        stride: int = 1,
        average: bool = False,
        held_out: int = 16,
        capacity: int | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        options = FitOptions(observables=observables, delays=delays)
        options.check_given("of moments")
        self.observables, self.delays = options.observables, int(options.delays)
        self.held_out = whole("held_out", held_out, 1, " intervals")
        self.capacity = None if capacity is None else whole("capacity", capacity, 2, " snapshots")
        self._options = options
        self._given: Tensor | None = None
        if parameters is None:
            if partition is None:
                raise ConfigError(
                    "parameters: expected what to record, got None; without parameters pass a "
                    "partition, which says how long the flat vectors are"
                )
            self._given = torch.zeros(partition.n, dtype=dtype, device="cpu")
            parameters = [("weights", self._given)]
        self.vector = (
            parameters
            if isinstance(parameters, ParameterVector)
            else ParameterVector(as_named(parameters))
        )
        self.partition = _of_all(partition, self.vector.n)
        self._table = _blocks.BlockTable(self.partition)
        together = max(_TOGETHER, self.delays + 1)
        self._recent = SnapshotBuffer(
            self.vector,
            self.held_out + self.delays + options.increments + together,
            stride=stride,
            average=average,
        )
        self.stride, self.average = self._recent.stride, self._recent.average
        self._check_memory(whole("max_bytes", max_bytes, 1))
        self._head: Tensor | None = None  # the first q + 1 snapshots, once something is folded
        self._moments: _moment_ops.Moments | None = None
        self._dropped = 0  # snapshots that are no longer among the recent ones

    def record(self, weights: Tensor | None = None) -> bool:
        """Note one optimizer step; True if it stored a snapshot.

        Args:
            weights: the flat vector, (n,), where the buffer was made without parameters.

        Raises:
            ConfigError: a vector was given and not expected, or the other way round, or its shape
                or dtype is another.
            ParameterChangedError: a parameter was resized, cast, moved or (un)frozen.

        Should an interrupt strike while snapshots are added to the moments, the buffer is cleared.
        """
        if self._given is None and weights is not None:
            raise ConfigError(
                "weights: this buffer records its parameters; to hand it flat vectors, make it "
                "with parameters=None"
            )
        if self.full:
            return False
        if self._given is not None:
            if not isinstance(weights, Tensor) or weights.shape != self._given.shape:
                came = tuple(weights.shape) if isinstance(weights, Tensor) else weights
                raise ConfigError(
                    f"weights: expected a tensor of shape {tuple(self._given.shape)}, got {came}"
                )
            if weights.is_complex():
                raise ConfigError(f"weights: expected {self._given.dtype}, got {weights.dtype}")
            self._given.copy_(weights.detach())
        stored = self._recent.record()
        if self._recent.full:
            self._fold()
        return stored

    def unmoved(self) -> Tensor:
        """Indices of the weights that are the same in the first and the latest snapshots, (k,)."""
        places = self._recent.unmoved()
        if self._head is None:
            return places
        first = self._head[0].to(places.device)
        return places[first[places] == self._recent.snapshots[-1][places]]

    @property
    def count(self) -> int:
        """How many snapshots were recorded."""
        return self._dropped + self._recent.count

    @property
    def begun(self) -> bool:
        """Whether anything was recorded since the last :meth:`clear`."""
        return self._dropped > 0 or self._recent.begun

    @property
    def full(self) -> bool:
        """Whether ``capacity`` snapshots were recorded."""
        return self.count == self.capacity

    @property
    def nbytes(self) -> int:
        """Bytes allocated: 0 before the first call of :meth:`record`, constant in the end."""
        head = 0 if self._head is None else self._head.nbytes
        moments = 0 if self._moments is None else self._moments.nbytes
        return self._recent.nbytes + head + moments

    def clear(self) -> None:
        """Forget everything recorded; the memory of the recent snapshots is kept."""
        self._recent.clear()
        self._head = None
        self._moments = None
        self._dropped = 0

    def fit(
        self,
        *,
        rank: int | float | Literal["auto", "gavish-donoho"] | None = "auto",
        tolerance: float | None = None,
        ridge: float = 0.0,
        symmetric: bool = False,
        estimator: Literal["least_squares", "forward_backward", "total_least_squares"] = (
            "least_squares"
        ),
        unstable: Literal["clip", "damp", "keep"] = "clip",
    ) -> KoopmanOperator:
        """The operator of all snapshots so far; options as for :meth:`KoopmanOperator.fit`.

        It predicts from the latest snapshot and keeps a copy of it, so recording can go on.
        ``rank="auto"`` predicts the latest ``held_out`` intervals from all before them.

        Raises:
            ConfigError: an option cannot work, or too few snapshots were recorded.
        """
        return self.fit_with(
            dataclasses.replace(
                self._options,
                rank=rank,
                tolerance=tolerance,
                ridge=ridge,
                symmetric=symmetric,
                estimator=estimator,
                unstable=unstable,
            )
        )

    def fit_with(self, options: FitOptions) -> KoopmanOperator:
        """As :meth:`fit`, of options in one; observables and delays must be this buffer's."""
        options.check_given("of moments")
        own = (self.observables, self.delays, "gram")
        if (options.observables, options.delays, options.method) != own:
            raise ConfigError(
                f"options: these moments are for observables={own[0]!r}, delays={own[1]} and "
                f"method={own[2]!r}, got {options.observables!r}, {options.delays} and "
                f"{options.method!r}"
            )
        if self.count < options.least_snapshots:
            raise ConfigError(
                f"fit: {self.observables} with delays={self.delays} need at least "
                f"{options.least_snapshots} recorded states, got {self.count}"
            )
        pairs = self.count - options.increments - self.delays
        tail = min(self.held_out, max(1, pairs // 3)) if pairs >= 3 else 0
        fitted = _moment_ops.moment_fit(self._stream("cpu"), self._table, options, self.count, tail)
        last = self._recent.snapshots[-1:].clone()
        return KoopmanOperator(
            last, self.partition, self._table, fitted, observables=self.observables, m=self.count
        )

    def state_dict(self) -> dict[str, Any]:
        """Moments, recent snapshots and the place in the stride: copies."""
        moments = self._moments
        return {
            "observables": self.observables,
            "delays": self.delays,
            "held_out": self.held_out,
            "capacity": self.capacity,
            "blocks": self._table.sizes.clone(),
            "dropped": self._dropped,
            "recent": self._recent.state_dict(),
            "head": None if self._head is None else self._head.clone(),
            "lags": None if moments is None else moments.lags.clone(),
            "sums": None if moments is None else moments.sums.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, bit for bit, on this buffer's device.

        Raises:
            CheckpointError: the state is of other parameters, blocks or options, or incomplete;
                this buffer is then as it was.
        """
        own = {
            "observables": self.observables,
            "delays": self.delays,
            "held_out": self.held_out,
            "capacity": self.capacity,
        }
        others = ("blocks", "dropped", "recent", "head", "lags", "sums")
        missing = [key for key in (*own, *others) if key not in state]
        if missing:
            raise CheckpointError(
                f"moments: expected what MomentBuffer.state_dict gives, {missing[0]!r} is missing"
            )
        for key, expected in own.items():
            if state[key] != expected:
                raise CheckpointError(
                    f"moments: {key} of the checkpoint and of this buffer differ: {state[key]!r} "
                    f"was saved, {expected!r} is recorded; make the buffer as it was when saved"
                )
        sizes = self._table.sizes
        if not isinstance(state["blocks"], Tensor) or not torch.equal(state["blocks"], sizes):
            raise CheckpointError(
                "moments: the checkpoint is of other blocks; make the buffer with the partition "
                "that it had when saved"
            )
        head, moments = self._checked_moments(state)
        self._recent.load_state_dict(state["recent"])
        self._head, self._moments, self._dropped = head, moments, state["dropped"]

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return (
            f"MomentBuffer({self.count} snapshots of {self.vector.n} weights, "
            f"{self.partition.n_blocks} blocks, {self.observables}, delays={self.delays}, "
            f"{self.nbytes} bytes)"
        )

    def _check_memory(self, most: int) -> None:
        sizes, vector = self._table.sizes, self.vector
        if vector.dtype.is_complex:
            raise ConfigError(
                f"parameters: expected real ones, got {vector.dtype}; record complex parameters "
                "in a SnapshotBuffer"
            )
        moments = 8 * (self.delays + 1) * int((sizes**2).sum())
        rows = (self._recent.capacity + self.delays + 1) * vector.n * vector.dtype.itemsize
        if moments + rows <= most:
            return
        largest = int(sizes.max())
        raise ConfigError(
            f"partition: its moments would take {moments} bytes (the largest block, of {largest} "
            f"weights, {8 * (self.delays + 1) * largest**2}) and the latest snapshots {rows}, more "
            f"than max_bytes={most}; use smaller blocks (Partition.node, Partition.quasi_node or "
            "Partition.weight), a SnapshotBuffer, or a larger max_bytes"
        )

    @property
    def _place(self) -> torch.device:
        """Where moments are summed: on the parameters' device, if the kernels run there."""
        device = self.vector.device
        return device if _device.usable(device) else torch.device("cpu")

    def _stream(self, device: torch.device | str) -> _moment_ops.MomentStream:
        recent, moments = self._recent.snapshots.to(device), self._moments
        head = recent[: self.delays + 1] if self._head is None else self._head.to(device)
        if moments is not None and recent.device != moments.lags.device:
            moments = moments.cpu()
        # Dropped are the snapshots before observable folded - q.
        folded = self._dropped + self.delays if self._dropped > 0 else 0
        return _moment_ops.MomentStream(head, recent, folded, self._options, moments)

    def _fold(self) -> None:
        """Add the older of the recent snapshots to the moments, and drop them."""
        until = self.count - self._options.increments - self.held_out
        oldest = until - self.delays
        try:
            if self._moments is None:
                self._moments = _moment_ops.Moments.zeros(self._table, self._options, self._place)
                self._head = self._recent.snapshots[: self.delays + 1].to(self._place, copy=True)
            _moment_ops.fold_moments(self._stream(self._place), self._table, until)
            self._recent.drop_oldest(oldest - self._dropped)
            self._dropped = oldest
        except BaseException:
            self.clear()  # nothing rather than a snapshot counted twice
            raise

    def _checked_moments(
        self, state: Mapping[str, Any]
    ) -> tuple[Tensor | None, _moment_ops.Moments | None]:
        dropped, head = state["dropped"], state["head"]
        parts = (head, state["lags"], state["sums"])
        expected: tuple[tuple[int, ...], ...] = ()
        if dropped == 0 and all(part is None for part in parts):
            return None, None
        moments = _moment_ops.Moments.zeros(self._table, self._options, self._place)
        shape = (self.delays + 1, self.vector.n)
        own = (
            torch.empty(shape, dtype=self.vector.dtype, device=self._place),
            moments.lags,
            moments.sums,
        )
        expected = tuple(tuple(t.shape) for t in own)
        came = tuple(tuple(p.shape) if isinstance(p, Tensor) else None for p in parts)
        kept = len(state["recent"].get("snapshots", ()))
        least = self.held_out + self.delays + self._options.increments
        if not isinstance(dropped, int) or dropped < 1 or came != expected or kept < least:
            raise CheckpointError(
                f"moments: the checkpoint contradicts itself: {dropped!r} snapshots in moments of "
                f"shapes {came}, expected {expected}, and {kept} kept of at least {least}"
            )
        for mine, saved in zip(own, parts, strict=True):
            mine.copy_(saved)
        return own[0], moments


def _of_all(partition: Partition | None, n: int) -> Partition:
    """The partition, or one block of all weights where it is None."""
    if partition is None:
        return Partition.from_segments([[(0, n)]], n)
    if not isinstance(partition, Partition):
        raise ConfigError(
            f"partition: expected a Partition or None, got {type(partition).__name__}"
        )
    if partition.n != n:
        raise ConfigError(
            f"partition: it covers {partition.n} weights, but {n} are recorded; make both from "
            "the same parameters"
        )
    return partition
