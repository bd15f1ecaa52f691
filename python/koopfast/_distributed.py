# SPDX-License-Identifier: BSD-3-Clause
"""Several processes that train together: what each decides, all decide.

A jump is a chain of decisions (did the fit work, is a candidate finite, is its loss lower, does the
clock allow another look), each made of numbers that may differ from rank to rank. Here they are
brought together with the collectives of torch.distributed, so that every rank goes the same way;
a rank that went another would leave the others waiting. Nothing of the size of the weights is sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from koopfast.config import KoopmanConfig
from koopfast.errors import ConfigError, DistributedError
from koopfast.moments import MomentBuffer
from koopfast.operator import KoopmanOperator
from koopfast.parameters import ParameterVector, trainable_parameters
from koopfast.partition import Partition
from koopfast.snapshots import SnapshotBuffer

if TYPE_CHECKING:
    ProcessGroup: TypeAlias = dist.ProcessGroup
else:
    ProcessGroup = "torch.distributed.ProcessGroup"  # a torch without distributed has none

__all__ = [
    "Alone",
    "FitFailure",
    "ProcessGroup",
    "Ranks",
    "Replicas",
    "data_parallel_modules",
    "digest",
    "fit_failures",
]

_Result = TypeVar("_Result")


class FitFailure(Exception):
    """Fitting or predicting broke off; the message says why."""


@contextlib.contextmanager
def fit_failures() -> Iterator[None]:
    """Tell errors of fit and prediction (no memory, say) from those of a probe."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = str(error).partition("\n")[0]
        raise FitFailure(f"the fit failed: {type(error).__name__}: {message}") from error


