# SPDX-License-Identifier: BSD-3-Clause
"""Second moments of small blocks as snapshots arrive, and the fit from them: native calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from koopfast import _device, _native
from koopfast._blocks import BlockTable, FittedBlocks, starts
from koopfast._ops import packed_options, room_for
from koopfast._options import FitOptions
from koopfast._views import View, thread_count, view

# Moments that one thread adds to in about 0.1 ms, for 32 snapshots.
_LAGS_OF_ONE_THREAD = 1 << 14


@dataclass(frozen=True)
class Moments:
    """What was summed of every block, as `MomentStream` of moment_stream.h says."""

    lag_offsets: Tensor  # int64 (n_blocks,)
    sum_offsets: Tensor  # int64 (n_blocks,)
    lags: Tensor  # float64, (delays + 1) n_b^2 a block
    sums: Tensor  # float64, n_b a block for states, else empty

    @classmethod
    def zeros(
        cls, table: BlockTable, options: FitOptions, device: torch.device | str = "cpu"
    ) -> Moments:
        squares, real = (int(options.delays) + 1) * table.sizes**2, torch.float64
        count = 0 if options.increments else int(table.sizes.sum())
        return cls(
            lag_offsets=starts(squares).to(device),
            sum_offsets=starts(table.sizes).to(device),
            lags=torch.zeros(int(squares.sum()), dtype=real, device=device),
            sums=torch.zeros(count, dtype=real, device=device),
        )

    def cpu(self) -> Moments:
        """The same on the host."""
        return Moments(*(t.cpu() for t in self._tensors))

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self._tensors)

    @property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.lag_offsets, self.sum_offsets, self.lags, self.sums


@dataclass(frozen=True)
class MomentStream:
    """Moments and the snapshots that are not, or not wholly, in them."""

    head: Tensor  # (q + 1, n) the first snapshots
    recent: Tensor  # snapshots max(0, folded - q) .. the newest
    folded: int  # observables in the moments
    options: FitOptions
    moments: Moments | None  # None where nothing is folded

    def addresses(
        self, table: BlockTable
    ) -> tuple[Moments, tuple[View, View, int, bool, int, int, int, int, int]]:
        """As `MomentStream` of moment_stream.h, and the owner of what it points to."""
        none = torch.zeros(len(table.sizes), dtype=torch.int64, device="cpu")
        empty = torch.empty(0, dtype=torch.float64, device="cpu")
        own = self.moments or Moments(none, none, empty, empty)
        return own, (
            view(self.head),
            view(self.recent),
            self.folded,
            self.options.increments,
            int(self.options.delays),
            own.lag_offsets.data_ptr(),
            own.sum_offsets.data_ptr(),
            own.lags.data_ptr(),
            own.sums.data_ptr(),
        )


def fold_moments(stream: MomentStream, table: BlockTable, until: int) -> None:
    """Add the recent snapshots' observables below ``until`` to the moments."""
    owner, addresses = stream.addresses(table)
    device = stream.recent.device
    if _device.usable(device):
        with _device.current(device):
            _device.native.cuda_fold_moments(
                addresses, table.addresses(device), len(table.sizes), until, _device.stream(device)
            )
        return
    # Threads cost more to wake than a small network's moments take.
    threads = thread_count() if owner.lags.numel() > _LAGS_OF_ONE_THREAD else 1
    _native.fold_moments(addresses, table.addresses(), len(table.sizes), until, threads)


def moment_fit(
    stream: MomentStream, table: BlockTable, options: FitOptions, m: int, tail: int
) -> FittedBlocks:
    """Fit every block, in its primal form, to all ``m`` snapshots that the stream has seen.

    ``rank="auto"`` predicts the latest ``tail`` observables from those before them.
    """
    primal = torch.zeros_like(table.sizes, dtype=torch.bool)
    fitted = room_for(options, m, table.sizes, primal)
    blocks = torch.arange(len(primal), device="cpu")
    own, addresses = fitted.selected(blocks)
    # `owner` must outlive the call: it owns the memory behind the addresses.
    owner, stream_addresses = stream.addresses(table)
    _native.moment_fit(
        stream_addresses,
        table.addresses(),
        len(blocks),
        tail,
        packed_options(options),
        addresses,
        thread_count(),
    )
    del owner
    fitted.keep(blocks, own)
    return fitted.repacked()
