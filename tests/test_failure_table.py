# SPDX-License-Identifier: BSD-3-Clause
"""The failure table, rows 1 to 7: for each row tests named after it.

Each fails without its protection; docs/safety.md lists row, protection and test.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from koopfast import KoopmanConfig, KoopmanOperator, KoopmanTrainer
from koopfast.errors import KoopmanWarning
from training_runs import Run, assert_same, everything, noisy_run, smooth_run

pytestmark = pytest.mark.usefixtures("on_device")

FAST: dict[str, Any] = {"window": 6, "stride": 1, "partition": "network", "rank": 3}


def watched(run: Run, **overrides: Any) -> KoopmanTrainer:
    return KoopmanTrainer(run.model, run.optimizer, **{**FAST, **overrides})


@contextmanager
def one_warning(about: str) -> Iterator[None]:
    """What is done warns once, of ``about``, and in words that say that training goes on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [w.category for w in caught] == [KoopmanWarning]
    assert about in str(caught[0].message)
    assert str(caught[0].message).endswith("; training goes on")


def state_of(run: Run) -> dict[str, Any]:
    """All that is never lost; gradient tensors are new at each step."""
    state = everything(run)
    del state["gradient ids"]
    return state


# Row 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_or_inf_in_a_snapshot(bad: float) -> None:
    """The window is refused, training is the plain one, and a healed run jumps again."""
    run, plain = smooth_run("adam"), smooth_run("adam")
    trainer = watched(run)
    healthy = run.model.state_dict()["0.bias"][0].item()
    for each in (run, plain):
        each.model[0].bias.data[0] = bad
    with one_warning("jump refused at step 6: "):
        run.train(trainer, 12)
    for _ in range(12):
        plain.step()
    for mine, other in zip(run.weights(), plain.weights(), strict=True):
        assert torch.equal(mine.view(torch.int64), other.view(torch.int64))
    assert [jump.kind for jump in trainer.history.jumps] == ["operator", "operator"]
    healed = smooth_run()
    healed.model[0].bias.data[0] = healthy
    run.model.load_state_dict(healed.model.state_dict())
    run.optimizer.state.clear()
    run.train(trainer, 6)
    assert trainer.history.jumps[-1].accepted


# Row 2