class Alone:
    """One process, which agrees with itself; what several do in its place is in the subclasses.

    Attributes:
        rank: of this process among those that train together.
        size: how many these are.
    """

    rank, size = 0, 1

    def parameters(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> ParameterVector:
        """What this process records and predicts."""
        return ParameterVector(trainable_parameters(model, optimizer))

    def partition(
        self, config: KoopmanConfig, model: nn.Module, parameters: ParameterVector
    ) -> Partition:
        """The blocks, of all weights wherever they are."""
        return config.partition_of(model, parameters)

    def prepare(self) -> None:
        """Bring the model's parameters to where they can be read and written."""

    def fit(
        self,
        fit: Callable[[], KoopmanOperator],
        snapshots: SnapshotBuffer | MomentBuffer,
        partition: Partition,
        config: KoopmanConfig,
    ) -> KoopmanOperator:
        """The operator of the recorded snapshots, the same on every rank.

        Args:
            fit: makes it from what one rank has.
            snapshots, partition, config: what it makes it of.

        Raises:
            FitFailure: there is none, on any rank.
        """
        return fit()

    def spread(
        self, snapshots: SnapshotBuffer | MomentBuffer, config: KoopmanConfig
    ) -> dict[str, Tensor] | None:
        """The window as distributed tensors, views of its memory; None if each process has all."""
        return None

    def settle(self, parameters: ParameterVector) -> None:
        """A jump was accepted and written: make sure that the ranks hold the same."""

    def probing(self) -> contextlib.AbstractContextManager[None]:
        """Around each call of a probe."""
        return contextlib.nullcontext()

    def agreed(self, work: Callable[[], _Result], soft: type[Exception] = FitFailure) -> _Result:
        """What ``work`` returns on this rank, if it worked on all of them.

        Args:
            work: sends nothing itself.
            soft: an exception that is no more than a refusal: where any rank raises it (and none
                raises another), all do, with the words of the first.

        Raises:
            DistributedError: ``work`` failed on another rank, or another rank cannot be reached.
            Exception: what ``work`` raised on this one.
        """
        return work()

    def highest(self, value: int) -> int:
        """The highest of all ranks' values."""
        return value

    def all(self, flag: bool) -> bool:
        """Whether it is true on every rank."""
        return flag

    def any(self, flag: bool) -> bool:
        """Whether it is true on some rank."""
        return flag

    def mean(self, losses: tuple[float, ...]) -> tuple[float, ...]:
        """The mean over the ranks of each of the losses."""
        return losses

    def of_first(self, values: Sequence[float]) -> list[float]:
        """What rank 0 has."""
        return list(values)


class Ranks(Alone):
    """The processes of a group.

    Args:
        group: who they are.
        device: where the parameters are, for backends that send nothing from the CPU.
    """

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        sends_cpu = "cpu" in dist.get_backend_config(group)
        self.device = torch.device("cpu") if sends_cpu else device

    def agreed(self, work: Callable[[], _Result], soft: type[Exception] = FitFailure) -> _Result:
        results: list[_Result] = []
        error: Exception | None = None
        try:
            results.append(work())
        except DistributedError:
            raise
        except Exception as caught:
            error = caught
        grade = 0 if error is None else 1 if isinstance(error, soft) else 2
        worst = self.highest(grade)
        if worst == 0:
            return results[0]
        texts = self._texts("" if error is None or grade < worst else _in_words(error, soft))
        first = next(rank for rank, text in enumerate(texts) if text)
        if worst == 1:
            raise soft(texts[first]) from error
        if error is not None and grade == worst:
            raise error
        raise DistributedError(f"rank {first} failed, and with it this one: {texts[first]}")

    def highest(self, value: int) -> int:
        return int(self._reduced(torch.tensor([value], device="cpu"), dist.ReduceOp.MAX))

    def all(self, flag: bool) -> bool:
        return not self.any(not flag)

    def any(self, flag: bool) -> bool:
        return self.highest(int(flag)) == 1

    def mean(self, losses: tuple[float, ...]) -> tuple[float, ...]:
        if not self.same(len(losses)):
            raise ConfigError(
                f"probe: expected as many losses on each rank, got {len(losses)} on this one and "
                "another number elsewhere; return the same number of batches everywhere"
            )
        own = torch.tensor(losses, dtype=torch.float64, device=self.device)
        everywhere = [torch.empty_like(own) for _ in range(self.size)]
        with _reaching(self):
            dist.all_gather(everywhere, own, group=self.group)
        # Summed exactly: ranks with the same data then get what each of them has, to the last bit.
        return tuple(_mean(values) for values in torch.stack(everywhere, dim=1).tolist())

    def of_first(self, values: Sequence[float]) -> list[float]:
        numbers = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        with _reaching(self):
            dist.broadcast(numbers, self._first, group=self.group)
        return [float(x) for x in numbers.tolist()]

    def same(self, value: int) -> bool:
        """Whether all ranks have this value, an int64."""
        # ~value falls where value rises: two maxima tell the least and the greatest.
        most = self._reduced(torch.tensor([value, ~value], device="cpu"), dist.ReduceOp.MAX)
        return int(most[0]) == ~int(most[1])

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, equal on all of them; ``tensor`` may be overwritten."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def object_of_first(self, value: Any) -> Any:
        """What rank 0 has, whatever it is."""
        box = [value if self.rank == 0 else None]
        with _reaching(self):
            dist.broadcast_object_list(box, self._first, group=self.group, device=self.device)
        return box[0]

    def check_alike(self, described: str, what: str) -> None:
        """Raise unless every rank has the same description.

        Raises:
            ConfigError: on every rank, with the first line that differs.
        """
        digest = hashlib.blake2b(described.encode(), digest_size=8).digest()
        if self.same(int.from_bytes(digest, "little", signed=True)):
            return
        theirs = self.object_of_first(described).splitlines()
        mine = described.splitlines()
        pairs = [(a, b) for a, b in zip(theirs, mine, strict=False) if a != b]
        first, own = pairs[0] if pairs else (f"{len(theirs)} in all", f"{len(mine)} in all")
        found = f"rank 0 has {first!r}, rank {self.rank} has {own!r}"
        raise ConfigError(
            f"{what}: expected the same on all {self.size} ranks of the process group, but "
            f"{'another rank has others' if theirs == mine else found}; pass process_group=, the "
            "group of the ranks that train the same weights in the same way"
        )

    @property
    def _first(self) -> int:
        return dist.get_global_rank(self.group, 0)

    def _reduced(self, tensor: Tensor, op: Any) -> Tensor:
        sent = tensor.to(self.device)
        with _reaching(self):
            dist.all_reduce(sent, op=op, group=self.group)
        return sent.to(tensor.device)

    def _texts(self, text: str) -> list[str]:
        texts: list[Any] = [None] * self.size
        with _reaching(self):
            dist.all_gather_object(texts, text, group=self.group)
        return texts


class Replicas(Ranks):
    """Processes that hold the same weights and see different data, as DistributedDataParallel's.

    Args:
        group, device: as :class:`Ranks`.
        model: where wrappers that synchronise in a forward pass are looked for.
    """

    def __init__(self, group: ProcessGroup, device: torch.device, model: nn.Module) -> None:
        super().__init__(group, device)
        self._wrappers = data_parallel_modules(model)

    def partition(
        self, config: KoopmanConfig, model: nn.Module, parameters: ParameterVector
    ) -> Partition:
        named = zip(parameters.names, parameters.parameters, strict=True)
        described = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in named]
        self.check_alike(config_lines(config), "config")
        self.check_alike("\n".join(described), "parameters")
        return super().partition(config, model, parameters)

    def fit(
        self,
        fit: Callable[[], KoopmanOperator],
        snapshots: SnapshotBuffer | MomentBuffer,
        partition: Partition,
        config: KoopmanConfig,
    ) -> KoopmanOperator:
        operator = self.agreed(fit)
        operator.coefficients = self.object_of_first(operator.coefficients)
        return operator

    def settle(self, parameters: ParameterVector) -> None:
        if self.same(digest(parameters.tensors)):
            return
        with _reaching(self), torch.no_grad():
            for tensor in parameters.tensors:
                sent = tensor.detach().to(self.device, copy=True).contiguous()
                dist.broadcast(sent, self._first, group=self.group)
                tensor.copy_(sent)

    @contextlib.contextmanager
    def probing(self) -> Iterator[None]:
        # A rank whose probe raises must not leave others waiting in a broadcast of buffers, and no
        # backward pass is to be prepared for.
        with contextlib.ExitStack() as stack:
            for wrapper in self._wrappers:
                stack.enter_context(wrapper.no_sync())
                stack.callback(
                    setattr,
                    wrapper,
                    "require_forward_param_sync",
                    wrapper.require_forward_param_sync,
                )
                wrapper.require_forward_param_sync = False
            yield


