# SPDX-License-Identifier: BSD-3-Clause
"""The two passes over the snapshots in plain torch, for a GPU that the kernels were not built for.

The same results as :func:`koopfast._ops.snapshot_gram` and ``_combine``, block after block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from koopfast._blocks import BlockTable

# Numbers that are widened to double at a time.
_TILE = 1 << 24


def snapshot_gram(snapshots: Tensor, table: BlockTable, blocks: Tensor, rows: str) -> Tensor:
    """Gram matrices (len(blocks), m, m) float64, on the snapshots' device."""
    m = snapshots.shape[0]
    grams = torch.zeros((len(blocks), m, m), dtype=torch.float64, device=snapshots.device)
    for gram, block in zip(grams, blocks.tolist(), strict=True):
        for start, end, _ in _tiles(table, block, m):
            tile = snapshots[:, start:end].double()
            if rows != "states":
                last = tile[-1:] if rows == "increments_and_last" else torch.zeros_like(tile[-1:])
                tile = torch.cat((tile.diff(dim=0), last))
            gram += tile @ tile.T
    return grams


def combine(
    snapshots: Tensor,
    table: BlockTable,
    blocks: Tensor,
    dual: bool,
    powers: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
) -> None:
    """Predicted weights of some blocks, from what `operator_power` gave, on any device."""
    m, device = snapshots.shape[0], snapshots.device
    values, value_offsets, bases = powers
    k = bases.shape[1]
    for position, block in enumerate(blocks.tolist()):
        rows = m if dual else int(table.sizes[block])
        first = int(value_offsets[position])
        own = values[first : first + k * rows].view(k, rows).to(device)
        base = bases[position].to(device)[:, None]
        for start, end, column in _tiles(table, block, m):
            last = snapshots[-1, start:end].double()
            if dual:
                tile = snapshots[:-1, start:end].double()
                change = own[:, :-1] @ (tile - last)
            else:
                change = own[:, column : column + end - start]
            kept = torch.where(base == 0, torch.zeros_like(last), base * last)
            moved = (kept + change).to(out.dtype)
            stands = (base == 1) & (change == 0)
            out[:, start:end] = torch.where(stands, snapshots[-1, start:end], moved)


def _tiles(table: BlockTable, block: int, m: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of the flat vector, each small enough to be widened, and their column in the block."""
    step, column = max(1, _TILE // m), 0
    for start, length in table.segments(block):
        for begin in range(start, start + length, step):
            end = min(begin + step, start + length)
            yield begin, end, column + begin - start
        column += length
