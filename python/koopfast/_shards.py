# SPDX-License-Identifier: BSD-3-Clause
"""Parameters sharded over processes (DTensor): operators without bringing them together.

The Gram matrix of a block is a sum over its weights, so it is the sum over the ranks of those of
what each holds; weights that several ranks hold count so many times less. With it every rank fits
the same operator, and forms the predicted weights of its own shards. So (m, m) matrices are sent,
one a block, and nothing that grows with the weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from koopfast import _blocks, _ops
from koopfast._distributed import ProcessGroup, Ranks, config_lines, digest, fit_failures
from koopfast._layout import Cells, cells_of, stacked
from koopfast._options import FitOptions
from koopfast.config import KoopmanConfig
from koopfast.errors import ConfigError
from koopfast.moments import MomentBuffer
from koopfast.operator import KoopmanOperator
from koopfast.parameters import (
    ParameterVector,
    as_named,
    check_supported,
    is_sharded,
    trainable_parameters,
)
from koopfast.partition import Partition
from koopfast.snapshots import SnapshotBuffer

__all__ = ["ShardVector", "ShardedOperator", "Shards"]

_Result = TypeVar("_Result")


class ShardVector(ParameterVector):
    """The shards of parameters that this rank holds, as one flat vector of ``n`` numbers.

    ``parameters`` are the DTensors (or plain tensors, of which each rank has all), ``tensors`` the
    local ones; ``starts``, ``lengths`` and views are of these, and some may be empty.

    Args:
        named: as :func:`~koopfast.parameters.trainable_parameters` returns them.
    """

    def __init__(self, named: Sequence[tuple[str, Tensor]]) -> None:
        tensors = [_local(p) for _, p in named]
        for (name, _), tensor in zip(named, tensors, strict=True):
            check_supported(name, tensor)
        self._lay_out(named, tensors)

    @property
    def total(self) -> int:
        return sum(p.numel() for p in self.parameters)

    @property
    def layout(self) -> str:
        placed = [(tuple(p.shape), *_place(p)) for p in self.parameters]
        return hashlib.blake2b(repr(placed).encode(), digest_size=8).hexdigest()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(_local(p) for p in self.parameters)


def _place(p: Any) -> tuple[Any, ...]:
    if not is_sharded(p):
        return ()
    mesh = p.device_mesh
    return tuple(mesh.shape), p.placements, mesh.get_coordinate()


def _local(p: Any) -> Tensor:
    if not is_sharded(p):
        return p  # type: ignore[no-any-return]
    with torch.no_grad():  # the very memory then, not a view that autograd knows
        local: Tensor = p.to_local()
        return local


class ShardedOperator(KoopmanOperator):
    """A :class:`~koopfast.KoopmanOperator` of sharded weights, the same on every rank.

    Its blocks are those of all weights, wherever they are; what it predicts are the weights of
    this rank, (k, n), in the order of :class:`ShardVector`.
    """

    def __init__(
        self,
        snapshots: Tensor,
        cells: Cells,
        partition: Partition,
        fitted: _blocks.FittedBlocks,
        *,
        observables: str,
    ) -> None:
        m = snapshots.shape[0]
        super().__init__(snapshots, partition, None, fitted, observables=observables, m=m)
        self._cells = cells

    def _write(self, wanted: list[float], out: Tensor) -> None:
        rows, cells = self._snapshots, self._cells
        if len(cells.block) > 0:
            _ops.predict_cells(rows, cells.table, cells.block, self._fitted, wanted, out)

    def modes_of(self, block: int, *, expand: bool = False) -> Tensor:
        """As of any operator; modes as weights are on no single rank.

        Raises:
            ConfigError: ``expand`` is set.
        """
        if expand:
            raise ConfigError("expand: the weights of a block lie on several ranks; leave it out")
        return super().modes_of(block)


class Shards(Ranks):
    """The ranks over which parameters are sharded: FSDP2, tensor parallel, HSDP and their kind.

    Args:
        group, device: as :class:`Ranks`.
        model: the network.

    Raises:
        UnsupportedParameterError: a parameter is placed in a way that has no fit.
    """

    def __init__(self, group: ProcessGroup, device: torch.device, model: nn.Module) -> None:
        super().__init__(group, device)
        self._model = model
        self._cells: Cells | None = None

    def prepare(self) -> None:
        # FSDP2 keeps the outermost module's parameters together after a forward pass without a
        # backward pass: new weights would not reach them.
        for module in self._model.modules():
            reshard = getattr(module, "reshard", None)
            if reshard is not None and hasattr(module, "set_requires_gradient_sync"):
                reshard()

    @contextlib.contextmanager
    def probing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.prepare()

    def parameters(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> ParameterVector:
        self.prepare()
        return ShardVector(trainable_parameters(model, optimizer, sharded=True))

    def partition(
        self, config: KoopmanConfig, model: nn.Module, parameters: ParameterVector
    ) -> Partition:
        _check_config(config, parameters)
        assert isinstance(parameters, ShardVector)
        described = [
            f"{name} {tuple(p.shape)} {p.dtype} {getattr(p, 'placements', 'on every rank')}"
            for name, p in zip(parameters.names, parameters.parameters, strict=True)
        ]
        self.check_alike(config_lines(config), "config")
        self.check_alike("\n".join(described), "parameters")
        partition = config.partition_of(model, parameters)
        self._cells = cells_of(partition, as_named(parameters), self.size)
        self._check_complete(parameters, self._cells)
        return partition

    def _check_complete(self, parameters: ShardVector, cells: Cells) -> None:
        """All ranks together must hold each parameter exactly once."""
        held = self.summed(torch.tensor(cells.shares, dtype=torch.float64, device="cpu"))
        for name, p, sum_ in zip(parameters.names, parameters.parameters, held, strict=True):
            if not math.isclose(float(sum_), p.numel(), rel_tol=1e-9):
                raise ConfigError(
                    f"parameter '{name}': expected its {p.numel()} weights on the {self.size} "
                    "ranks of the process group, each as often as any other, found "
                    f"{float(sum_):g}; pass process_group=, the group of its mesh's ranks"
                )

    def fit(
        self,
        fit: Callable[[], KoopmanOperator],
        snapshots: SnapshotBuffer | MomentBuffer,
        partition: Partition,
        config: KoopmanConfig,
    ) -> KoopmanOperator:
        assert isinstance(snapshots, SnapshotBuffer)
        assert self._cells is not None
        cells, options, rows = self._cells, config.fit_options, snapshots.snapshots
        m, table = rows.shape[0], _blocks.BlockTable.of(partition)
        fitted = self._guarded(lambda: _ops.all_dual(m, table, options))
        for blocks in _ops.dual_batches(torch.arange(partition.n_blocks, device="cpu"), m):
            self._fit_some(rows, table, blocks, options, fitted)
        operator = ShardedOperator(rows, cells, partition, fitted, observables=options.observables)
        if not self.same(digest(_essence(fitted))):
            # Processors of another kind round in another way.
            operator.coefficients = self.object_of_first(operator.coefficients)
        return operator

    def spread(
        self, snapshots: SnapshotBuffer | MomentBuffer, config: KoopmanConfig
    ) -> dict[str, Tensor] | None:
        assert isinstance(snapshots, SnapshotBuffer)
        # The same names for every window of this configuration, whatever it has come to.
        average = config.adaptive or (config.average is True and config.first_stride > 1)
        rows, sums = snapshots.reserve(sums=average)
        vector, found = snapshots.vector, {}
        for i, (name, p) in enumerate(zip(vector.names, vector.parameters, strict=True)):
            own = slice(vector.starts[i], vector.starts[i] + vector.lengths[i])
            found[f"rows.{name}"] = stacked(rows[:, own], p)
            if sums is not None and average:
                found[f"sum.{name}"] = stacked(sums[None, own], p)
        return found

    def _fit_some(
        self,
        rows: Tensor,
        table: _blocks.BlockTable,
        blocks: Tensor,
        options: FitOptions,
        fitted: _blocks.FittedBlocks,
    ) -> None:
        assert self._cells is not None
        cells = self._cells
        own = self._guarded(lambda: cells.grams(rows, blocks, options))
        i, j = torch.tril_indices(*own.shape[1:], device="cpu")
        triangles = self.summed(own[:, i, j])
        own[:, i, j] = own[:, j, i] = triangles
        self._guarded(lambda: _ops.fit_grams(own, table, blocks, options, fitted))

    def _guarded(self, work: Callable[[], _Result]) -> _Result:
        def guarded() -> _Result:
            with fit_failures():
                return work()

        return self.agreed(guarded)


def _essence(fitted: _blocks.FittedBlocks) -> list[Tensor]:
    """What predictions are made of, without memory that no result was written to."""
    return [
        fitted.status,
        fitted.rank,
        fitted.operators[_blocks.ragged(fitted.matrix_offsets, fitted.rank**2)],
        fitted.start[_blocks.ragged(fitted.vector_offsets, fitted.rank)],
        fitted.lifts[_blocks.ragged(fitted.lift_offsets, fitted.rows * fitted.rank)],
    ]


def _check_config(config: KoopmanConfig, parameters: ParameterVector) -> None:
    """Refuse what needs a block's weights in one place.

    Raises:
        ConfigError: names the field.
    """
    why = "of sharded parameters only Gram matrices are sent"
    if config.streaming:
        raise ConfigError(f"streaming: expected False, since {why}, got True; leave it out")
    if config.method != "gram":
        raise ConfigError(f'method: expected "gram", since {why}, got {config.method!r}')
    if config.partition == "weight":
        raise ConfigError(
            f"partition: {why}, and for blocks of one weight they are larger than the weights; "
            'choose "node" or "layer", got "weight"'
        )
    if parameters.dtype.is_complex:
        raise ConfigError(
            f"parameters: expected real ones, since no operator of sharded complex parameters is "
            f"fitted, got {parameters.dtype}; view them as real, or do not shard them"
        )
