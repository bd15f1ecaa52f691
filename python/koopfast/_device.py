# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels: where they can run, and the calls that hand them torch's memory and streams.

Nothing here waits for the device. What a kernel needs beside its inputs and outputs (how blocks are
cut into chunks, partial sums) is allocated by torch on the current stream, and freed in its order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from koopfast import _native
from koopfast._blocks import BlockTable
from koopfast._segments import repeated
from koopfast._views import sent, view
from koopfast.errors import KoopmanWarning

# Columns of a chunk, for up to 32 snapshots: a block of a million weights alone is to keep the 1500
# or so warps busy that a large GPU holds; a chunk is to read far more than the (m, m) sums that it
# writes; and the last warps to finish are to be few among all.
_LEAST_COLUMNS, _MOST_COLUMNS, _CHUNKS, _MOST_CHUNKS = 1024, 8192, 1024, 1 << 14
# Whose kernels are called; tests put in those that run on the host.
native: Any = _native


def runs_on(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a build for these architectures, as CMake writes them, runs on such a device.

    Machine code runs on later devices of the same generation, PTX on all later ones.
    """
    own = 10 * capability[0] + capability[1]
    for architecture in architectures:
        number, _, kind = architecture.partition("-")
        if number.endswith("a"):  # for that one alone
            if number == f"{own}a":
                return True
            continue
        built, family = int(number.rstrip("f")), number.endswith("f")  # of one generation alone
        if family and built // 10 != own // 10:
            continue
        if kind != "virtual" and built // 10 == own // 10 and built <= own:
            return True
        if kind != "real" and built <= own:
            return True
    return False


def usable(device: torch.device) -> bool:
    """Whether the kernels run on this device. If a CUDA device's do not, that is warned of once."""
    if device.type != "cuda" or not native.cuda_compiled:
        return False
    index = torch.cuda.current_device() if device.index is None else device.index  # type: ignore[redundant-expr]
    return _usable(index)


@cache
def _usable(index: int) -> bool:
    capability = torch.cuda.get_device_capability(index)
    built = native.build_info()["cuda_architectures"].split()
    if not runs_on(built, capability):
        reason = f"compute capability {capability[0]}.{capability[1]}, built for {' '.join(built)}"
    else:
        with torch.cuda.device(index):
            reason = native.cuda_failure(index)
    if reason:
        warnings.warn(
            f"koopfast's CUDA kernels do not run on cuda:{index} ({reason}); plain torch does "
            "their work there, more slowly; rebuild koopfast on this machine, or update the driver",
            KoopmanWarning,
            stacklevel=2,
        )
    return not reason


def stream(device: torch.device) -> int:
    """The current stream, as an address."""
    return int(torch.cuda.current_stream(device).cuda_stream)


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Makes a device the current one, torch's and ours: kernels are launched there."""
    with torch.cuda.device(device):
        native.cuda_use(torch.cuda.current_device())
        yield


@dataclass(frozen=True)
class ChunkPlan:
    """How blocks are cut into the columns of a warp, as chunk_plan.h has it, on their device.

    It depends on each block's size alone: so do the last bits of its sums.
    """

    blocks: Tensor  # int64 (count,)
    owners: Tensor  # int64 (chunks,)
    first: Tensor  # int64 (count + 1,)
    steps: Tensor  # int64 (count,)
    slots: Tensor  # int64 (count,)
    shared: Tensor  # int64 (shared blocks,)
    partial_sums: int  # chunks of shared blocks

    @classmethod
    def of(cls, sizes: Tensor, blocks: Tensor, m: int, device: torch.device) -> ChunkPlan:
        """Of some blocks, `sizes` those of all; Gram matrices are (m, m)."""
        own, wide = sizes[blocks], max(1, m // 32)
        steps = (own // _CHUNKS).clamp(_LEAST_COLUMNS, _MOST_COLUMNS)
        steps = steps.maximum(own // _MOST_CHUNKS) * wide
        chunks = ((own + steps - 1) // steps).clamp(min=1)
        first = torch.cat((chunks.new_zeros(1), chunks.cumsum(0)))
        shared = torch.nonzero(chunks > 1).flatten()
        slots = torch.full_like(chunks, -1)
        parts = chunks[shared]
        slots[shared] = parts.cumsum(0) - parts
        owners = repeated(torch.arange(len(blocks), device="cpu"), chunks)
        return cls(
            blocks=sent(blocks, device),
            owners=sent(owners, device),
            first=sent(first, device),
            steps=sent(steps, device),
            slots=sent(slots, device),
            shared=sent(shared, device),
            partial_sums=int(parts.sum()),
        )

    @property
    def packed(self) -> tuple[int, int, int, int, int, int, int]:
        arrays = (self.owners, self.first, self.steps, self.slots, self.shared)
        addresses = [t.data_ptr() for t in arrays]
        return (*addresses, len(self.owners), len(self.shared))  # type: ignore[return-value]


def snapshot_gram(snapshots: Tensor, table: BlockTable, plan: ChunkPlan, rows: int) -> Tensor:
    """Gram matrices of the plan's blocks, (blocks, m, m) float64 on the snapshots' device."""
    device, m = snapshots.device, snapshots.shape[0]
    grams = torch.empty((len(plan.blocks), m, m), dtype=torch.float64, device=device)
    partials = torch.empty((plan.partial_sums, m, m), dtype=torch.float64, device=device)
    with current(device):
        native.cuda_snapshot_gram(
            view(snapshots),
            table.addresses(device),
            plan.blocks.data_ptr(),
            plan.packed,
            rows,
            grams.data_ptr(),
            partials.data_ptr(),
            stream(device),
        )
    return grams


def combine(
    snapshots: Tensor,
    table: BlockTable,
    plan: ChunkPlan,
    dual: bool,
    powers: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
) -> None:
    """Predicted weights of the plan's blocks from values, their offsets and bases on the device."""
    device = snapshots.device
    values, value_offsets, base = powers
    with current(device):
        native.cuda_combine(
            view(snapshots),
            table.addresses(device),
            plan.blocks.data_ptr(),
            plan.packed,
            dual,
            base.data_ptr(),
            value_offsets.data_ptr(),
            values.data_ptr(),
            base.shape[1],
            out.data_ptr(),
            max(out.shape[1], out.stride(0)),
            stream(device),
        )
