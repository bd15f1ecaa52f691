# SPDX-License-Identifier: BSD-3-Clause
"""What the tests run in several processes: `torchrun tests/distributed_runs.py FOLDER CASE ...`.

Each case is a function of this file; what it returns is written to FOLDER/CASE.RANK.pt.
"""

from __future__ import annotations

import datetime as dt
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import koopfast
import koopfast._engine
import koopfast._ops
import koopfast.guard

STEPS = 40
SECONDS = 60  # a collective that waits for longer is an error


class Net(nn.Module):
    """Three layers; 13 rows are cut unevenly by any number of processes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(7, width)
        self.hidden = nn.Linear(width, 10)
        self.last = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.hidden(torch.tanh(self.first(x)))))


def network(width: int = 13) -> Net:
    torch.manual_seed(0)
    return Net(width).double()


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 7, generator=generator, dtype=torch.float64)
    return x, torch.sin(x[:, :3])


class Training:
    """A model, its optimizer and its Koopman trainer.

    Attributes:
        errors: what steps raised, by name.
    """

    def __init__(self, model: nn.Module, data: tuple[Tensor, Tensor], **overrides: Any) -> None:
        self.model, self.x, self.y = model, *data
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=0.05)
        overrides = {"window": 6, "stride": 2, "overhead": None, **overrides}
        self.trainer = koopfast.KoopmanTrainer(model, self.optimizer, **overrides)
        self.errors: list[str] = []

    def loss(self) -> Tensor:
        return nn.functional.mse_loss(self.model(self.x), self.y)

    def run(self, steps: int = STEPS, probe: Callable[[int], Any] | None = None) -> dict[str, Any]:
        """Train and tell how it went; ``probe`` is given the step."""
        for step in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
            try:
                self.trainer.after_step(
                    self.loss if probe is None else lambda step=step: probe(step)
                )
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
        return self.told()

    def told(self) -> dict[str, Any]:
        """Weights and decisions."""
        records = self.trainer.history.jumps
        return {
            "weights": {name: whole(p) for name, p in self.model.named_parameters()},
            "jumps": [(r.step, r.accepted, r.horizon, r.kind, str(r.candidates)) for r in records],
            "reasons": [r.reason for r in records],
            "errors": self.errors,
        }


def trained(model: nn.Module, **overrides: Any) -> dict[str, Any]:
    return Training(model, batch(), **overrides).run()


def whole(p: Any) -> Tensor:
    """A parameter, brought together from its shards (for the comparison alone)."""
    full = p.full_tensor() if hasattr(p, "full_tensor") else p
    return full.detach().clone()


def replica(alone: bool = False) -> nn.Module:
    return network() if alone else nn.parallel.DistributedDataParallel(network())


def fully_sharded(model: Net, mesh: Any = None, **kwargs: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for module in (model.first, model.hidden):
        fully_shard(module, mesh=mesh, **kwargs)
    fully_shard(model, mesh=mesh, **kwargs)
    return model


def mesh_of(*shape: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor")[-len(shape) :])


def tensor_parallel(model: Net, mesh: Any) -> nn.Module:
    from torch.distributed.tensor import parallel

    plan = {"first": parallel.ColwiseParallel(), "hidden": parallel.RowwiseParallel()}
    return parallel.parallelize_module(model, mesh, plan)


# The same training in one process and in several. In one, ``alone`` is true.


def ddp(alone: bool = False) -> Any:
    return trained(replica(alone))


def ddp_nodes(alone: bool = False) -> Any:
    return trained(replica(alone), partition="node", rank=2)


def ddp_weights(alone: bool = False) -> Any:
    return trained(replica(alone), partition="weight", rank=1)


def ddp_adaptive(alone: bool = False) -> Any:
    return trained(replica(alone), window="auto", stride="auto")


def ddp_streaming(alone: bool = False) -> Any:
    return trained(replica(alone), partition="node", streaming=True, rank=2)


def fsdp(alone: bool = False) -> Any:
    return trained(network() if alone else fully_sharded(network()))


def tp(alone: bool = False) -> Any:
    return trained(network(12) if alone else tensor_parallel(network(12), mesh_of(2)))


def hsdp(alone: bool = False) -> Any:
    return trained(network() if alone else fully_sharded(network(), mesh_of(2, 2)))


def tp_fsdp(alone: bool = False) -> Any:
    model = network(12)
    if not alone:
        mesh = mesh_of(2, 2)
        tensor_parallel(model, mesh["tensor"])
        fully_sharded(model, mesh["data"])
    return trained(model)


# One rank is not as the others.


def ddp_other_data() -> Any:
    return Training(replica(), batch(seed=dist.get_rank())).run()


def ddp_nan_probe() -> Any:
    return nan_probe(replica())


def fsdp_nan_probe() -> Any:
    return nan_probe(fully_sharded(network()))


def nan_probe(model: nn.Module) -> Any:
    """Rank 1 sees NaN now and then: before a jump, and at one candidate."""
    training, calls = Training(model, batch()), []

    def probe(step: int) -> Any:
        calls.append(step)
        bad = step == 11 or len(calls) == 4
        return training.loss() * (math.nan if bad and dist.get_rank() == 1 else 1.0)

    return training.run(probe=probe)


def ddp_raising_probe() -> Any:
    training = Training(replica(), batch())

    def probe(step: int) -> Any:
        if step == 11 and dist.get_rank() == 1:
            raise ValueError("no data left")
        return training.loss()

    return training.run(probe=probe)


def ddp_failing_fit() -> Any:
    return failing(replica(), koopfast._ops, "operator_fit")


def ddp_failing_prediction() -> Any:
    return failing(replica(), koopfast._ops, "operator_power")


def fsdp_failing_gram() -> Any:
    return failing(fully_sharded(network()), koopfast._ops, "observed_grams")


def fsdp_failing_fit() -> Any:
    return failing(fully_sharded(network()), koopfast._ops, "fit_grams")


def fsdp_failing_prediction() -> Any:
    return failing(fully_sharded(network()), koopfast._ops, "operator_power")


def failing(model: nn.Module, module: Any, name: str) -> Any:
    """On rank 1 a function fails once."""
    real, calls = getattr(module, name), []

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == 1 and dist.get_rank() == 1:
            raise MemoryError("no room")
        return real(*args, **kwargs)

    setattr(module, name, broken)
    try:
        return Training(model, batch()).run()
    finally:
        setattr(module, name, real)


def ddp_slow_clock() -> Any:
    """To rank 1 all that it does for jumps seems to take a thousand times as long."""
    modules, real = (koopfast._engine, koopfast.guard), perf_counter
    for module in modules if dist.get_rank() == 1 else ():
        module.perf_counter = lambda: 1000 * real()
    try:
        training = Training(replica(), batch(), window="auto", stride="auto", overhead=0.05)
        return training.run()
    finally:
        for module in modules:
            module.perf_counter = real


def ddp_written() -> Any:
    """Rank 1 alone sees that weights are written (and its copy becomes another)."""
    return written(replica())


def fsdp_written() -> Any:
    return written(fully_sharded(network()))


def written(model: nn.Module) -> Any:
    training = Training(model, batch())
    training.run(3)
    with torch.no_grad():
        for p in model.parameters() if dist.get_rank() == 1 else ():
            local = p.to_local() if hasattr(p, "to_local") else p
            local.mul_(1.001)
    return training.run(30) | {"splits": training.trainer.history.counters.windows_split}


def nothing_said() -> Any:
    """Several processes and a plain model."""
    try:
        Training(network(), batch())
    except koopfast.ConfigError as error:
        message = str(error)
    given = Training(network(), batch(), process_group=dist.group.WORLD).run()
    lonely = Training(network(), batch(seed=dist.get_rank()), process_group=False).run()
    return {"message": message, "given": given, "lonely": lonely}


def main() -> None:
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=dt.timedelta(seconds=SECONDS))
    rank = dist.get_rank()
    for name in cases:
        try:
            result = globals()[name]()
        except Exception:
            result = {"error": traceback.format_exc()}
        torch.save(result, folder / f"{name}.{rank}.pt")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
