# SPDX-License-Identifier: BSD-3-Clause
"""Blocks as native code reads them, and what a fit leaves of each."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from koopfast import _native
from koopfast._segments import repeated
from koopfast._views import sent, thread_count
from koopfast.partition import Partition

# kMostMembers of operator_fit.h.
_MOST_MEMBERS = 4
# Operators of so many entries together (half a megabyte) are not worth packing more tightly.
_FEW_ENTRIES = 1 << 16

_Plan = TypeVar("_Plan")
# Spectrum of operator_fit.h; those computed afterwards are the "later" ones.
_PENDING_WITH_GRAM, _PENDING, UNUSABLE_SPECTRUM, USABLE_SPECTRUM, _LATER_USABLE = -2, -1, 0, 1, 3


class BlockTable:
    """A partition as native code reads it, with the columns that precede each segment."""

    def __init__(self, partition: Partition) -> None:
        offsets, lengths = partition.block_offsets, partition.segment_lengths
        ends = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
        self.sizes = ends[offsets[1:]] - ends[offsets[:-1]]
        columns = ends[:-1] - repeated(ends[offsets[:-1]], offsets.diff())
        self._tensors = tuple(
            t.contiguous() for t in (offsets, partition.segment_starts, lengths, columns)
        )
        self._copies: dict[torch.device, tuple[Tensor, ...]] = {}
        self._last_plan: tuple[Hashable, object] | None = None

    def plan(self, key: Hashable, make: Callable[[], _Plan]) -> _Plan:
        """What ``make`` returns, kept until it is asked for with another key."""
        last = self._last_plan
        if last is None or last[0] != key:
            self._last_plan = last = key, make()
        return cast("_Plan", last[1])

    @classmethod
    def of(cls, partition: Partition) -> BlockTable:
        """The table of ``partition``, made once as long as that lives."""
        table = _TABLES.get(partition)
        if table is None:
            table = _TABLES[partition] = cls(partition)
        return table

    def addresses(self, device: torch.device | None = None) -> tuple[int, ...]:
        """As `BlockTable` of block_table.h, on the CPU or on a device; copied there once."""
        if device is None or device.type == "cpu":
            return tuple(t.data_ptr() for t in self._tensors)
        if device not in self._copies:
            self._copies[device] = tuple(t.to(device) for t in self._tensors)
        return tuple(t.data_ptr() for t in self._copies[device])

    def segments(self, block: int) -> list[tuple[int, int]]:
        """(start, length) of a block's segments."""
        offsets, starts, lengths, _ = self._tensors
        own = slice(int(offsets[block]), int(offsets[block + 1]))
        return list(zip(starts[own].tolist(), lengths[own].tolist(), strict=True))


