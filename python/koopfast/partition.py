# SPDX-License-Identifier: BSD-3-Clause
"""Which weights are predicted together: blocks of segments of the flat parameter vector."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from koopfast._checks import check_choice, whole
from koopfast.errors import ConfigError
from koopfast.parameters import ParameterVector, as_named, trainable_parameters

__all__ = ["PARTITION_KINDS", "Partition", "joined", "repeated"]

PARTITION_KINDS = ("network", "layer", "node", "quasi_node", "weight")
"""The names that :meth:`Partition.of` and ``KoopmanConfig(partition=...)`` know."""

# Beyond this many blocks, names would cost more than the table itself (and nobody reads them).
_MOST_NAMES = 100_000
# Up to this many segments, to_dict writes readable lists; beyond, tensors.
_MOST_LISTED = 256

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

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
            _check_index_array(field, getattr(self, field))
        _check_table(self)
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
        return cls(_int64([0, 1]), _int64([0]), _int64([n]), n, ("network",), "network")

    @classmethod
    def layer(cls, model: nn.Module, *, parameters: Parameters | None = None) -> Partition:
        """A block for each module that owns parameters directly; arguments as :meth:`network`."""
        named = _resolve(model, parameters)
        table = _Table()
        for name, _, pieces in _by_module(model, named):
            starts = _int64([[p.start for p in pieces]])
            table.add(starts, _int64([[p.length for p in pieces]]), name, "")
        return table.partition(_total(named), "layer")

    @classmethod
    def node(cls, model: nn.Module, *, parameters: Parameters | None = None) -> Partition:
        """A block for each unit, by the table above; arguments as :meth:`network`."""
        named = _resolve(model, parameters)
        return _node_table(model, named).partition(_total(named), "node")

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
        offsets = torch.arange(n + 1)
        made = object.__new__(cls)  # right by construction; checking it would take longer
        made.__dict__.update(
            block_offsets=offsets,
            segment_starts=offsets[:-1],
            segment_lengths=torch.ones(n, dtype=torch.int64),
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
        return cls(_int64(offsets), _int64(starts), _int64(lengths), n, labels, "custom")

    @property
    def n_blocks(self) -> int:
        """How many blocks there are."""
        return self.block_offsets.numel() - 1

    @property
    def block_sizes(self) -> Tensor:
        """How many weights each block has, int64, (n_blocks,)."""
        ends = torch.zeros(self.segment_lengths.numel() + 1, dtype=torch.int64)
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
        return (
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

    def _size_range(self) -> str:
        least, most = (int(x) for x in self.block_sizes.aminmax())
        return str(least) if least == most else f"{least} to {most}"


@dataclass(frozen=True)
class _Piece:
    """A parameter, or a run of its rows, as a place in the flat vector and under a role."""

    role: str  # the name under which its module uses it: "weight", "bias", ...
    start: int
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 0


class _Table:
    """Collects rectangles of segments (blocks by segments a block) into one Partition."""

    def __init__(self) -> None:
        self._starts: list[Tensor] = []
        self._lengths: list[Tensor] = []
        self._block_counts: list[int] = []
        self._segment_counts: list[int] = []
        self._names: list[tuple[str, str]] = []

    def add(self, starts: Tensor, lengths: Tensor, name: str, index: str = "[{}]") -> None:
        """Blocks named ``name`` with their index: (blocks, segments) starts and lengths."""
        self._starts.append(starts.reshape(-1))
        self._lengths.append(lengths.expand(starts.shape).reshape(-1))
        self._block_counts.append(starts.shape[0])
        self._segment_counts.append(starts.shape[1])
        self._names.append((name, index))

    def add_rows(self, pieces: Sequence[_Piece], rows: int, name: str) -> None:
        """Block i is row i of every piece, each of which is cut into ``rows`` equal rows."""
        steps = _int64([p.length // rows for p in pieces])
        starts = _int64([p.start for p in pieces]) + torch.arange(rows)[:, None] * steps
        self.add(starts, steps, name)

    def add_whole(self, piece: _Piece, name: str) -> None:
        """One block of the whole piece."""
        self.add(_int64([[piece.start]]), _int64([[piece.length]]), f"{name}.{piece.role}", "")

    def partition(self, n: int, kind: str) -> Partition:
        counts = _int64(self._block_counts)
        per_block = repeated(_int64(self._segment_counts), counts)
        offsets = torch.zeros(per_block.numel() + 1, dtype=torch.int64)
        torch.cumsum(per_block, 0, out=offsets[1:])
        table = joined(offsets, torch.cat(self._starts), torch.cat(self._lengths))
        names = None
        if sum(self._block_counts) <= _MOST_NAMES:
            named = zip(self._names, self._block_counts, strict=True)
            names = tuple(name + ix.format(i) for (name, ix), k in named for i in range(k))
        return Partition(*table, n, names, kind)


def joined(offsets: Tensor, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same table with neighbouring segments of a block made one (fewer, longer reads)."""
    first = torch.ones(starts.numel(), dtype=torch.bool)
    first[1:] = starts[1:] != starts[:-1] + lengths[:-1]
    first[offsets[:-1]] = True
    kept = first.nonzero().reshape(-1)
    ends = torch.zeros(lengths.numel() + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=ends[1:])
    bounds = torch.cat([kept, _int64([starts.numel()])])
    return torch.searchsorted(kept, offsets), starts[kept], ends[bounds].diff()


