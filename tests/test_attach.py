# SPDX-License-Identifier: BSD-3-Clause
"""Once for each step that was really taken, whatever is wrapped around the optimizer."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from koopfast import ConfigError, KoopmanTrainer, KoopmanWarning
from training_runs import Run, assert_same, smooth_run

pytestmark = pytest.mark.usefixtures("on_device")

FAST = {"window": 6, "stride": 3, "partition": "network", "rank": 3}


class Around:
    """As accelerate and Lightning wrap: passes everything on and runs no hooks itself."""

    def __init__(self, optimizer: Any, name: str) -> None:
        setattr(self, name, optimizer)
        self.param_groups = optimizer.param_groups
        self.state = optimizer.state
        self._step = optimizer.step

    def step(self) -> None:
        self._step()


class Slow(torch.optim.Optimizer):
    """As Lookahead wraps: an optimizer in its own right, which moves weights after the other."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step()
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.99)


@pytest.mark.parametrize("name", ["optimizer", "base_optimizer", "_optimizer"])
def test_a_wrapped_optimizer_is_attached_to_inside(name: str) -> None:
    run = smooth_run()
    wrapped = Around(Around(run.optimizer, name), "optimizer")
    trainer = KoopmanTrainer(run.model, wrapped, **FAST)  # type: ignore[arg-type]
    trainer.attach(run.loss)
    run.loss().backward()
    wrapped.step()
    run.step()
    assert trainer.history.counters.optimizer_steps == 2
    assert trainer.optimizer is wrapped  # type: ignore[comparison-overlap]


def test_a_wrapper_that_moves_weights_itself_is_recorded_after_it_did() -> None:
    run = smooth_run()
    outer = Slow(run.optimizer)
    trainer = KoopmanTrainer(run.model, outer, window=4, stride=1, partition="network")
    trainer.attach(run.loss)
    run.loss().backward()
    outer.step()
    assert torch.equal(
        trainer._snapshots.snapshots[0], nn.utils.parameters_to_vector(run.weights())
    )


def test_rollback_brings_back_the_state_inside_a_wrapper_too() -> None:
    run = smooth_run("adam")
    outer = Slow(run.optimizer)
    losses = iter([2.0, 1.0, *[3.0] * 9])
    trainer = KoopmanTrainer(run.model, outer, window=4, stride=1, partition="network", rank=2)
    trainer.attach(lambda: next(losses))
    run.loss().backward()
    for _ in range(4):
        outer.step()
    assert trainer.history.counters.jumps_accepted == 1
    state = copy.deepcopy(run.optimizer.state_dict())
    outer.step()
    trainer.rollback()
    assert_same(run.optimizer.state_dict(), state)


class Sub(torch.optim.Adam):
    """As people write them: the parent's step, which torch wraps too, and something after it."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        result = super().step(closure)
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.mul_(0.99)
        return result


@pytest.mark.parametrize("fails_first", [False, True])
def test_a_subclass_that_calls_its_parents_step_is_recorded_once_when_all_is_done(
    fails_first: bool,
) -> None:
    run = smooth_run("adam")  # wraps Adam.step
    optimizer = Sub(run.model.parameters())
    trainer = KoopmanTrainer(run.model, optimizer, window=4, stride=1, partition="network")
    trainer.attach(run.loss)
    run.loss().backward()

    def failing() -> None:
        raise LookupError

    if fails_first:
        with pytest.raises(LookupError):
            optimizer.step(failing)
    optimizer.step()
    assert trainer.history.counters.optimizer_steps == 1
    weights = nn.utils.parameters_to_vector(run.weights())
    assert torch.equal(trainer._snapshots.snapshots[0], weights)


def test_attaching_twice_is_an_error_that_says_how_to_change_the_probe() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    trainer.attach(run.loss)
    with pytest.raises(
        ConfigError, match=r"attached already; to change the probe set trainer\.probe"
    ):
        trainer.attach(run.loss)
    run.step()
    assert trainer.history.counters.optimizer_steps == 1


def test_a_second_trainer_on_the_same_optimizer_is_refused_until_the_first_lets_go() -> None:
    run = smooth_run()
    one = KoopmanTrainer(run.model, run.optimizer, **FAST)
    other = KoopmanTrainer(run.model, Around(run.optimizer, "optimizer"), **FAST)  # type: ignore[arg-type]
    one.attach(run.loss)
    with pytest.raises(ConfigError, match="another KoopmanTrainer is attached to this SGD"):
        other.attach(run.loss)
    one.detach()
    other.attach(run.loss)


def test_a_trainer_whose_name_was_lost_can_be_replaced() -> None:
    """As when a notebook's cell runs again: the optimizer keeps the first one alive."""
    run = smooth_run("adam")
    KoopmanTrainer(run.model, run.optimizer, **FAST).attach(run.loss)
    run.step()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    with pytest.raises(ConfigError, match=r"1 optimizer steps.*attach\(replace=True\)"):
        trainer.attach(run.loss)
    for _ in range(2):
        trainer.attach(run.loss, replace=True)
    for _ in range(6):
        run.step()
    assert trainer.history.counters.optimizer_steps == 6
    # its own, the watch for skips, and that of shortened steps
    assert len(run.optimizer._optimizer_step_post_hooks) == 3


