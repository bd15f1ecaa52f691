# SPDX-License-Identifier: BSD-3-Clause
"""What the tests run in several processes: `torchrun tests/distributed_runs.py FOLDER CASE ...`.

Each case is a function of this file; what it returns is written to FOLDER/CASE.RANK.pt.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import koopfast
import koopfast._attempt
import koopfast._engine
import koopfast._ops
import koopfast.checkpoint
import koopfast.guard
from koopfast.integrations._attachment import Attachment

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
            self.step()
            try:
                self.trainer.after_step(
                    self.loss if probe is None else lambda step=step: probe(step)
                )
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
        return self.told()

    def step(self) -> None:
        """An ordinary step; the trainer is told by the caller."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

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


# Operators of a known trajectory, and where their predictions end up.


def operators_of(model: nn.Module, alone: bool, **overrides: Any) -> dict[str, Any]:
    """Fit to eight states that each parameter is set to, and write a prediction.

    Nothing but torch's own DTensor puts the states in place and brings the prediction together.
    """
    config = koopfast.KoopmanConfig(window=8, stride=1, **overrides)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    trainer = koopfast.KoopmanTrainer(model, optimizer, config)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(3)
    modes = [torch.randn(3, *p.shape, generator=generator, dtype=p.dtype) for _, p in named]
    for t in range(8):
        decay = torch.tensor([0.95**t, 0.8**t, 1.0], dtype=torch.float64)
        with torch.no_grad():
            for (_, p), own in zip(named, modes, strict=True):
                p.copy_(placed(torch.tensordot(decay, own, 1), p))
        trainer._snapshots.record()
    attempt = koopfast._attempt.Attempt(
        config,
        trainer._parameters,
        trainer._partition,
        trainer._snapshots,
        0,
        trainer._guard,
        None,
        trainer._team,
    )
    operator = attempt.fit()
    trainer._parameters.write(operator.predict(20)[0])
    return {
        "weights": {name: whole(p) for name, p in named},
        "status": operator.status,
        "rank": operator.rank,
        "sigma": operator.singular_values_of(0),
        "local": trainer._parameters.n,
        "total": sum(p.numel() for _, p in named),
    }


def placed(full: Tensor, p: Any) -> Tensor:
    """A tensor that every rank has, placed as ``p`` is."""
    if not hasattr(p, "device_mesh"):
        return full
    from torch.distributed.tensor import Replicate, distribute_tensor

    everywhere = distribute_tensor(full, p.device_mesh, [Replicate()] * p.device_mesh.ndim)
    return everywhere.redistribute(placements=p.placements)


def in_one_group(model: nn.Module) -> nn.Module:
    """Sharded together, as fully_shard wants tied parameters to be."""
    from torch.distributed.fsdp import fully_shard

    fully_shard(model)
    return model


def columns(model: Net) -> nn.Module:
    """Every weight matrix in columns, its bias in parts: rows are split across ranks."""
    from torch.distributed.tensor import Shard, distribute_tensor

    for name, p in list(model.named_parameters()):
        module, role = model.get_submodule(name.partition(".")[0]), name.partition(".")[2]
        shard = Shard(1 if p.dim() > 1 else 0)
        setattr(module, role, nn.Parameter(distribute_tensor(p, mesh_of(world()), [shard])))
    return model


def world() -> int:
    return dist.get_world_size()


def tied(model: Net) -> Net:
    """The two hidden biases are one; of the last layer, the weight is frozen."""
    model.hidden = nn.Linear(13, 13).double()
    model.hidden.bias = model.first.bias
    model.last = nn.Linear(13, 3).double()
    model.last.weight.requires_grad_(False)
    return model


def partly_parallel(model: Net) -> nn.Module:
    """The last layer is a plain one on every rank."""
    return tensor_parallel(model, mesh_of(world()))


OPTIONS: dict[str, dict[str, Any]] = {
    "network": {"partition": "network", "rank": 2},
    "layer": {"partition": "layer"},
    "node": {"partition": "node", "rank": 2},
    "quasi_node": {"partition": "quasi_node", "node_size": 3, "rank": 2},
    "state": {"observables": "state", "rank": 3},
    "auto": {"observables": "auto", "delays": "auto", "estimator": "auto"},
    "symmetric": {"symmetric": True, "rank": 2},
    "averaged": {"block_average": 2, "rank": 1},
}


# A single row, of which all ranks but the first hold nothing.
def row() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 1)).double()


LAYOUTS: dict[str, Callable[[bool], nn.Module]] = {
    "uneven": lambda alone: network() if alone else fully_sharded(network()),
    "columns": lambda alone: network() if alone else columns(network()),
    "tied": lambda alone: tied(network()) if alone else in_one_group(tied(network())),
    "row": lambda alone: row() if alone else in_one_group(row()),
    "parallel": lambda alone: network(12) if alone else partly_parallel(network(12)),
}


