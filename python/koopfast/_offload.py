# SPDX-License-Identifier: BSD-3-Clause
"""Snapshots in pinned host memory, sent there from a CUDA device while training goes on."""

from __future__ import annotations

import torch
from torch import Tensor


def pinned_bytes(count: int) -> int:
    """What torch takes for this many bytes of pinned memory: the next power of two."""
    return 1 << max(0, count - 1).bit_length()


class OffloadedRows:
    """Rows of host memory, each filled in two steps of which neither waits for the other.

    A row is written to one of two stages on the device, in the order of the current stream, and
    copied over the bus by a stream of its own. The next but one row waits for that copy, on the
    device; the host waits for nothing before :meth:`finished` is asked for.

    Args:
        capacity, n: rows and their length.
        dtype: of both.
        device: the CUDA device that the rows come from.
    """

    def __init__(self, capacity: int, n: int, dtype: torch.dtype, device: torch.device) -> None:
        self._rows = torch.empty((capacity, n), dtype=dtype, pin_memory=True, device="cpu")
        self._stages = [torch.empty(n, dtype=dtype, device=device) for _ in range(2)]
        self._device = device
        self._bus = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        for stage in self._stages:
            stage.record_stream(self._bus)  # not to be given away before that is done with it
        self._sent = [_event() for _ in range(2)]
        self._turn = 0

    @property
    def nbytes(self) -> int:
        return pinned_bytes(self._rows.nbytes) + sum(stage.nbytes for stage in self._stages)

    @property
    def stage(self) -> Tensor:
        """Where to write the next row, on the current stream."""
        torch.cuda.current_stream(self._device).wait_event(self._sent[self._turn])
        return self._stages[self._turn]

    def send(self, row: int) -> None:
        """Begin to copy what was written to the stage."""
        written = _event()
        written.record(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._bus):
            self._bus.wait_event(written)
            self._rows[row].copy_(self._stages[self._turn], non_blocking=True)
            self._sent[self._turn].record(self._bus)
        self._turn = 1 - self._turn

    def finished(self) -> Tensor:
        """All rows (capacity, n), once every copy that was begun has arrived."""
        self._bus.synchronize()
        return self._rows


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