def _cut(nodes: Partition, size: int) -> Partition:
    """Blocks larger than ``size`` in ceil(block / size) parts that differ by one at most."""
    sizes = nodes.block_sizes
    parts = (sizes + size - 1) // size
    block = repeated(torch.arange(nodes.n_blocks), parts)
    part = torch.arange(block.numel()) - (parts.cumsum(0) - parts)[block]
    # Positions count weights in table order: block after block, segment after segment.
    block_at = sizes.cumsum(0) - sizes
    part_at = block_at[block] + part * sizes[block] // parts[block]
    segment_at = nodes.segment_lengths.cumsum(0) - nodes.segment_lengths
    at = torch.unique(torch.cat([part_at, segment_at]))
    segment = torch.searchsorted(segment_at, at, right=True) - 1
    starts = nodes.segment_starts[segment] + at - segment_at[segment]
    end = _int64([nodes.n])
    offsets = torch.searchsorted(at, torch.cat([part_at, end]))
    names = None
    if nodes.names is not None and block.numel() <= _MOST_NAMES:
        of_block = zip(nodes.names, parts.tolist(), strict=True)
        names = tuple(f"{name}/{j}" if k > 1 else name for name, k in of_block for j in range(k))
    lengths = torch.cat([at, end]).diff()
    return Partition(offsets, starts, lengths, nodes.n, names, "quasi_node")


def _node_table(model: nn.Module, named: Sequence[tuple[str, Tensor]]) -> _Table:
    table = _Table()
    for name, module, pieces in _by_module(model, named):
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            pieces = _conv_transpose(table, name, module, pieces)
        elif isinstance(module, nn.MultiheadAttention):
            pieces = _attention(table, name, module, pieces)
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            pieces = _recurrent(table, name, module, pieces)
        elif isinstance(module, _NORMS):
            pieces = _entries(table, name, pieces)
        else:
            pieces = _units(table, name, _unit_count(module), pieces)
        _any_other(table, name, pieces)
    return table


def _unit_count(module: nn.Module) -> int | None:
    """How many rows dim 0 of the module's weight has, for the modules where a unit is one."""
    if isinstance(module, (nn.Linear, nn.Bilinear)):
        return module.out_features
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.out_channels
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return module.num_embeddings
    return None


def _units(table: _Table, name: str, rows: int | None, pieces: Sequence[_Piece]) -> list[_Piece]:
    """Row i of everything with that many rows; what has another number is left over."""
    own = [p for p in pieces if p.rows == rows]
    if own and rows:
        table.add_rows(own, rows, name)
    return [p for p in pieces if p not in own]


