# SPDX-License-Identifier: BSD-3-Clause
"""Which weights of which blocks a rank holds, of parameters that are sharded over a device mesh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from koopfast import _blocks, _ops
from koopfast._options import FitOptions
from koopfast._segments import joined, repeated
from koopfast.errors import ConfigError, UnsupportedParameterError
from koopfast.parameters import is_sharded
from koopfast.partition import Partition

__all__ = ["Cells", "cells_of", "local_indices", "multiplicity", "stacked"]


@dataclass(frozen=True)
class Cells:
    """The local parts of blocks: a cell is what one block has on this rank in equal copies."""

    table: _blocks.BlockTable  # of the cells, over the local flat vector
    block: Tensor  # int64 (n_cells,), ascending: whose part it is
    weight: Tensor  # float64 (n_cells,): 1 / how many ranks hold the same
    shares: tuple[float, ...]  # of each parameter: local weights / how many ranks hold the same

    def grams(self, snapshots: Tensor, blocks: Tensor, options: FitOptions) -> Tensor:
        """This rank's part of the Gram matrices of consecutive blocks, (len(blocks), m, m).

        The parts of all ranks sum up to what one process would have. float64, CPU.
        """
        m, first = snapshots.shape[0], int(blocks[0])
        total = torch.zeros((len(blocks), m, m), dtype=torch.float64, device="cpu")
        begin, end = torch.searchsorted(self.block, torch.stack((blocks[0], blocks[-1] + 1)))
        own = torch.arange(int(begin), int(end), device="cpu")
        if len(own) > 0:
            grams = _ops.observed_grams(snapshots, self.table, own, options)
            grams *= self.weight[own, None, None]
            total.index_add_(0, self.block[own] - first, grams)
        return total


def cells_of(partition: Partition, named: Sequence[tuple[str, Tensor]], ranks: int) -> Cells:
    """The cells of a partition of all weights, (name, parameter) by (name, parameter).

    Args:
        partition: over the flat vector of all weights, each once.
        named: DTensors, and plain tensors that every rank holds.
        ranks: how many ranks there are.

    Raises:
        UnsupportedParameterError: a parameter is placed in a way that has no fit.
    """
    starts, local_starts, lengths, copies, shares = [], [], [], [], []
    at = local_at = 0
    for name, p in named:
        count = multiplicity(name, p, ranks)
        indices = local_indices(name, p)
        begin, own, length = _runs(indices, p.shape)
        starts.append(begin + at)
        local_starts.append(own + local_at)
        lengths.append(length)
        copies.append(torch.full_like(begin, count))
        held = int(length.sum())
        shares.append(held / count)
        at, local_at = at + p.numel(), local_at + held
    pieces = _cut(partition, *(torch.cat(t) for t in (starts, local_starts, lengths, copies)))
    block, count_of, begin, length = pieces
    first = torch.ones(len(block), dtype=torch.bool, device="cpu")
    first[1:] = (block[1:] != block[:-1]) | (count_of[1:] != count_of[:-1])
    heads = first.nonzero().flatten()
    offsets = torch.cat((heads, torch.tensor([len(block)], device="cpu")))
    local = Partition(*joined(offsets, begin, length), local_at)
    return Cells(_blocks.BlockTable(local), block[heads], 1.0 / count_of[heads], tuple(shares))


def _cut(
    partition: Partition, starts: Tensor, local_starts: Tensor, lengths: Tensor, copies: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs of weights cut where segments begin: block, copies, local start and length of each
    piece, by block, number of copies and place in the block."""
    order = torch.argsort(partition.segment_starts)
    begins = partition.segment_starts[order]
    # Segments that begin inside a run, or at its end (then there is nothing to cut).
    low = torch.searchsorted(begins, starts, right=True)
    high = torch.searchsorted(begins, starts + lengths)
    run = repeated(torch.arange(len(starts), device="cpu"), high - low + 1)
    within = torch.arange(len(run), device="cpu") - repeated(
        (high - low + 1).cumsum(0) - (high - low + 1), high - low + 1
    )
    at = torch.where(within == 0, starts[run], begins[(low[run] + within - 1).clamp(min=0)])
    end = torch.cat((at[1:], at.new_zeros(1)))
    last = within == (high - low)[run]
    end = torch.where(last, (starts + lengths)[run], end)
    segment = order[torch.searchsorted(begins, at, right=True) - 1]
    block = torch.searchsorted(partition.block_offsets, segment, right=True) - 1
    local = local_starts[run] + at - starts[run]
    sort = torch.from_numpy(
        np.lexsort((at.numpy(), segment.numpy(), copies[run].numpy(), block.numpy()))
    )
    return block[sort], copies[run][sort], local[sort], (end - at)[sort]


