# SPDX-License-Identifier: BSD-3-Clause
"""Tables of segments: what the blocks of a partition are made of, and what is wrong with them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from koopfast.errors import ConfigError


class SegmentTable(Protocol):
    """The tables of a :class:`~koopfast.partition.Partition`."""

    @property
    def block_offsets(self) -> Tensor: ...
    @property
    def segment_starts(self) -> Tensor: ...
    @property
    def segment_lengths(self) -> Tensor: ...
    @property
    def n(self) -> int: ...


def joined(offsets: Tensor, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same table with neighbouring segments of a block made one (fewer, longer reads)."""
    first = torch.ones(starts.numel(), dtype=torch.bool, device="cpu")
    first[1:] = starts[1:] != starts[:-1] + lengths[:-1]
    first[offsets[:-1]] = True
    kept = first.nonzero().reshape(-1)
    ends = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(lengths, 0, out=ends[1:])
    bounds = torch.cat([kept, int64([starts.numel()])])
    return torch.searchsorted(kept, offsets), starts[kept], ends[bounds].diff()


def repeated(values: Tensor, counts: Tensor) -> Tensor:
    """Each of ``values`` as often as ``counts`` says, both (k,) int64 on the CPU.

    torch.repeat_interleave enters an OpenMP region for any size, and waits for ever in a forked
    child, where the parent's threads are missing.
    """
    return torch.from_numpy(np.repeat(values.numpy(), counts.numpy()))


def int64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def check_index_array(field: str, array: object) -> None:
    if (
        not isinstance(array, Tensor)
        or array.dtype != torch.int64
        or array.device.type != "cpu"
        or array.dim() != 1
    ):
        came = (
            f"{array.dtype} of shape {tuple(array.shape)} on {array.device}"
            if isinstance(array, Tensor)
            else type(array).__name__
        )
        raise ConfigError(f"{field}: expected a 1-D int64 tensor on the CPU, got {came}")


def check_table(p: SegmentTable) -> None:
    offsets, starts, lengths = p.block_offsets, p.segment_starts, p.segment_lengths
    count = starts.numel()
    if lengths.numel() != count:
        raise ConfigError(
            f"segment_lengths: expected one for each of {count} segments, got {lengths.numel()}"
        )
    if offsets.numel() == 0 or int(offsets[0]) != 0 or int(offsets[-1]) != count:
        raise ConfigError(
            f"block_offsets: expected to begin with 0 and to end with {count}, the number of "
            f"segments, got {offsets.tolist() if offsets.numel() < 9 else '...'}"
        )
    empty = (offsets.diff() < 1).nonzero()
    if empty.numel():
        raise ConfigError(f"block {int(empty[0])}: expected at least one segment, got none")
    outside = ((lengths < 1) | (starts < 0) | (starts > p.n - lengths)).nonzero()
    if outside.numel():
        s = int(outside[0])
        raise ConfigError(
            f"block {_block_of(p, s)}: expected segments of length 1 or more within the indices "
            f"0 to {p.n - 1}, got (start={int(starts[s])}, length={int(lengths[s])})"
        )
    _check_coverage(p)


def _check_coverage(p: SegmentTable) -> None:
    """Sorted by start, each segment must begin where the one before it ends, from 0 to n."""
    starts, lengths = p.segment_starts, p.segment_lengths
    order = None
    if bool((starts[1:] < starts[:-1]).any()):  # sorting ten million is the dear part
        order = torch.argsort(starts)
        starts, lengths = starts[order], lengths[order]
    ends = torch.cat([int64([0]), starts + lengths])
    begins = torch.cat([starts, int64([p.n])])
    wrong = (ends != begins).nonzero()
    if not wrong.numel():
        return
    k = int(wrong[0])
    end, begin = int(ends[k]), int(begins[k])
    if begin > end:
        raise ConfigError(
            f"index {end}: expected every index from 0 to {p.n - 1} in one block, got it in none; "
            "add it to a block (a block of its own will do)"
        )
    both = [int(order[s]) if order is not None else s for s in (k - 1, k)]
    raise ConfigError(
        f"index {begin}: expected every index in one block, got it in block "
        f"{_block_of(p, both[0])} and again in block {_block_of(p, both[1])}"
    )


def _block_of(p: SegmentTable, segment: int) -> int:
    return int(torch.searchsorted(p.block_offsets, segment, right=True)) - 1
