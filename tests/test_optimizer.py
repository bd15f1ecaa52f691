# SPDX-License-Identifier: BSD-3-Clause
"""KoopmanOptimizer stands wherever its base could stand."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from koopfast import CheckpointError, ConfigError, KoopmanOptimizer, KoopmanTrainer
from training_runs import OPTIMIZERS, Run, assert_same, smooth_run

pytestmark = pytest.mark.usefixtures("on_device")

FAST = {"window": 6, "stride": 3, "partition": "network", "rank": 3}


def wrapped(optimizer: str = "adam", **overrides: Any) -> tuple[Run, KoopmanOptimizer]:
    """A run that steps a KoopmanOptimizer."""
    run = smooth_run(optimizer)
    own = KoopmanOptimizer(run.optimizer, model=run.model, probe=run.loss, **{**FAST, **overrides})
    run.optimizer = own
    return run, own


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_is_the_base_and_a_trainer(optimizer: str) -> None:
    by_hand = smooth_run(optimizer)
    trainer = KoopmanTrainer(by_hand.model, by_hand.optimizer, **FAST)
    by_hand.train(trainer, 40)
    run, own = wrapped(optimizer)
    for _ in range(40):
        run.step()
    assert own.trainer.history.jumps
    assert_same(run.weights(), by_hand.weights())


def test_groups_state_and_defaults_are_those_of_the_base() -> None:
    run, own = wrapped()
    base = own.base_optimizer
    assert isinstance(own, torch.optim.Optimizer)
    assert own.param_groups is base.param_groups
    assert own.state is base.state
    assert own.defaults is base.defaults
    own.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.5})
    assert base.param_groups[1]["lr"] == 0.5
    run.loss().backward()
    own.zero_grad()
    assert all(p.grad is None for p in run.model.parameters())


def test_a_scheduler_sets_the_rate_of_the_base() -> None:
    run, own = wrapped()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(own, max_lr=0.01, total_steps=10)
    for _ in range(10):
        run.step()
        scheduler.step()
    assert own.base_optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0] < 1e-3
    assert own.trainer.history.counters.optimizer_steps == 10


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_unscales_and_skips_itself(fused: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    base = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    own = KoopmanOptimizer(base, model=model, probe=lambda: 1.0, window=8, stride=1)
    assert not hasattr(own, "_step_supports_amp_scaling")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    x = torch.ones(2, 3)
    for step in range(6):
        own.zero_grad()
        before = model.weight.detach().clone()
        loss = model(x).square().sum()
        scaler.scale(loss * float("nan") if step % 3 == 0 else loss).backward()
        scaler.step(own)
        scaler.update()
        assert torch.equal(before, model.weight) == (step % 3 == 0)
    assert own.trainer.history.counters.optimizer_steps == 4


def test_a_closure_is_passed_on_and_is_the_probe_where_there_is_no_other() -> None:
    run = smooth_run()
    base = torch.optim.LBFGS(run.model.parameters(), lr=0.1, max_iter=2)
    own = KoopmanOptimizer(base, model=run.model, **{**FAST, "stride": 1})

    def closure() -> torch.Tensor:
        own.zero_grad()
        loss = run.loss()
        loss.backward()
        return loss

    losses = [float(own.step(closure).detach()) for _ in range(6)]
    assert losses[-1] < losses[0]
    (record,) = own.trainer.history.jumps
    assert record.probe_evaluations > 1


@pytest.mark.parametrize("with_model", [False, True])
def test_resumed_from_its_state_dict_the_run_is_the_same(with_model: bool) -> None:
    def make() -> tuple[Run, KoopmanOptimizer]:
        run = smooth_run("momentum")
        model = run.model if with_model else None
        own = KoopmanOptimizer(run.optimizer, model=model, probe=run.loss, **FAST)
        run.optimizer = own
        return run, own

    run, own = make()
    for _ in range(25):
        run.step()
    file = io.BytesIO()
    torch.save({"model": run.model.state_dict(), "optimizer": own.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, other = make()
    resumed.model.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    for _ in range(30):
        run.step()
        resumed.step()
    assert len(other.trainer.history.jumps) >= 2
    assert_same(resumed.weights(), run.weights())


def test_a_plain_state_is_taken_and_one_of_another_configuration_refused_whole() -> None:
    _, own = wrapped("adam")
    plain = smooth_run("adam")
    plain.step()
    own.load_state_dict(plain.optimizer.state_dict())
    assert_same(own.base_optimizer.state_dict()["state"], plain.optimizer.state_dict()["state"])
    _, other = wrapped("adam", window=9)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointError, match="window: saved 6, this trainer has 9"):
        other.load_state_dict(own.state_dict())
    assert_same(other.state_dict(), before)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_goes_on_alone_once_it_has_a_probe(how: str) -> None:
    run, own = wrapped("adam")
    for _ in range(25):
        run.step()
    pair = (run.model, own)
    model, other = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    twin = Run(model, "adam", run.x, run.y)
    twin.optimizer = other
    assert other.probe is None
    other.probe = twin.loss
    for _ in range(30):
        twin.step()
        run.step()
    assert len(own.trainer.history.jumps) >= 2
    assert_same(twin.weights(), run.weights())


def test_without_a_model_each_parameter_is_a_layer() -> None:
    run = smooth_run()
    own = KoopmanOptimizer(run.optimizer, probe=run.loss, window=6, stride=1)
    for _ in range(6):
        run.step()
    assert own.trainer.operator is not None
    assert own.trainer.operator.n_blocks == 4
    assert {id(p) for p in own.trainer.model.parameters()} == set(map(id, run.model.parameters()))


def test_float32_masters_jump_and_the_model_in_bfloat16_follows() -> None:
    torch.manual_seed(0)
    run = smooth_run()
    model = run.model.to(torch.bfloat16)
    x, y = run.x.bfloat16(), run.y.bfloat16()
    masters = [p.detach().float().requires_grad_() for p in model.parameters()]

    def show() -> None:
        with torch.no_grad():
            for p, master in zip(model.parameters(), masters, strict=True):
                p.copy_(master)

    def loss() -> torch.Tensor:
        show()
        return nn.functional.mse_loss(model(x).float(), y.float())

    own = KoopmanOptimizer(torch.optim.SGD(masters, lr=0.05), probe=loss, **FAST)
    for _ in range(40):
        model.zero_grad()
        loss().backward()
        for p, master in zip(model.parameters(), masters, strict=True):
            assert p.grad is not None
            master.grad = p.grad.float()
        own.step()
        show()
    assert own.trainer.history.counters.jumps_accepted > 0
    assert own.trainer._snapshots.vector.dtype == torch.float32
    assert all(
        torch.equal(p, m.bfloat16()) for p, m in zip(model.parameters(), masters, strict=True)
    )


def test_hooks_of_the_wrapper_are_called() -> None:
    run, own = wrapped()
    called: list[str] = []
    own.register_step_pre_hook(lambda *_: called.append("before"))
    own.register_step_post_hook(lambda *_: called.append("after"))
    own.register_state_dict_post_hook(lambda *_: called.append("saved"))
    run.step()
    own.state_dict()
    assert called == ["before", "after", "saved"]


def test_one_trainer_at_a_time() -> None:
    run, own = wrapped()
    with pytest.raises(ConfigError, match="another KoopmanTrainer is attached"):
        KoopmanOptimizer(own, model=run.model)
    with pytest.raises(ConfigError, match="another KoopmanTrainer is attached"):
        KoopmanTrainer(run.model, own).attach()
    with pytest.raises(
        ConfigError, match=r"base: expected a torch\.optim\.Optimizer, got generator"
    ):
        KoopmanOptimizer(run.model.parameters())  # type: ignore[arg-type]