def operators(alone: bool = False) -> Any:
    """Each layout with layers, and the first two with all options."""
    found = {}
    for layout, make in LAYOUTS.items():
        for name, options in OPTIONS.items():
            if layout in ("uneven", "columns") or name in ("layer", "node"):
                found[f"{layout}-{name}"] = operators_of(make(alone), alone, **options)
    return found


def operators_of_meshes(alone: bool = False) -> Any:
    """The same on meshes of two dimensions."""
    found = {}
    for name in ("layer", "node"):
        model = network() if alone else fully_sharded(network(), mesh_of(2, 2))
        found[f"hsdp-{name}"] = operators_of(model, alone, **OPTIONS[name])
        model = network(12)
        if not alone:
            mesh = mesh_of(2, 2)
            tensor_parallel(model, mesh["tensor"])
            fully_sharded(model, mesh["data"])
        found[f"tp_fsdp-{name}"] = operators_of(model, alone, **OPTIONS[name])
    return found


# What is sent.


class Traffic(TorchDispatchMode):
    """Counts the bytes of every collective, whoever calls it.

    Attributes:
        calls: (operation, bytes of the tensors that this rank gives to it) of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            # The first argument that is a tensor or tensors: what is sent, or received.
            given = args[1] if "gather" in str(func) else args[0]
            tensors = given if isinstance(given, (list, tuple)) else [given]
            size = sum(t.nbytes for t in tensors if isinstance(t, Tensor))
            self.calls.append((func.__name__.partition(".")[0].strip("_"), size))
        return func(*args, **(kwargs or {}))

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.calls)


def traffic() -> Any:
    """What a jump sends, for networks of two sizes and blocks of two kinds, judged or not."""
    found = {}
    replicated = nn.parallel.DistributedDataParallel
    for kind, make in (("shards", fully_sharded), ("replicas", replicated)):
        for width in (16, 160):
            for partition in ("layer", "node"):
                options = {"guard": "finite", "horizon": 20, "partition": partition, "rank": 2}
                training = Training(make(network(width)), batch(), **options)
                training.run(11)
                training.step()
                with Traffic() as sent:
                    training.trainer.after_step()
                operator = training.trainer.operator
                found[f"{kind} {width} {partition}"] = (operator.n_blocks, operator.m, sent.calls)
    return found


def judged_traffic() -> Any:
    """What judging sends beside what the probe itself does."""
    training = Training(fully_sharded(network()), batch())
    training.run(11)
    training.step()
    with Traffic() as probed:
        with torch.no_grad():
            training.loss()
        training.trainer._team.prepare()
    with Traffic() as sent:
        record = training.trainer.after_step(training.loss)
    return {"sent": sent.calls, "probed": probed.calls, "evaluations": record.probe_evaluations}


def frameworks() -> Any:
    """The trainer of a framework's callback, which is given the network inside the wrapper."""
    wrapper = replica()
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.05)
    attachment = Attachment(None, {"window": 6, "stride": 2})
    x, y = batch(seed=dist.get_rank())
    trainer = attachment.begin(
        wrapper.module, optimizer, lambda: nn.functional.mse_loss(wrapper.module(x), y)
    )
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(wrapper(x), y).backward()
        optimizer.step()
    records = trainer.history.jumps
    return {
        "weights": {name: whole(p) for name, p in wrapper.named_parameters()},
        "jumps": [(r.step, r.accepted, r.horizon, r.kind) for r in records],
        "reasons": [r.reason for r in records],
    }


# Checkpoints.


def checkpointing(model: nn.Module) -> Training:
    return Training(model, batch(), stride=4, average=True)


def dcp(alone: bool = False) -> Any:
    """Saved in the middle of a window (and of a stride), loaded into a new model, trained on."""
    training = checkpointing(network() if alone else fully_sharded(network()))
    training.run(45)
    if not alone:
        import torch.distributed.checkpoint as dcp

        dcp.save(parts(training), checkpoint_id=FOLDER / "dcp")
        return dcp_loaded()
    return training.run(40)


def dcp_loaded() -> Any:
    import torch.distributed.checkpoint as dcp

    torch.manual_seed(5)
    training = checkpointing(fully_sharded(Net(13).double()))
    dcp.load(parts(training), checkpoint_id=FOLDER / "dcp")
    recorded = training.trainer._snapshots.count
    return training.run(40) | {"recorded": recorded}


def parts(training: Training) -> dict[str, Any]:
    saved = koopfast.checkpoint.Stateful(training.trainer)
    return {"model": training.model.state_dict(), "koopman": saved}