def test_exploding_prediction() -> None:
    """The weights grow by half at each step: far ahead they are finite, enormous and no good."""
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    config = KoopmanConfig.paper(50, "network", window=4).replace(guard="probe")
    trainer = KoopmanTrainer(model, optimizer, config)
    for _ in range(4):
        model.weight.grad = -0.5 * model.weight.detach()
        optimizer.step()
        before = model.weight.detach().clone()
        record = trainer.after_step(lambda: model.weight.abs().sum())
    assert record is not None
    assert record.kind == "no_gain"
    assert 1e6 < record.candidates[0][1] < math.inf
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("guard", ["probe", "finite"])
def test_non_finite_prediction(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, plain = smooth_run("momentum"), smooth_run("momentum")
    trainer = watched(run, guard=guard, horizon=10)
    predict = KoopmanOperator.predict
    monkeypatch.setattr(KoopmanOperator, "predict", lambda *a: predict(*a) * math.inf)
    with one_warning("not finite"):
        run.train(trainer, 12)
    for _ in range(12):
        plain.step()
    assert_same(state_of(run), state_of(plain))
    assert [jump.kind for jump in trainer.history.jumps] == ["non_finite"] * 2


def test_prediction_that_is_not_finite_in_the_dtype_of_its_parameter() -> None:
    """Both weights grow by half at each step; only the one of 16 bits leaves its range."""
    model = nn.ParameterDict(
        {"short": nn.Parameter(torch.ones(2, dtype=torch.float16)), "long": torch.ones(2)}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    config = KoopmanConfig.paper(40, "network", window=4)
    trainer = KoopmanTrainer(model, optimizer, config)
    for _ in range(3):
        _grow(model, optimizer)
        trainer.after_step()
    _grow(model, optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    with one_warning("not finite"):
        record = trainer.after_step()
    assert record is not None
    assert record.kind == "non_finite"
    assert_same([p.detach() for p in model.parameters()], before)


def _grow(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for p in model.parameters():
        p.grad = -0.5 * p.detach()
    optimizer.step()


# Row 3


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "adagrad"])
def test_worse_loss_after_a_jump_with_exact_rollback(optimizer: str) -> None:
    """Weights, buffers, gradients, optimizer state, modes and random streams: to the last bit."""
    run = noisy_run(optimizer)
    trainer = watched(run, optimizer_state="reset")
    worse = iter(range(100))

    def probe() -> float:
        run.loss().backward()
        run.model.eval()
        random.random()
        np.random.random()  # noqa: NPY002 - the stream that users share
        return float(next(worse))

    for _ in range(6):
        run.step()
        before = everything(run)
        record = trainer.after_step(probe)
    assert record is not None
    assert record.kind == "no_gain"
    assert len(record.candidates) == 2
    assert_same(everything(run), before)


# Row 4


class Odd(nn.Module):
    """Two weights that move alike, one that moves otherwise, two that stand still, a zero."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.tensor([3.0, 3.0, 1.0, 2.0, 2.0, 0.0], dtype=torch.float64)
        self.weight = nn.Parameter(start)
        self.pull = torch.tensor([0.05, 0.05, 0.01, 0.0, 0.0, 0.0], dtype=torch.float64)

    def loss(self) -> Tensor:
        return (self.pull * self.weight**2).sum()


@pytest.mark.parametrize("observables", ["increments", "state"])
@pytest.mark.parametrize("partition", ["network", "weight"])
@pytest.mark.parametrize("rank", ["auto", None, 5])
def test_rank_deficient_constant_or_zero_weights(
    partition: str, rank: Any, observables: Any
) -> None:
    odd = Odd()
    optimizer = torch.optim.SGD(odd.parameters(), lr=0.5)
    config: dict[str, Any] = {"window": 12, "stride": 1, "partition": partition, "rank": rank}
    config["observables"] = observables
    trainer = KoopmanTrainer(odd, optimizer, unstable="keep", **config)
    for _ in range(12):
        optimizer.zero_grad()
        odd.loss().backward()
        optimizer.step()
        record = trainer.after_step(odd.loss)
    assert record is not None
    assert record.accepted
    moved, alike, other, *rest = odd.weight.tolist()
    assert abs(moved) < 1e-3
    assert abs(other) < 1e-3
    assert moved == alike
    assert rest == [2.0, 2.0, 0.0]


@pytest.mark.parametrize("method", ["gram", "qr"])
def test_rank_deficient_weights_beneath_rounding(method: str) -> None:
    """Forty weights move in two directions: what rounding adds to them is not taken for motion."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(40, 2, dtype=torch.float64, generator=generator))
    weight = nn.Parameter(q.sum(1) + 1.0)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    model = nn.ParameterList([weight])
    config = {"horizon": 2000, "guard": "finite", "unstable": "keep", "method": method}
    trainer = KoopmanTrainer(model, optimizer, window=12, stride=1, rank=None, **config)
    for _ in range(12):
        weight.grad = q @ (torch.tensor([0.1, 0.01], dtype=torch.float64) * (q.T @ weight.detach()))
        optimizer.step()
        trainer.after_step()
    assert trainer.history.jumps[0].accepted
    assert (q.T @ weight.detach()).abs().max() < 1e-3


def test_all_weights_constant() -> None:
    run = smooth_run()
    run.optimizer.param_groups[0]["lr"] = 0.0
    before = run.weights()
    with one_warning("jump refused at step 6"):
        run.train(watched(run), 12)
    assert_same(run.weights(), before)


# Row 5


def test_empty_or_0_element_parameters() -> None:
    run = smooth_run()
    run.model.register_parameter("none", None)
    run.model.register_parameter("empty", nn.Parameter(torch.empty(0, 3, dtype=torch.float64)))
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    trainer = watched(run, partition="node")
    run.train(trainer, 6)
    assert trainer.history.jumps[0].accepted
    trainer.load_state_dict(trainer.state_dict())


# Row 6


@pytest.mark.parametrize("fused", [False, True])
def test_skipped_amp_step_at_a_snapshot(fused: bool) -> None:
    """GradScaler leaves out a step whose gradients overflow: no call records one.

    It does call a fused optimizer, which leaves the weights alone.
    """
    run = smooth_run()
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05, fused=fused)
    trainer = watched(run, window=32)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    rows = []
    for step in range(12):
        run.optimizer.zero_grad()
        scaler.scale(run.loss()).backward()
        if step % 3 == 0:
            run.model[0].bias.grad[0] = math.inf  # type: ignore[index]
        scaler.step(run.optimizer)
        scaler.update()
        assert trainer.after_step(run.loss) is None
        if step % 3:
            rows.append(torch.cat([p.flatten() for p in run.weights()]))
    assert trainer.history.counters.optimizer_steps == 8
    assert torch.equal(trainer._snapshots.snapshots, torch.stack(rows))


@pytest.mark.parametrize("attached", [False, True])
def test_accumulation_at_a_snapshot(attached: bool) -> None:
    """Three backward passes a step, and a call after each of them: one step, one row."""
    run = smooth_run()
    trainer = watched(run, window=32)
    if attached:
        trainer.attach(run.loss)
    for micro in range(12):
        run.loss().backward()
        if micro % 3 == 2:
            run.optimizer.step()
            run.optimizer.zero_grad()
        if not attached:
            trainer.after_step(run.loss)
    assert trainer.history.counters.optimizer_steps == trainer._snapshots.count == 4


# Row 7


def test_tied_parameters() -> None:
    """They are one block of numbers, written once, and one parameter afterwards as before."""
    run = smooth_run()
    run.model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 1)).double()
    run.model[2].weight = run.model[0].weight
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    trainer = watched(run)
    run.train(trainer, 6)
    (record,) = trainer.history.jumps
    assert record.accepted
    assert run.model[2].weight is run.model[0].weight
    assert trainer._parameters.n == 9 + 3 + 3 + 4
    assert run.loss().item() == record.loss_after