def _entries(table: _Table, name: str, pieces: Sequence[_Piece]) -> list[_Piece]:
    """Entry i of everything with as many entries as the first (the scale and shift of a norm)."""
    own = [p for p in pieces if p.length == pieces[0].length]
    table.add_rows(own, pieces[0].length, name)
    return [p for p in pieces if p not in own]


def _conv_transpose(
    table: _Table, name: str, module: nn.modules.conv._ConvTransposeNd, pieces: Sequence[_Piece]
) -> list[_Piece]:
    """Output channel j of group g: weight[i, j] of the group's inputs i, and its bias."""
    inputs, groups = module.in_channels, module.groups
    outputs = module.out_channels // groups  # per group
    weights = [p for p in pieces if p.role == "weight" and p.shape[:2] == (inputs, outputs)]
    biases = [p for p in pieces if p.shape == (module.out_channels,)]
    starts, lengths = [], []
    for p in weights:
        kernel = p.length // (inputs * outputs)
        # (group, input, output) -> (group, output, input): a row for each output channel
        at = p.start + kernel * torch.arange(inputs * outputs).view(groups, -1, outputs)
        starts.append(at.transpose(1, 2).reshape(module.out_channels, -1))
        lengths.append(torch.full((starts[-1].shape[1],), kernel))
    for p in biases:
        starts.append(p.start + torch.arange(module.out_channels)[:, None])
        lengths.append(_int64([1]))
    if starts:
        table.add(torch.cat(starts, 1), torch.cat(lengths), name)
    own = weights + biases
    return [p for p in pieces if p not in own]


