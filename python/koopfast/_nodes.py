# SPDX-License-Identifier: BSD-3-Clause
"""What the units of each kind of module are: the rules behind :meth:`Partition.node`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from koopfast._segments import int64, joined, repeated
from koopfast.errors import ConfigError

# Beyond this many blocks, names would cost more than the table itself (and nobody reads them).
MOST_NAMES = 100_000

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


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


class UnitTable:
    """Collects rectangles of segments: blocks by segments a block."""

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
        steps = int64([p.length // rows for p in pieces])
        starts = (
            int64([p.start for p in pieces]) + torch.arange(rows, device="cpu")[:, None] * steps
        )
        self.add(starts, steps, name)

    def add_whole(self, piece: _Piece, name: str) -> None:
        """One block of the whole piece."""
        self.add(int64([[piece.start]]), int64([[piece.length]]), f"{name}.{piece.role}", "")

    def columns(self) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...] | None]:
        """Block offsets, segment starts and lengths, and the names unless there are too many."""
        counts = int64(self._block_counts)
        per_block = repeated(int64(self._segment_counts), counts)
        offsets = torch.zeros(per_block.numel() + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(per_block, 0, out=offsets[1:])
        names = None
        if sum(self._block_counts) <= MOST_NAMES:
            named = zip(self._names, self._block_counts, strict=True)
            names = tuple(name + ix.format(i) for (name, ix), k in named for i in range(k))
        return *joined(offsets, torch.cat(self._starts), torch.cat(self._lengths)), names


def node_table(model: nn.Module, named: Sequence[tuple[str, Tensor]]) -> UnitTable:
    """A block for each unit of each module; the rest row by row."""
    table = UnitTable()
    for name, module, pieces in by_module(model, named):
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


def _units(table: UnitTable, name: str, rows: int | None, pieces: Sequence[_Piece]) -> list[_Piece]:
    """Row i of everything with that many rows; what has another number is left over."""
    own = [p for p in pieces if p.rows == rows]
    if own and rows:
        table.add_rows(own, rows, name)
    return [p for p in pieces if p not in own]


def _entries(table: UnitTable, name: str, pieces: Sequence[_Piece]) -> list[_Piece]:
    """Entry i of everything with as many entries as the first (the scale and shift of a norm)."""
    own = [p for p in pieces if p.length == pieces[0].length]
    table.add_rows(own, pieces[0].length, name)
    return [p for p in pieces if p not in own]


def _conv_transpose(
    table: UnitTable, name: str, module: nn.modules.conv._ConvTransposeNd, pieces: Sequence[_Piece]
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
        at = p.start + kernel * torch.arange(inputs * outputs, device="cpu").view(
            groups, -1, outputs
        )
        starts.append(at.transpose(1, 2).reshape(module.out_channels, -1))
        lengths.append(torch.full((starts[-1].shape[1],), kernel, device="cpu"))
    for p in biases:
        starts.append(p.start + torch.arange(module.out_channels, device="cpu")[:, None])
        lengths.append(int64([1]))
    if starts:
        table.add(torch.cat(starts, 1), torch.cat(lengths), name)
    own = weights + biases
    return [p for p in pieces if p not in own]


def _attention(
    table: UnitTable, name: str, module: nn.MultiheadAttention, pieces: Sequence[_Piece]
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
    table: UnitTable, name: str, module: nn.RNNBase | nn.RNNCellBase, pieces: Sequence[_Piece]
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


def _any_other(table: UnitTable, name: str, pieces: Sequence[_Piece]) -> None:
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


def by_module(
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