def multiplicity(name: str, p: Any, ranks: int) -> int:
    """How many of the ranks hold the same weights of a parameter.

    Raises:
        UnsupportedParameterError: a placement is partial.
        ConfigError: the ranks cannot be shared out so.
    """
    if not is_sharded(p):
        return ranks
    parts = 1
    for dim, placement in enumerate(p.placements):
        if placement.is_replicate():
            continue
        if not _is_shard(placement):
            raise UnsupportedParameterError(
                f"parameter '{name}': expected placements Shard and Replicate, got {placement}; "
                "a sum that is still to be taken is no weight, so redistribute the parameter"
            )
        parts *= p.device_mesh.size(dim)
    if ranks % parts != 0:
        raise ConfigError(
            f"process_group: parameter '{name}' is in {parts} parts, which {ranks} ranks cannot "
            "hold equally often; pass the group of all ranks of its device mesh"
        )
    return ranks // parts


def _is_shard(placement: Any) -> bool:
    return placement.is_shard() or hasattr(placement, "split_factor")


def local_indices(name: str, p: Any) -> list[Tensor]:
    """For each dimension, which of the parameter's indices this rank holds, ascending or not.

    Shards are cut from left to right along the mesh, as ``torch.chunk`` cuts. Strided ones (of
    fully_shard over tensor parallel) come after those to their right that cut the same dimension.

    Raises:
        UnsupportedParameterError: this is not what the rank holds.
    """
    indices = [torch.arange(size, device="cpu") for size in p.shape]
    if not is_sharded(p):
        return indices
    coordinate = p.device_mesh.get_coordinate()
    if coordinate is None:
        raise UnsupportedParameterError(
            f"parameter '{name}': expected a shard on every rank of the process group, but this "
            "rank is not in its device mesh; pass process_group=, the group of the mesh's ranks"
        )
    shards = [(dim, q) for dim, q in enumerate(p.placements) if _is_shard(q)]
    strided = [pair for pair in shards if hasattr(pair[1], "split_factor")]
    plain = [pair for pair in shards if not hasattr(pair[1], "split_factor")]
    for dim, placement in (*plain, *reversed(strided)):
        along, parts = placement.dim % len(p.shape), p.device_mesh.size(dim)
        size = -(-len(indices[along]) // parts)
        begin = size * coordinate[dim]
        indices[along] = indices[along][begin : begin + size]
    with torch.no_grad():
        held = p.to_local().shape
    if tuple(held) != tuple(map(len, indices)) and 0 not in (
        held.numel(),
        math.prod(map(len, indices)),
    ):
        raise UnsupportedParameterError(
            f"parameter '{name}': with placements {p.placements} expected a shard of shape "
            f"{tuple(map(len, indices))}, got {tuple(held)}; shard it with fully_shard or "
            "parallelize_module"
        )
    return indices


def stacked(rows: Tensor, p: Any) -> Tensor:
    """Local values (k, local weights) of a parameter as k of it, placed as it is: (k, *shape)."""
    if not is_sharded(p):
        return rows.view(len(rows), *p.shape)
    with torch.no_grad():
        local = p.to_local().shape
    shape = torch.Size((len(rows), *p.shape))
    stride = tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))
    placements = [_moved_on(placement) for placement in p.placements]
    made: Tensor = type(p).from_local(
        rows.view(len(rows), *local),
        p.device_mesh,
        placements,
        run_check=False,
        shape=shape,
        stride=stride,
    )
    return made


def _moved_on(placement: Any) -> Any:
    """The placement of the same dimension where another one comes before it."""
    if placement.is_replicate():
        return placement
    factor = getattr(placement, "split_factor", None)
    kind = type(placement)
    if factor is None:
        return kind(placement.dim + 1)
    return kind(placement.dim + 1, split_factor=factor)


def _runs(indices: Sequence[Tensor], shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Where neighbouring weights of a shard are neighbours in the parameter too: start there,
    start in the shard, and length of each run, in the shard's order."""
    held = [len(own) for own in indices]
    if math.prod(held) == 0:
        return (torch.empty(0, dtype=torch.int64, device="cpu"),) * 3
    cut = [d for d, own in enumerate(indices) if len(own) != shape[d]]
    if not cut:
        zero = torch.zeros(1, dtype=torch.int64, device="cpu")
        return zero, zero, torch.tensor([math.prod(shape)], device="cpu")
    innermost = cut[-1]
    own, inner = indices[innermost], math.prod(shape[innermost + 1 :])
    heads = torch.cat((torch.tensor([0], device="cpu"), (own.diff() != 1).nonzero().flatten() + 1))
    counts = torch.cat((heads, torch.tensor([len(own)], device="cpu"))).diff()
    start, local, length = own[heads] * inner, heads * inner, counts * inner
    for d in reversed(range(innermost)):
        outer, step = indices[d], math.prod(shape[d + 1 :])
        local_step = math.prod(held[d + 1 :])
        start = (outer[:, None] * step + start).flatten()
        local = (torch.arange(len(outer), device="cpu")[:, None] * local_step + local).flatten()
        length = length.repeat(len(outer))
    return start, local, length
