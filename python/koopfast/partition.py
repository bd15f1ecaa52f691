# SPDX-License-Identifier: BSD-3-Clause
"""Which weights are predicted together: blocks of segments of the flat parameter vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from koopfast._checks import check_choice, whole
from koopfast._nodes import MOST_NAMES, UnitTable, by_module, node_table
from koopfast._segments import check_index_array, check_table, int64, repeated
from koopfast.errors import ConfigError
from koopfast.parameters import ParameterVector, as_named, trainable_parameters

__all__ = ["PARTITION_KINDS", "Partition"]

PARTITION_KINDS = ("network", "layer", "node", "quasi_node", "weight")
"""The names that :meth:`Partition.of` and ``KoopmanConfig(partition=...)`` know."""

# Up to this many segments, to_dict writes readable lists; beyond, tensors.
_MOST_LISTED = 256

Parameters: TypeAlias = ParameterVector | Iterable[tuple[str, Tensor]]


@dataclass(frozen=True, eq=False, repr=False)
class Partition:
    """A table of blocks over a flat vector of ``n`` numbers, in compressed rows.

    Block ``i`` consists of the segments ``block_offsets[i]`` up to ``block_offsets[i + 1]``;
    segment ``s`` covers ``segment_lengths[s]`` indices from ``segment_starts[s]`` on. Every index
    from 0 to n-1 lies in exactly one block. Make one with the class methods; the tensors must not
    be changed afterwards. Two partitions are equal if their tables are.

    **What a node is** (:meth:`node`), by the module that owns the parameters directly:

    ====================== =======================================================================
    module                 one block is
    ====================== =======================================================================
    Linear                 unit i: weight[i], bias[i]
    Conv1d/2d/3d           output channel i: weight[i], bias[i]
    ConvTranspose1d/2d/3d  output channel i: the slices of weight that lead to it (dim 1, within
                           its group), bias[i]
    Embedding(Bag)         row i: weight[i]
    Batch/Instance/Layer/  entry i: weight[i], bias[i]
    Group/RMSNorm
    MultiheadAttention     row i of in_proj_weight (or of q/k/v_proj_weight) with its entry of
                           in_proj_bias; bias_k and bias_v: a block each; out_proj is a Linear
    RNN, LSTM, GRU, cells  gate unit i of a layer and direction: weight_ih[i], weight_hh[i],
                           bias_ih[i], bias_hh[i]; a row of weight_hr (projections)
    Bilinear               output i: weight[i], bias[i]
    any other module       row i (of dim 0) of each parameter with two dimensions or more, joined
                           by entry i of the 1-D parameters with as many entries as it has rows
                           (by name, b_q to w_q, else the nearest before); any other 1-D
                           parameter and each scalar: a block
    ====================== =======================================================================

    Parameters left over by a rule (frozen, tied or added ones never disturb it) go by the last
    row of the table. A parametrized tensor (``torch.nn.utils.parametrizations``) is represented
    by its originals, a tied one belongs to the first module that owns it.

    Attributes:
        block_offsets: int64, (n_blocks + 1,), CPU.
        segment_starts: int64, (n_segments,), CPU.
        segment_lengths: int64, (n_segments,), CPU.
        n: how long the flat vector is.
        names: one a block, or None where there are none (or too many).
        kind: "network", "layer", "node", "quasi_node", "weight" or "custom".

    Raises:
        ConfigError: the arrays are no such table.
    """

    block_offsets: Tensor
    segment_starts: Tensor
    segment_lengths: Tensor
    n: int
    names: tuple[str, ...] | None = None
    kind: str = "custom"

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole("n", self.n, 0))
        for field in ("block_offsets", "segment_starts", "segment_lengths"):
            check_index_array(field, getattr(self, field))
        check_table(self)
        if self.names is not None and len(self.names) != self.n_blocks:
            raise ConfigError(
                f"names: expected one for each of {self.n_blocks} blocks, got {len(self.names)}"
            )

    @classmethod
    def of(
        cls,
        kind: str,
        model: nn.Module,
        *,
        size: int | None = None,
        parameters: Parameters | None = None,
    ) -> Partition:
        """The partition called ``kind``; "quasi_node" takes ``size``, the others do not.

        Raises:
            ConfigError: ``kind`` is not known, or ``size`` is missing or too much.
        """
        check_choice("partition", kind, PARTITION_KINDS)
        if kind == "quasi_node":
            if size is None:
                raise ConfigError("size: a quasi_node partition needs the most weights in a block")
            return cls.quasi_node(model, size, parameters=parameters)
        if size is not None:
            raise ConfigError(f"size: only a quasi_node partition takes it, got {size} for {kind}")
        make = {"network": cls.network, "layer": cls.layer, "node": cls.node, "weight": cls.weight}
        return make[kind](model, parameters=parameters)

    @classmethod
    def network(cls, model: nn.Module, *, parameters: Parameters | None = None) -> Partition:
        """One block of all trainable parameters.

        Args:
            model: the network.
            parameters: (name, parameter) pairs in the order of the flat vector; by default
                :func:`~koopfast.parameters.trainable_parameters` of the model.
        """
        n = _total(_resolve(model, parameters))
        return cls(int64([0, 1]), int64([0]), int64([n]), n, ("network",), "network")

    @classmethod
    def layer(cls, model: nn.Module, *, parameters: Parameters | None = None) -> Partition:
        """A block for each module that owns parameters directly; arguments as :meth:`network`."""
        named = _resolve(model, parameters)
        table = UnitTable()
        for name, _, pieces in by_module(model, named):
            starts = int64([[p.start for p in pieces]])
            table.add(starts, int64([[p.length for p in pieces]]), name, "")
        return cls._made(table, _total(named), "layer")

    @classmethod
    def node(cls, model: nn.Module, *, parameters: Parameters | None = None) -> Partition:
        """A block for each unit, by the table above; arguments as :meth:`network`."""
        named = _resolve(model, parameters)
        return cls._made(node_table(model, named), _total(named), "node")

    @classmethod
    def quasi_node(
        cls, model: nn.Module, size: int, *, parameters: Parameters | None = None
    ) -> Partition:
        """The nodes, those of more than ``size`` weights cut into equal parts of at most that.

        Parts of different nodes are never put together. Other arguments as :meth:`network`.

        Raises:
            ConfigError: ``size`` is not an integer of 1 or more.
        """
        return _cut(cls.node(model, parameters=parameters), whole("size", size, 1))

    @classmethod
    def weight(cls, model: nn.Module, *, parameters: Parameters | None = None) -> Partition:
        """A block for each single weight, without names; arguments as :meth:`network`."""
        n = _total(_resolve(model, parameters))
        offsets = torch.arange(n + 1, device="cpu")
        made = object.__new__(cls)  # right by construction; checking it would take longer
        made.__dict__.update(
            block_offsets=offsets,
            segment_starts=offsets[:-1],
            segment_lengths=torch.ones(n, dtype=torch.int64, device="cpu"),
            n=n,
            names=None,
            kind="weight",
        )
        return made

    @classmethod
    def from_segments(
        cls,
        blocks: Iterable[Iterable[tuple[int, int]]],
        n: int,
        *,
        names: Iterable[str] | None = None,
    ) -> Partition:
        """Blocks of your own over any flat vector of ``n`` numbers.

        Args:
            blocks: for each block its segments (start, length), length 1 or more.
            n: length of the flat vector.
            names: one a block.

        Raises:
            ConfigError: an index is covered twice or not at all, or a segment is not one.

        Example:
            >>> Partition.from_segments([[(0, 2), (5, 1)], [(2, 3)]], n=6).block_sizes.tolist()
            [3, 3]
        """
        offsets, starts, lengths = [0], [], []
        for i, block in enumerate(blocks):
            for segment in block:
                try:
                    start, length = (index(x) for x in segment)
                except (TypeError, ValueError):
                    raise ConfigError(
                        f"blocks[{i}]: expected pairs of integers (start, length), got {segment!r}"
                    ) from None
                starts.append(start)
                lengths.append(length)
            offsets.append(len(starts))
        labels = None if names is None else tuple(names)
        return cls(int64(offsets), int64(starts), int64(lengths), n, labels, "custom")

    @property
    def n_blocks(self) -> int:
        """How many blocks there are."""
        return self.block_offsets.numel() - 1

    @property
    def block_sizes(self) -> Tensor:
        """How many weights each block has, int64, (n_blocks,)."""
        ends = torch.zeros(self.segment_lengths.numel() + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(self.segment_lengths, 0, out=ends[1:])
        return ends[self.block_offsets].diff()

    def block(self, i: int) -> list[tuple[int, int]]:
        """The segments (start, length) of block ``i``.

        Raises:
            IndexError: there is no block ``i``.
        """
        if not -self.n_blocks <= i < self.n_blocks:
            raise IndexError(f"block {i}: expected one of the {self.n_blocks} blocks")
        i %= self.n_blocks
        own = slice(int(self.block_offsets[i]), int(self.block_offsets[i + 1]))
        starts, lengths = self.segment_starts[own], self.segment_lengths[own]
        return list(zip(starts.tolist(), lengths.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists; a large table as its three tensors. See :meth:`from_dict`."""
        fields: dict[str, Any] = {"kind": self.kind, "n": self.n}
        fields["names"] = None if self.names is None else list(self.names)
        if self.segment_starts.numel() <= _MOST_LISTED:
            blocks = [[list(segment) for segment in self.block(i)] for i in range(self.n_blocks)]
            fields["segments"] = blocks
        else:
            fields["block_offsets"] = self.block_offsets
            fields["segment_starts"] = self.segment_starts
            fields["segment_lengths"] = self.segment_lengths
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Partition:
        """The partition that :meth:`to_dict` wrote.

        Raises:
            ConfigError: a field is missing, or the table is none.
        """
        try:
            names = None if fields["names"] is None else tuple(fields["names"])
            kind, n = fields["kind"], fields["n"]
            if "segments" in fields:
                own = cls.from_segments(fields["segments"], n, names=names)
                arrays = (own.block_offsets, own.segment_starts, own.segment_lengths)
            else:
                arrays = (
                    fields["block_offsets"],
                    fields["segment_starts"],
                    fields["segment_lengths"],
                )
        except KeyError as missing:
            raise ConfigError(
                f"partition: expected what Partition.to_dict writes, {missing} is missing"
            ) from None
        return cls(*arrays, n, names, kind)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partition):
            return NotImplemented
        return self is other or (
            self.n == other.n
            and torch.equal(self.block_offsets, other.block_offsets)
            and torch.equal(self.segment_starts, other.segment_starts)
            and torch.equal(self.segment_lengths, other.segment_lengths)
        )

    def __hash__(self) -> int:
        return hash((self.n, self.n_blocks, self.segment_starts.numel()))

    def __repr__(self) -> str:
        size = f", {self._size_range()} weights each" if self.n_blocks else ""
        return f"Partition({self.kind}: n={self.n}, {self.n_blocks} blocks{size})"

    @classmethod
    def _made(cls, table: UnitTable, n: int, kind: str) -> Partition:
        offsets, starts, lengths, names = table.columns()
        return cls(offsets, starts, lengths, n, names, kind)

    def _size_range(self) -> str:
        least, most = (int(x) for x in self.block_sizes.aminmax())
        return str(least) if least == most else f"{least} to {most}"