def _attention(
    table: _Table, name: str, module: nn.MultiheadAttention, pieces: Sequence[_Piece]
) -> list[_Piece]:
    """Row i of the input projection, or of each of three, with its entry of the bias."""
    rows = module.embed_dim
    if module._qkv_same_embed_dim:
        return _units(table, name, 3 * rows, pieces)
    for k, letter in enumerate("qkv"):
        # The one bias serves the three projections: each takes its third.
        thirds = [
            _Piece(f"{letter}_proj_bias", p.start + k * rows, (rows,))
            for p in pieces
            if p.role == "in_proj_bias"
        ]
        own = [p for p in pieces if p.role == f"{letter}_proj_weight"]
        _units(table, f"{name}.{letter}", rows, [*own, *thirds])
    done = ("in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return [p for p in pieces if p.role not in done]


def _recurrent(
    table: _Table, name: str, module: nn.RNNBase | nn.RNNCellBase, pieces: Sequence[_Piece]
) -> list[_Piece]:
    """Gate unit i of each layer and direction, told apart by the end of the names."""
    gates = 4 if isinstance(module, (nn.LSTM, nn.LSTMCell)) else 1
    gates = 3 if isinstance(module, (nn.GRU, nn.GRUCell)) else gates
    rest: list[_Piece] = []
    ends = dict.fromkeys(_recurrent_end(p.role) for p in pieces)
    for end in ends:
        own = [p for p in pieces if _recurrent_end(p.role) == end]
        rest += _units(table, name + end.replace("_", "."), gates * module.hidden_size, own)
    return rest


def _recurrent_end(role: str) -> str:
    found = re.search(r"_l\d+(_reverse)?$", role)
    return found.group() if found else ""


def _any_other(table: _Table, name: str, pieces: Sequence[_Piece]) -> None:
    """Rows of dim 0, each with its entry of the 1-D parameters that belong to it."""
    matrices = [p for p in pieces if len(p.shape) > 1]
    # By role and rows: the originals of one parametrized tensor stay together where they can.
    joining: dict[tuple[str, int], list[_Piece]] = {}
    for matrix in matrices:
        joining.setdefault((matrix.role, matrix.rows), []).append(matrix)
    alone = []
    for vector in pieces:
        if len(vector.shape) > 1:
            continue
        alike = [p for p in matrices if p.rows == vector.rows]
        by_name = [p for p in alike if _stem(p.role) == _stem(vector.role)]
        before = [p for p in alike if p.start < vector.start]
        partner = (by_name or before[-1:] or alike)[:1]
        if partner:
            joining[partner[0].role, partner[0].rows].append(vector)
        else:
            alone.append(vector)
    for (role, rows), own in joining.items():
        table.add_rows(own, rows, f"{name}.{role}")
    for piece in alone:
        table.add_whole(piece, name)


def _stem(role: str) -> str:
    """What a weight and its bias have in common: 'q_proj' of 'q_proj_weight' and 'q_proj_bias'."""
    return re.sub(r"weight|bias|(?<![a-z])[wb](?![a-z])", "", role.lower())


def _by_module(
    model: nn.Module, named: Sequence[tuple[str, Tensor]]
) -> list[tuple[str, nn.Module, list[_Piece]]]:
    """The modules that own some of the parameters directly, each with those, every one once."""
    start = 0
    places: dict[int, tuple[int, str, tuple[int, ...]]] = {}
    for name, p in named:
        places[id(p)] = (start, name, tuple(p.shape))
        start += p.numel()
    found: list[tuple[str, nn.Module, list[_Piece]]] = []
    for name, module in model.named_modules():
        pieces = []
        for role, p in _owned(module):
            if id(p) in places:
                at, _, shape = places.pop(id(p))
                pieces.append(_Piece(role, at, shape))
        if pieces:
            pieces.sort(key=lambda piece: piece.start)
            found.append((name or type(module).__name__, module, pieces))
    for _, name, _ in places.values():
        raise ConfigError(
            f"parameters: '{name}' is not a parameter of {type(model).__name__}; pass parameters "
            "of this model, or use Partition.from_segments"
        )
    return found


def _owned(module: nn.Module) -> list[tuple[str, Tensor]]:
    """(role, parameter) of what a module uses itself, parametrized tensors by their originals."""
    own: list[tuple[str, Tensor]] = [
        (role, p) for role, p in module._parameters.items() if p is not None
    ]
    if nn.utils.parametrize.is_parametrized(module):
        for role, stages in module.parametrizations.items():  # type: ignore[operator, union-attr]
            own += [(role, p) for p in stages._parameters.values() if p is not None]
    return own


def _resolve(model: nn.Module, parameters: Parameters | None) -> list[tuple[str, Tensor]]:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model: expected a torch.nn.Module, got {type(model).__name__}; for a flat vector "
            "without a model use Partition.from_segments"
        )
    return list(trainable_parameters(model)) if parameters is None else as_named(parameters)


def _total(named: Sequence[tuple[str, Tensor]]) -> int:
    return sum(p.numel() for _, p in named)


def repeated(values: Tensor, counts: Tensor) -> Tensor:
    """Each of ``values`` as often as ``counts`` says, both (k,) int64 on the CPU.

    torch.repeat_interleave enters an OpenMP region for any size, and waits for ever in a forked
    child, where the parent's threads are missing.
    """
    return torch.from_numpy(np.repeat(values.numpy(), counts.numpy()))


def _int64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _check_index_array(field: str, array: object) -> None:
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


def _check_table(p: Partition) -> None:
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


def _check_coverage(p: Partition) -> None:
    """Sorted by start, each segment must begin where the one before it ends, from 0 to n."""
    starts, lengths = p.segment_starts, p.segment_lengths
    order = None
    if bool((starts[1:] < starts[:-1]).any()):  # sorting ten million is the dear part
        order = torch.argsort(starts)
        starts, lengths = starts[order], lengths[order]
    ends = torch.cat([_int64([0]), starts + lengths])
    begins = torch.cat([starts, _int64([p.n])])
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


def _block_of(p: Partition, segment: int) -> int:
    return int(torch.searchsorted(p.block_offsets, segment, right=True)) - 1