_TABLES: weakref.WeakKeyDictionary[Partition, BlockTable] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class FittedBlocks:
    """Every block's small form, packed; block b's rank-k arrays start at its offsets."""

    dual: Tensor  # bool (n_blocks,): the lift holds m snapshot coefficients, not n_b weights
    rows: Tensor  # int64 (n_blocks,): rows of the lift
    capacity: Tensor  # int64 (n_blocks,)
    vector_offsets: Tensor  # int64 (n_blocks,)
    matrix_offsets: Tensor  # int64 (n_blocks,)
    lift_offsets: Tensor  # int64 (n_blocks,)
    status: Tensor  # int32 (n_blocks,)
    rank: Tensor  # int64 (n_blocks,)
    spectrum: Tensor  # int32 (n_blocks,): Spectrum of operator_fit.h
    hindcast_error: Tensor  # float64 (n_blocks,)
    trusted_horizon: Tensor  # float64 (n_blocks,)
    increments: Tensor  # int32 (n_blocks,): whether these were observed, not states
    delays: Tensor  # int64 (n_blocks,)
    block_average: Tensor  # int64 (n_blocks,)
    estimator: Tensor  # int32 (n_blocks,), as in ESTIMATOR_NAMES
    # float64 (n_blocks, 4 operators of which the block's is the mean, 4), heaviest first: delays,
    # block_average, snapshots, weight (0: no operator); (n_blocks, 0, 4) where nothing is chosen
    mixture: Tensor
    origin_offsets: Tensor  # int64 (n_blocks,)
    singular_values: Tensor  # float64
    singular_offsets: Tensor  # int64 (n_blocks + 1,)
    operators: Tensor  # float64
    start: Tensor  # float64
    lifts: Tensor  # float64; where lifts may be operators, it begins with these
    grams: Tensor  # float64: lower triangles, block b's at gram_offsets
    origins: Tensor  # float64, one a row of the lift
    eigenvalues: Tensor  # complex128
    eigenvectors: Tensor  # complex128
    amplitudes: Tensor  # complex128

    _INDEXED = ("capacity", "vector_offsets", "matrix_offsets")
    _RESULTS = (
        "lift_offsets",
        "status",
        "rank",
        "spectrum",
        "hindcast_error",
        "trusted_horizon",
        "increments",
        "delays",
        "block_average",
        "estimator",
        "mixture",
    )
    _PACKED = (
        "singular_values",
        "operators",
        "start",
        "lifts",
        "grams",
        "origins",
        "eigenvalues",
        "eigenvectors",
        "amplitudes",
    )

    @property
    def gram_offsets(self) -> Tensor:
        """int64 (n_blocks,): those of k (k+1) / 2 numbers a block, as `gram_offset` of
        operator_fit.h."""
        return (self.matrix_offsets + self.vector_offsets) // 2

    def selected(self, blocks: Tensor) -> tuple[dict[str, Tensor], tuple[int, ...]]:
        """The per-block arrays of some blocks, and all addresses as `OperatorArrays` lists them.

        Those of all blocks in order, on the CPU, are the arrays themselves, not copies.
        """
        names = (*self._INDEXED, *self._RESULTS, "origin_offsets")
        own = {name: getattr(self, name) for name in names}
        if not self._is_everything(blocks) or not all(t.is_contiguous() for t in own.values()):
            own = {name: array[blocks] for name, array in own.items()}
        addresses = [own[name].data_ptr() for name in names]
        addresses += [getattr(self, name).data_ptr() for name in self._PACKED]
        return own, tuple(addresses)

    @cached_property
    def forms(self) -> list[tuple[bool, Tensor]]:
        """The blocks in dual form and those in primal form, where there are any; on the CPU."""
        dual = self.dual.numpy()
        found = [(form, np.flatnonzero(dual == form)) for form in (True, False)]
        return [(form, torch.from_numpy(blocks)) for form, blocks in found if len(blocks) > 0]

    def _is_everything(self, blocks: Tensor) -> bool:
        """Whether these are all blocks, in order; not asked on a GPU, which would be waited for."""
        count = len(self.rank)
        if len(blocks) != count or blocks.device.type != "cpu":
            return False
        return bool((blocks.numpy() == np.arange(count)).all())

    @cached_property
    def with_spectrum(self) -> FittedBlocks:
        """The same with every block's eigenvalues, eigenvectors and amplitudes.

        A fit leaves out those that no prediction at whole horizons needs.
        """
        if not bool((self.spectrum <= _PENDING).any()):
            return self
        copied = ("spectrum", "eigenvalues", "eigenvectors", "amplitudes")
        room = {name: getattr(self, name).clone() for name in copied}
        whole = dataclasses.replace(
            self, singular_values=self.start.new_empty(len(self.eigenvalues)), **room
        )
        everything = torch.arange(len(self.rank), device="cpu")
        own, addresses = whole.selected(everything)
        _native.operator_spectrum(addresses, len(everything), thread_count())
        whole.spectrum.copy_(own["spectrum"])
        # They stay where they were, which repacking has not moved.
        late = self.spectrum == _PENDING_WITH_GRAM
        starts, ranks = self.singular_offsets[:-1][late], self.rank[late]
        shown = self.singular_values.clone()
        shown[ragged(starts, ranks)] = whole.singular_values[
            ragged(self.vector_offsets[late], ranks)
        ]
        return dataclasses.replace(whole, singular_values=shown)

    @property
    def with_singular_values(self) -> FittedBlocks:
        """The same with every block's singular values: a fit that keeps all directions of a block,
        and sees from a bound that it may, leaves them out."""
        return self.with_spectrum if bool((self.spectrum == _PENDING_WITH_GRAM).any()) else self

    def has_eigenbasis(self, block: int) -> bool:
        """Whether a block's eigenvectors (see :attr:`with_spectrum`) are fit to compute with."""
        return int(self.spectrum[block]) in (USABLE_SPECTRUM, _LATER_USABLE)

    def keep(self, blocks: Tensor, own: dict[str, Tensor]) -> None:
        """Take over what native code wrote to the arrays of :meth:`selected`."""
        for name in self._RESULTS:
            if own[name] is not getattr(self, name):
                getattr(self, name)[blocks] = own[name]

    def repacked(self) -> FittedBlocks:
        """The same without the room that ranks below their capacity left, where that is much."""
        rank = self.rank
        if len(self.operators) <= _FEW_ENTRIES:
            return self
        if 2 * int((rank**2).sum()) > int((self.capacity**2).sum()):
            return self
        lift_counts = self.rows * rank
        kept = rank * (rank + 1) // 2 if len(self.grams) > 0 else torch.zeros_like(rank)
        vectors = ragged(self.vector_offsets, rank)
        matrices = ragged(self.matrix_offsets, rank**2)
        return dataclasses.replace(
            self,
            capacity=rank,
            vector_offsets=starts(rank),
            matrix_offsets=starts(rank**2),
            lift_offsets=starts(lift_counts),
            operators=self.operators[matrices],
            start=self.start[vectors],
            lifts=self.lifts[ragged(self.lift_offsets, lift_counts)],
            grams=self.grams[ragged(self.gram_offsets, kept)],
            eigenvalues=self.eigenvalues[vectors],
            eigenvectors=self.eigenvectors[matrices],
            amplitudes=self.amplitudes[vectors],
        )