def _cut(nodes: Partition, size: int) -> Partition:
    """Blocks larger than ``size`` in ceil(block / size) parts that differ by one at most."""
    sizes = nodes.block_sizes
    parts = (sizes + size - 1) // size
    block = repeated(torch.arange(nodes.n_blocks, device="cpu"), parts)
    part = torch.arange(block.numel(), device="cpu") - (parts.cumsum(0) - parts)[block]
    # Positions count weights in table order: block after block, segment after segment.
    block_at = sizes.cumsum(0) - sizes
    part_at = block_at[block] + part * sizes[block] // parts[block]
    segment_at = nodes.segment_lengths.cumsum(0) - nodes.segment_lengths
    at = torch.unique(torch.cat([part_at, segment_at]))
    segment = torch.searchsorted(segment_at, at, right=True) - 1
    starts = nodes.segment_starts[segment] + at - segment_at[segment]
    end = int64([nodes.n])
    offsets = torch.searchsorted(at, torch.cat([part_at, end]))
    names = None
    if nodes.names is not None and block.numel() <= MOST_NAMES:
        of_block = zip(nodes.names, parts.tolist(), strict=True)
        names = tuple(f"{name}/{j}" if k > 1 else name for name, k in of_block for j in range(k))
    lengths = torch.cat([at, end]).diff()
    return Partition(offsets, starts, lengths, nodes.n, names, "quasi_node")


def _resolve(model: nn.Module, parameters: Parameters | None) -> list[tuple[str, Tensor]]:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model: expected a torch.nn.Module, got {type(model).__name__}; for a flat vector "
            "without a model use Partition.from_segments"
        )
    return list(trainable_parameters(model)) if parameters is None else as_named(parameters)


def _total(named: Sequence[tuple[str, Tensor]]) -> int:
    return sum(p.numel() for _, p in named)