def test_two_optimizers_each_have_a_trainer() -> None:
    a, b = smooth_run(), smooth_run("adam")
    trainers = [KoopmanTrainer(run.model, run.optimizer, **FAST) for run in (a, b)]
    for trainer, run in zip(trainers, (a, b), strict=True):
        trainer.attach(run.loss)
    for _ in range(20):
        a.step()
        b.step()
    assert [t.history.counters.optimizer_steps for t in trainers] == [20, 20]
    assert all(t.history.jumps for t in trainers)


def test_the_probe_can_only_be_set_where_a_step_would_call_it() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    with pytest.raises(ConfigError, match="probe: the trainer is not attached"):
        trainer.probe = run.loss
    trainer.attach()
    with pytest.raises(ConfigError, match="probe: expected a callable"):
        trainer.probe = run.loss()  # type: ignore[assignment]
    trainer.probe = run.loss
    assert trainer.probe == run.loss


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_attached_and_says_that_it_lacks_the_probe(how: str) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    trainer.attach(run.loss)
    twin = copy.deepcopy(trainer) if how == "deepcopy" else pickle.loads(pickle.dumps(trainer))
    other = Run(twin.model, "sgd", run.x, run.y)
    other.optimizer = twin.optimizer
    for _ in range(17):
        other.step()
    with pytest.warns(KoopmanWarning, match="needs a loss to judge by"):
        other.step()
    assert twin.history.counters.optimizer_steps == 18
    assert trainer.history.counters.optimizer_steps == 0


def test_without_a_probe_the_closure_of_the_step_is_the_probe() -> None:
    """L-BFGS calls its closure many times a step; the trainer is called once, with the same one."""
    torch.manual_seed(0)
    run = smooth_run()
    optimizer = torch.optim.LBFGS(run.model.parameters(), lr=0.1, max_iter=3)
    trainer = KoopmanTrainer(run.model, optimizer, window=4, stride=1, partition="network", rank=2)
    trainer.attach()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = run.loss()
        loss.backward()
        return loss

    for _ in range(8):
        gradients = [p.grad for p in run.model.parameters()]
        optimizer.step(closure)
    assert trainer.history.counters.optimizer_steps == 8
    assert len(trainer.history.jumps) == 2
    assert trainer.history.counters.probe_evaluations > 2
    assert [p.grad is g for p, g in zip(run.model.parameters(), gradients, strict=True)]


def test_accumulated_gradients_are_one_step() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    trainer.attach(run.loss)
    for batch in range(12):
        (run.loss() / 4).backward()
        if batch % 4 == 3:
            run.optimizer.step()
            run.optimizer.zero_grad()
    assert trainer.history.counters.optimizer_steps == 3


def test_a_compiled_step_is_recorded_once_and_outside_the_graph() -> None:
    run, plain = smooth_run(), smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    trainer.attach(run.loss)
    step = torch.compile(run.optimizer.step, backend="eager")
    for _ in range(7):
        run.optimizer.zero_grad()
        run.loss().backward()
        step()
        plain.step()
    assert trainer.history.counters.optimizer_steps == 7
    assert trainer._snapshots.count == 2
    assert_same(run.weights(), plain.weights())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_compiled_step_stays_the_one_graph_that_it_is_alone(optimizer: str) -> None:
    run = smooth_run(optimizer)
    trainer = KoopmanTrainer(run.model, run.optimizer, **{**FAST, "stride": 1})
    trainer.attach(run.loss)
    step = torch.compile(run.optimizer.step, backend="eager")
    counters = torch._dynamo.utils.counters["stats"]
    graphs = counters["unique_graphs"]
    for _ in range(30):
        run.optimizer.zero_grad()
        run.loss().backward()
        step()
    assert trainer.history.counters.optimizer_steps == 30
    assert trainer.history.counters.jumps_accepted >= 3
    assert counters["unique_graphs"] == graphs + 1


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_by_the_scaler_is_never_recorded(fused: bool, attached: bool) -> None:
    """The fused kernel is called and leaves the weights alone; the plain one is not called."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    trainer = KoopmanTrainer(model, optimizer, window=8, stride=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    if attached:
        trainer.attach(lambda: 1.0)
    x = torch.ones(2, 3)
    taken = 0
    for step in range(6):
        optimizer.zero_grad()
        before = model.weight.detach().clone()
        loss = model(x).square().sum()
        scaler.scale(loss * float("inf") if step % 2 == 0 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = not torch.equal(before, model.weight)
        taken += moved
        if not attached and (moved or fused):
            trainer.after_step()
    assert taken == 3
    assert trainer.history.counters.optimizer_steps == 3
    rows = trainer._snapshots.snapshots
    assert len(rows) == 3
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(rows))


def test_a_trainer_that_is_not_attached_is_not_kept_alive() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    gone = weakref.ref(trainer)
    hooks = run.optimizer._optimizer_step_post_hooks
    assert hooks
    del trainer
    gc.collect()
    assert gone() is None
    assert not hooks