def config_lines(config: KoopmanConfig) -> str:
    """A configuration, a line a field."""
    fields = dataclasses.fields(config)
    return "\n".join(f"{field.name}={getattr(config, field.name)!r}" for field in fields)


def data_parallel_modules(model: nn.Module) -> list[Any]:
    """The DistributedDataParallel modules in ``model``, itself included."""
    if not dist.is_available():
        return []
    from torch.nn.parallel import DistributedDataParallel

    return [module for module in model.modules() if isinstance(module, DistributedDataParallel)]


@contextlib.contextmanager
def _reaching(ranks: Ranks) -> Iterator[None]:
    """Tell a lost connection from what a fit or a probe raises."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise DistributedError(
            f"rank {ranks.rank} of {ranks.size} could not reach the others in the middle of a "
            f"jump: {reason}; restart from the last checkpoint"
        ) from error


def _in_words(error: Exception, soft: type[Exception]) -> str:
    return str(error) if isinstance(error, soft) else f"{type(error).__name__}: {error}"


def _mean(values: list[float]) -> float:
    total = math.fsum(values) if all(math.isfinite(v) for v in values) else sum(values)
    return total / len(values)


def digest(tensors: Sequence[Tensor]) -> int:
    """A number that two sets of tensors share if they are equal bit for bit, and hardly else."""
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for tensor in tensors:
        plain = tensor.detach()
        plain = torch.view_as_real(plain) if plain.is_complex() else plain
        value = int(plain.contiguous().view(bits[plain.element_size()]).sum(dtype=torch.int64))
        total = (31 * total + value) & 0x7FFF_FFFF_FFFF_FFFF
    return total