def starts(counts: Tensor) -> Tensor:
    """Where each of consecutive runs of these lengths begins."""
    return counts.cumsum(0) - counts


def ragged(offsets: Tensor, counts: Tensor) -> Tensor:
    """Indices of counts[b] entries from offsets[b] on, for one b after another."""
    within = torch.arange(int(counts.sum()), device="cpu") - repeated(starts(counts), counts)
    return repeated(offsets, counts) + within


@dataclass(frozen=True)
class Layout:
    """Where each block's small form lies in the packed arrays of :class:`FittedBlocks`."""

    dual: Tensor
    rows: Tensor
    capacity: Tensor
    vector_offsets: Tensor
    matrix_offsets: Tensor
    lift_offsets: Tensor
    origin_offsets: Tensor
    singular_offsets: Tensor
    vectors: int
    matrices: int
    lifts: int
    origins: int
    mixed: bool
    shared: bool

    @classmethod
    def of(
        cls,
        dual: Tensor,
        rows: Tensor,
        capacity: Tensor,
        *,
        averaged: bool = False,
        mixed: bool = False,
        shared: bool = False,
        device: torch.device | str = "cpu",
    ) -> Layout:
        """That of blocks of these forms, rows of the lift, and most ranks; with origins where
        snapshots may be averaged, and with what was mixed where operators may be. ``shared``: a
        lift that is its operator need not be written again, and grams are kept."""
        matrices = int((capacity**2).sum())
        return cls(
            dual=sent(dual, device),
            rows=sent(rows, device),
            capacity=sent(capacity, device),
            vector_offsets=sent(starts(capacity), device),
            matrix_offsets=sent(starts(capacity**2), device),
            lift_offsets=sent(starts(rows * capacity) + (matrices if shared else 0), device),
            origin_offsets=sent(starts(rows) if averaged else torch.zeros_like(rows), device),
            singular_offsets=sent(torch.cat((capacity.new_zeros(1), capacity.cumsum(0))), device),
            vectors=int(capacity.sum()),
            matrices=matrices,
            lifts=int((rows * capacity).sum()),
            origins=int(rows.sum()) if averaged else 0,
            mixed=mixed,
            shared=shared,
        )

    def room(self) -> FittedBlocks:
        """New memory for what is fitted."""
        device, count = self.capacity.device, len(self.capacity)
        vectors, matrices, real, pairs = (
            self.vectors,
            self.matrices,
            torch.float64,
            torch.complex128,
        )

        def room(size: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        written = room((matrices if self.shared else 0) + self.lifts, real)
        members = _MOST_MEMBERS if self.mixed else 0
        return FittedBlocks(
            dual=self.dual,
            rows=self.rows,
            capacity=self.capacity,
            vector_offsets=self.vector_offsets,
            matrix_offsets=self.matrix_offsets,
            lift_offsets=self.lift_offsets.clone(),  # a fit may move lifts
            status=room(count, torch.int32),
            rank=torch.zeros(count, dtype=torch.int64, device=device),
            spectrum=room(count, torch.int32),
            hindcast_error=room(count, real),
            trusted_horizon=room(count, real),
            increments=room(count, torch.int32),
            delays=room(count, torch.int64),
            block_average=room(count, torch.int64),
            estimator=room(count, torch.int32),
            mixture=torch.zeros((count, members, 4), dtype=real, device=device),
            origin_offsets=self.origin_offsets,
            singular_values=room(vectors, real),
            singular_offsets=self.singular_offsets,
            operators=written[:matrices] if self.shared else room(matrices, real),
            start=room(vectors, real),
            lifts=written,
            grams=room((matrices + vectors) // 2 if self.shared else 0, real),
            origins=torch.zeros(self.origins, dtype=real, device=device),
            eigenvalues=room(vectors, pairs),
            eigenvectors=room(matrices, pairs),
            amplitudes=room(vectors, pairs),
        )
