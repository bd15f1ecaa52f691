# SPDX-License-Identifier: BSD-3-Clause
"""Snapshots of the parameters in one allocation, a row a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from koopfast import _offload
from koopfast._checks import whole
from koopfast.errors import CheckpointError, ConfigError
from koopfast.parameters import ParameterVector, as_named

__all__ = ["SnapshotBuffer"]

# Views of a row cost about a microsecond and half a kilobyte each. They are kept from window to
# window up to this many (32 snapshots of 2,000 parameters), and made anew each time beyond.
_MOST_VIEWS = 65_536
# Rows on a GPU begin at multiples of this many bytes, where its widest loads are aligned.
_ROW_BYTES = 128


class SnapshotBuffer:
    """The last states of a training run, (capacity, n), recorded as it goes.

    Call :meth:`record` once per optimizer step. Every ``stride``-th call stores a row: the
    parameters as they are then, or with ``average=True`` their mean over the last ``stride``
    calls. When all rows are stored, further calls change nothing until :meth:`clear`. Values that
    are not finite are recorded as they are; the fit reports them.

    Memory is allocated at the first call, or by :meth:`reserve`: ``capacity * n`` numbers of the
    dtype that the parameters' dtypes promote to, on their device, kept until the buffer goes.
    ``nbytes_needed`` says beforehand how much that is.

    On a CUDA device recording is a few copies on the current stream, and the host waits for none.
    With ``offload=True`` the rows lie in pinned host memory: each is copied there by a stream of
    its own while training goes on, and two rows' worth of memory on the device stage them.
    A recording can be captured in a CUDA graph, after :meth:`reserve`: what is captured is the
    copy into the row that is due then, and the count goes on once. A graph of a whole window
    records it anew at each replay; one that holds a single step stores that row again.

    Args:
        parameters: what to record: a model (its trainable parameters), a
            :class:`~koopfast.parameters.ParameterVector`, or an iterable of parameters or of
            (name, parameter) pairs.
        capacity: how many snapshots there is room for, at least 2.
        stride: optimizer steps from one snapshot to the next.
        average: store means instead of momentary values.
        samples: most states of a stride that a mean is taken over, evenly spaced; None for all.
            Neighbours of a long stride are much alike, and each costs a pass over the weights.
        offload: keep the rows of parameters on a CUDA device in host memory. Parameters on the CPU
            are there already.

    Attributes:
        vector: the parameters that are recorded.
        capacity, samples, offload: as given.
        stride, average: as given, or as :meth:`clear` changed them.

    Raises:
        ConfigError: ``capacity`` below 2 or ``stride`` below 1, or nothing to record.
        UnsupportedParameterError: a parameter is integer, sparse, on the meta device, ...

    Example:
        >>> from torch import nn
        >>> buffer = SnapshotBuffer(nn.Linear(3, 2), capacity=4, stride=2)
        >>> [buffer.record() for step in range(4)]
        [False, True, False, True]
        >>> tuple(buffer.snapshots.shape)
        (2, 8)
    """

    def __init__(
        self,
        parameters: ParameterVector | nn.Module | Iterable[Tensor | tuple[str, Tensor]],
        capacity: int,
        stride: int = 1,
        average: bool = False,
        *,
        samples: int | None = None,
        offload: bool = False,
    ) -> None:
        self.capacity = whole("capacity", capacity, 2, " snapshots (a fit pairs two)")
        self.stride = whole("stride", stride, 1)
        self.average = bool(average)
        self.samples = None if samples is None else whole("samples", samples, 1)
        self.vector = (
            parameters
            if isinstance(parameters, ParameterVector)
            else ParameterVector(as_named(parameters))
        )
        self._count = 0
        self._phase = 0  # calls since the last row was stored
        self.offload = bool(offload)
        self._rows: Tensor | None = None
        self._offloaded: _offload.OffloadedRows | None = None
        self._views: dict[int, list[Tensor]] = {}  # row -> its views
        self._sum: Tensor | None = None  # of the calls since then, where they are averaged
        self._sum_views: list[Tensor] = []

    def record(self) -> bool:
        """Note one optimizer step; True if it stored a row.

        Raises:
            ParameterChangedError: a parameter was resized, cast, moved or (un)frozen.
            MemoryError: there is no room for the rows; the message says how much they need.
        """
        if self.full:
            return False
        phase = self._phase + 1
        due = phase == self.stride
        if self.average and self.stride > 1:
            if phase % self._spacing == 0:
                self._add(first=phase == self._spacing)
            if due:
                self._store_mean()
        elif due:
            self._store_state()
        # Counted last: an interrupt on the way leaves the row unstored, not half-stored.
        self._count += due
        self._phase = 0 if due else phase
        return due

    @property
    def snapshots(self) -> Tensor:
        """The rows stored so far, (count, n), oldest first: a view, overwritten after a clear."""
        if self._offloaded is not None:
            return self._offloaded.finished()[: self._count]
        if self._rows is None:
            device = "cpu" if self._sends else self.vector.device
            return torch.empty(0, self.vector.n, dtype=self.vector.dtype, device=device)
        return self._rows[: self._count]

    def unmoved(self) -> Tensor:
        """Indices of the weights that are one and the same number in all rows, (k,), int64."""
        rows = self.snapshots
        first, last = rows[0], rows[-1]
        places = torch.nonzero(first == last).flatten()  # hardly any, but those that never move
        for row in rows[1:-1]:
            if len(places) == 0:
                break
            places = places[row[places] == first[places]]
        return places

    @property
    def count(self) -> int:
        """How many rows are stored."""
        return self._count

    @property
    def full(self) -> bool:
        """Whether all ``capacity`` rows are stored."""
        return self._count == self.capacity

    @property
    def begun(self) -> bool:
        """Whether anything was recorded since the last :meth:`clear`."""
        return self._count > 0 or self._phase > 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated for rows and running sum: 0 before the first call of :meth:`record`."""
        rows = 0 if self._rows is None else self._rows.untyped_storage().nbytes()
        offloaded = 0 if self._offloaded is None else self._offloaded.nbytes
        return rows + offloaded + (0 if self._sum is None else self._sum.nbytes)

    @property
    def nbytes_needed(self) -> int:
        """Bytes that rows and running sum take once they are allocated, wherever they are.

        Of pinned host memory (``offload``) torch takes powers of two, up to twice the rows.
        """
        rows = self.capacity * self.vector.n * self.vector.dtype.itemsize
        host = _offload.pinned_bytes(rows) if self._sends else 0
        return host + self.device_bytes_needed

    @property
    def device_bytes_needed(self) -> int:
        """As :attr:`nbytes_needed`, what is on the parameters' device."""
        sums = self._sum_dtype().itemsize if self.average and self.stride > 1 else 0
        rows = 2 * self.vector.n if self._sends else self.capacity * self._row_length
        return rows * self.vector.dtype.itemsize + sums * self.vector.n

    @property
    def steps_left(self) -> int:
        """Calls of :meth:`record` until all rows are stored."""
        return (self.capacity - self._count) * self.stride - self._phase

    def reserve(self, *, sums: bool = False) -> tuple[Tensor, Tensor | None]:
        """Allocate now what :meth:`record` would; ``sums``: what averages need in any case.

        Returns:
            All rows, stored or not, (capacity, n), and the running sum (n,) where there is one:
            the memory itself.

        Raises:
            MemoryError: as :meth:`record`.
        """
        rows = self._sender().finished() if self._sends else self._allocated()
        if sums or (self.average and self.stride > 1):
            self._running_sum()
        return rows, self._sum

    def clear(self, *, stride: int | None = None, average: bool | None = None) -> None:
        """Forget all rows and a stride that has begun; the memory is kept for the next window.

        Args:
            stride: of the next window; None leaves it as it is.
            average: the same.
        """
        self._count = 0
        self._phase = 0
        self.stride = self.stride if stride is None else whole("stride", stride, 1)
        self.average = self.average if average is None else bool(average)

    def drop_oldest(self, count: int) -> None:
        """Forget the first ``count`` rows; the others move up."""
        kept, rows = self._count - count, self.snapshots
        if count > 0:
            # Piece by piece: source and destination of one copy must not overlap.
            for first in range(0, kept, count):
                end = min(first + count, kept)
                rows[first:end].copy_(rows[first + count : end + count])
        self._count = kept

    def state_dict(self) -> dict[str, Any]:
        """The rows, the running sum and the place in the stride, as numbers, strings and tensors.

        Copies, so later recording does not change them.
        """
        partial = self._sum is not None and self._phase >= self._spacing
        return {
            "names": list(self.vector.names),
            "lengths": list(self.vector.lengths),
            "capacity": self.capacity,
            "stride": self.stride,
            "average": self.average,
            "samples": self.samples,
            "phase": self._phase,
            "snapshots": self.snapshots.clone(),
            "sum": self._sum.clone() if partial and self._sum is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, bit for bit, on this buffer's device.

        Raises:
            CheckpointError: the state is of other parameters, of another capacity, stride or
                averaging, or incomplete; this buffer is then as it was.
        """
        rows, total, phase = self._checked(state)
        self._count = 0
        if rows.shape[0] > 0:
            own = self._sender().finished() if self._sends else self._allocated()
            own[: rows.shape[0]].copy_(rows)
        if total is not None:
            self._running_sum().copy_(total)
        self._phase = phase
        self._count = rows.shape[0]

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return (
            f"SnapshotBuffer({self._count} of {self.capacity} snapshots, n={self.vector.n}, "
            f"stride={self.stride}, average={self.average}, {self.vector.dtype})"
        )

    @property
    def _spacing(self) -> int:
        """Calls from one state that goes into a mean to the next."""
        return 1 if self.samples is None else max(1, self.stride // self.samples)

    @property
    def _sends(self) -> bool:
        """Whether rows go to the host."""
        return self.offload and self.vector.device.type == "cuda"

    def _store_state(self) -> None:
        self.vector.check_unchanged()
        if self._sends:
            if torch.cuda.is_current_stream_capturing():
                raise ConfigError(
                    "offload: rows that are sent to the host cannot be captured in a CUDA graph; "
                    "record them between its replays"
                )
            rows = self._sender()
            self.vector.read_into(rows.stage)
            rows.send(self._count)
        else:
            self.vector.read_into_views(self._row_views())

    def _store_mean(self) -> None:
        total, summands = self._running_sum(), self.stride // self._spacing
        with torch.no_grad():
            if self._sends:
                rows = self._sender()
                torch.div(total, summands, out=rows.stage)
                rows.send(self._count)
            else:
                torch.div(total, summands, out=self._allocated()[self._count])

    def _add(self, first: bool) -> None:
        self.vector.check_unchanged()
        self._running_sum()
        if first:
            self.vector.read_into_views(self._sum_views)
        else:
            self.vector.add_to_views(self._sum_views)

    def _row_views(self) -> list[Tensor]:
        row = self._count
        views = self._views.get(row)
        if views is None:
            views = self.vector.views(self._allocated()[row])
            if self.capacity * len(self.vector) <= _MOST_VIEWS:
                self._views[row] = views
        return views

    def _allocated(self) -> Tensor:
        if self._rows is None:
            shape = (self.capacity, self._row_length)
            self._rows = self._room(shape, self.vector.dtype)[:, : self.vector.n]
        return self._rows

    @property
    def _row_length(self) -> int:
        """Numbers from one row to the next."""
        if self.vector.device.type != "cuda":
            return self.vector.n
        whole_lines = -(-self.vector.n * self.vector.dtype.itemsize // _ROW_BYTES)
        return whole_lines * _ROW_BYTES // self.vector.dtype.itemsize

    def _sender(self) -> _offload.OffloadedRows:
        if self._offloaded is None:
            vector = self.vector
            with self._stating_room():
                self._offloaded = _offload.OffloadedRows(
                    self.capacity, vector.n, vector.dtype, vector.device
                )
        return self._offloaded

    def _running_sum(self) -> Tensor:
        if self._sum is None:
            total = self._room((self.vector.n,), self._sum_dtype())
            # In this order: an interrupt between the two must not leave a sum without views.
            self._sum_views = self.vector.views(total)
            self._sum = total
        return self._sum

    def _sum_dtype(self) -> torch.dtype:
        # 8 or 11 bits of mantissa would lose the small steps of a long stride.
        return torch.promote_types(self.vector.dtype, torch.float32)

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with self._stating_room():
            return torch.empty(shape, dtype=dtype, device=self.vector.device)

    @contextmanager
    def _stating_room(self) -> Iterator[None]:
        """Says how much memory is missing, or that a capture must not allocate it."""
        if self.vector.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise ConfigError(
                "snapshots: expected memory that was allocated before a CUDA graph is captured, "
                "got none; call reserve() first"
            )
        try:
            yield
        except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
            raise MemoryError(
                f"snapshots: expected room for {self.nbytes_needed} bytes ({self.capacity} "
                f"snapshots of {self.vector.n} weights) on {self.vector.device}, which it does "
                "not have; record fewer snapshots or parameters"
            ) from error

    def _checked(self, state: Mapping[str, Any]) -> tuple[Tensor, Tensor | None, int]:
        own = {
            "names": list(self.vector.names),
            "lengths": list(self.vector.lengths),
            "capacity": self.capacity,
            "stride": self.stride,
            "average": self.average,
            "samples": self.samples,
        }
        missing = [key for key in (*own, "phase", "snapshots", "sum") if key not in state]
        if missing:
            raise CheckpointError(
                f"snapshots: expected what SnapshotBuffer.state_dict gives, {missing[0]!r} is "
                "missing"
            )
        for key, expected in own.items():
            if state[key] != expected:
                raise CheckpointError(
                    f"snapshots: {key} of the checkpoint and of this buffer differ: "
                    f"{_difference(state[key], expected)}; make the buffer as it was when saved"
                )
        rows, total, phase = state["snapshots"], state["sum"], state["phase"]
        n, dtype = self.vector.n, self.vector.dtype
        if not isinstance(rows, Tensor) or rows.shape[1:] != (n,) or rows.dtype != dtype:
            came = getattr(rows, "dtype", type(rows).__name__)
            raise CheckpointError(
                f"snapshots: expected {dtype} of shape (count, {n}), got {came} of shape "
                f"{tuple(getattr(rows, 'shape', ()))}; cast the model as it was when saved"
            )
        wants_sum = self.average and self.stride > 1 and phase >= self._spacing
        if (
            rows.shape[0] > self.capacity
            or not 0 <= phase < self.stride
            or (total is None) == wants_sum
            or (total is not None and total.shape != (n,))
        ):
            raise CheckpointError(
                f"snapshots: the checkpoint contradicts itself: {rows.shape[0]} rows of "
                f"{self.capacity}, step {phase} of a stride of {self.stride}, running sum "
                f"{'missing' if total is None else tuple(total.shape)}"
            )
        return rows, total, phase


def _difference(saved: Any, own: Any) -> str:
    """The first entry in which two lists differ, or the two values."""
    if isinstance(saved, list) and isinstance(own, list):
        if len(saved) != len(own):
            return f"{len(saved)} parameters were saved, {len(own)} are recorded"
        k = next(k for k in range(len(own)) if saved[k] != own[k])
        return f"parameter {k} was {saved[k]!r}, is {own[k]!r}"
    return f"{saved!r} was saved, {own!r} is recorded"