def elsewhere() -> Any:
    """The state of one rank, loaded by another."""
    training = Training(fully_sharded(network()), batch())
    training.run(5)
    states: list[Any] = [None] * world()
    dist.all_gather_object(states, training.trainer.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training.trainer.load_state_dict(states[1 - dist.get_rank()])
    recorded = training.trainer._snapshots.count
    messages = [str(w.message) for w in caught if w.category is koopfast.KoopmanWarning]
    return training.run(20) | {"recorded": recorded, "warnings": messages}


def ddp_averaged(alone: bool = False) -> Any:
    return averaged(replica(alone))


def fsdp_averaged(alone: bool = False) -> Any:
    return averaged(network() if alone else fully_sharded(network()))


def averaged(model: nn.Module) -> Any:
    """Noisy training without jumps, the mean of its weights, and one that a checkpoint gives."""
    training = Training(model, batch(), window="auto", stride="auto")
    trainer, target = training.trainer, training.y
    generator = torch.Generator().manual_seed(2)
    for _ in range(60):
        training.y = target + torch.randn(target.shape, generator=generator, dtype=target.dtype)
        training.step()
        training.y = target
        trainer.after_step(lambda: -1.0)  # no weights are better than others
    before = [whole(p) for p in model.parameters()]
    with torch.no_grad():  # which leaves sharded parameters together
        loss = training.loss()
        with trainer.averaged(iter((1.0, 0.5)).__next__) as shown:
            other = training.loss()
        assert training.loss() == loss != other
    with trainer.averaged(iter((1.0, 0.5)).__next__):
        mean = [whole(p) for p in model.parameters()]
    same = all(
        torch.equal(whole(p), old) for p, old in zip(model.parameters(), before, strict=True)
    )
    kept = koopfast.checkpoint.Stateful(trainer)
    kept.load_state_dict(kept.state_dict())
    with trainer.averaged() as again:
        pass
    return training.told() | {"shown": shown, "mean": mean, "same": same, "again": again}


# A process is killed. FOLDER/killed.pt is what remains.


def killed() -> Any:
    """Rank 1 dies at its second candidate; what rank 0 is left with."""
    training, probes = Training(replica(), batch()), []
    training.run(15)
    if dist.get_rank() == 0:
        koopfast.save_checkpoint(FOLDER / "killed.checkpoint", training.trainer)

    def probe() -> Tensor:
        probes.append(1)
        if len(probes) == 3 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return training.loss()

    for _ in range(8):
        training.step()
        training.trainer.after_step(probe)
    training.step()
    before = training.told()["weights"]
    try:
        training.trainer.after_step(probe)
    except koopfast.DistributedError as error:
        after = training.told()["weights"]
        kept = all(torch.equal(before[name], after[name]) for name in before)
        return {"message": str(error), "kept": kept, "probes": len(probes)}
    return {"message": "", "kept": False, "probes": len(probes)}


def resumed() -> Any:
    """All processes start again from the last checkpoint."""
    training = Training(replica(), batch())
    koopfast.load_checkpoint(FOLDER / "killed.checkpoint", training.trainer)
    return training.run(STEPS - 15)


# What is refused.


def refusals() -> Any:
    """The message of each."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor, Partial

    found = {}

    def refused(name: str, model: nn.Module, **options: Any) -> None:
        try:
            Training(model, batch(), **options)
        except koopfast.KoopfastError as error:
            found[name] = f"{type(error).__name__}: {error}"

    partial = network()
    sums = DTensor.from_local(partial.last.bias.detach(), mesh_of(world()), [Partial()])
    partial.last.bias = nn.Parameter(sums)
    refused("Partial", partial)
    refused("FSDP1", FullyShardedDataParallel(network(), device_id=torch.device("cpu")))
    zero = network()
    zero.last.bias.ds_id = 0
    refused("ZeRO", zero)
    refused("False", fully_sharded(network()), process_group=False)
    refused("no group", network(), process_group="all")
    refused("streaming", fully_sharded(network()), streaming=True, partition="node", rank=2)
    refused("qr", fully_sharded(network()), method="qr")
    refused("weight", fully_sharded(network()), partition="weight")
    refused("complex", in_one_group(nn.Linear(3, 3, dtype=torch.complex64)))
    refused("other models", network(13 + dist.get_rank()), process_group=dist.group.WORLD)
    refused("other options", replica(), window=6 + dist.get_rank())
    return found


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


FOLDER = Path()


def main() -> None:
    global FOLDER
    FOLDER, cases = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=dt.timedelta(seconds=SECONDS))
    for name in cases:
        try:
            result = globals()[name]()
        except Exception:
            result = {"error": traceback.format_exc()}
        torch.save(result, FOLDER / f"{name}.{world()}.{dist.get_rank()}.pt")
        if name == "killed":
            os._exit(0)  # nobody is left to say goodbye to
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
