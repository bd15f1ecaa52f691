# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from koopfast import ConfigError, History, KoopmanConfig, KoopmanTrainer, Partition
from training_runs import OPTIMIZERS, Run, assert_same, everything, noisy_run, smooth_run

pytestmark = pytest.mark.usefixtures("on_device")

FAST = {"window": 12, "stride": 2, "partition": "network", "rank": 4}


class Bowl(nn.Module):
    """A quadratic whose curvatures span three decades; gradient descent on it is linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(40, dtype=torch.float64))
        self.curvature = torch.logspace(0, -3, 40, dtype=torch.float64)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.5)

    def loss(self) -> Tensor:
        return 0.5 * (self.curvature * self.weight**2).sum()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


# What it is for


def test_jumps_reach_the_loss_of_2000_plain_steps_in_a_fifth_of_them() -> None:
    plain, helped = Bowl(), Bowl()
    for _ in range(2000):
        plain.step()
    trainer = KoopmanTrainer(helped, helped.optimizer, window=16, stride=2)
    while helped.loss() > plain.loss() and trainer.history.counters.optimizer_steps < 2000:
        helped.step()
        trainer.after_step(helped.loss)
    assert trainer.history.counters.optimizer_steps <= 400
    assert trainer.history.counters.predicted_steps > 2000


def test_an_accepted_jump_lowers_the_loss_to_what_it_recorded() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    record = None
    while record is None:
        run.step()
        before = run.loss().item()
        record = trainer.after_step(run.loss)
    assert record.accepted
    assert record.step == 24
    assert record.loss_before == before
    assert record.loss_after == run.loss().item() < before
    assert (record.horizon, record.loss_after) in record.candidates
    assert record.rank is not None
    assert trainer.operator is not None
    assert trainer.history.jumps == [record]


def test_a_linear_system_is_predicted_exactly() -> None:
    """Gradient descent on a quadratic in four weights, jumped 100 steps ahead."""
    model = nn.Linear(4, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    start = model.weight.detach().clone()
    rates = torch.tensor([0.99, 0.9, 0.5, -0.7], dtype=torch.float64)
    trainer = KoopmanTrainer(
        model, optimizer, KoopmanConfig.paper(100, "network", window=10), rank=4, tolerance=1e-14
    )
    record = None
    for _ in range(10):
        model.weight.grad = (1 - rates) * model.weight.detach()
        optimizer.step()
        record = trainer.after_step()
    assert record is not None
    assert record.accepted
    assert record.probe_evaluations == 0
    torch.testing.assert_close(model.weight.detach(), start * rates**110, rtol=0, atol=1e-6)


# When it records and jumps


def test_search_tries_a_quarter_window_and_on_in_optimizer_steps() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, window=9, stride=4, max_horizon=3)
    losses = iter([10.0, 9.0, 8.0, 7.0, 6.0, 5.0])
    for _ in range(36):
        run.step()
        record = trainer.after_step(lambda: next(losses))
    assert record is not None
    assert [horizon for horizon, _ in record.candidates] == [8, 16, 32, 64, 96]
    assert record.horizon == 96


def test_a_fixed_horizon_is_the_only_candidate() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST, horizon=50)
    run.train(trainer, 24)
    (record,) = trainer.history.jumps
    assert [horizon for horizon, _ in record.candidates] == [50]
    assert record.probe_evaluations == 2


def test_candidates_are_formed_in_groups_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, grouped = smooth_run(), smooth_run()
    KoopmanTrainer(whole.model, whole.optimizer, **FAST)
    whole.train(KoopmanTrainer(whole.model, whole.optimizer, **FAST), 24)
    monkeypatch.setattr("koopfast._attempt._CANDIDATE_BYTES", 1)
    trainer = KoopmanTrainer(grouped.model, grouped.optimizer, **FAST)
    grouped.train(trainer, 24)
    assert trainer.history.counters.jumps_accepted == 1
    for a, b in zip(whole.weights(), grouped.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_warmup_and_cooldown_are_optimizer_steps_without_recording() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST, warmup=5, cooldown=7)
    run.train(trainer, 5 + 24 + 7 + 24)
    assert [jump.step for jump in trainer.history.jumps] == [29, 60]
    assert all(jump.accepted for jump in trainer.history.jumps)


def test_after_a_refusal_there_is_no_cooldown() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST, cooldown=7)
    for _ in range(48):
        run.step()
        trainer.after_step(lambda: 1.0)
    assert [jump.step for jump in trainer.history.jumps] == [24, 48]
    assert not any(jump.accepted for jump in trainer.history.jumps)


def test_jump_now_uses_what_is_recorded_and_counts_from_the_present_weights() -> None:
    """Five steps with a stride of two: the last snapshot is one step old."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = KoopmanTrainer(
        model, optimizer, stride=2, horizon=10, guard="finite", observables="state", rank=1
    )
    for _ in range(5):
        model.weight.grad = 0.1 * model.weight.detach()
        optimizer.step()
        trainer.after_step()
    assert trainer.jump_now().accepted
    torch.testing.assert_close(model.weight.item(), 0.9**15, rtol=1e-9, atol=0.0)


def test_jump_now_wants_enough_snapshots() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 4)
    with pytest.raises(ConfigError, match="at least 3 recorded snapshots, got 2"):
        trainer.jump_now(run.loss)
    run.train(trainer, 2)
    assert trainer.jump_now(run.loss).step == 6


def test_weights_that_do_not_require_gradients_or_are_not_optimized_stay() -> None:
    run = smooth_run()
    first, _, last = run.model
    first.bias.requires_grad_(False)
    held = [first.weight, last.weight]
    optimizer = torch.optim.SGD(held, lr=0.05)
    trainer = KoopmanTrainer(run.model, optimizer, **FAST)
    bias = last.bias.detach().clone()
    for _ in range(24):
        optimizer.zero_grad()
        run.loss().backward()
        optimizer.step()
        trainer.after_step(run.loss)
    assert trainer.history.counters.jumps_accepted == 1
    assert torch.equal(last.bias, bias)


def test_a_partition_of_ones_own_is_used() -> None:
    run = smooth_run()
    partition = Partition.from_segments([[(0, 20)], [(20, 21)]], 41)
    trainer = KoopmanTrainer(run.model, run.optimizer, window=12, stride=2, partition=partition)
    run.train(trainer, 24)
    assert trainer.operator is not None
    assert trainer.operator.n_blocks == 2


def test_the_optimizer_steps_are_counted_and_the_seconds_kept_apart() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 30)
    c = trainer.history.counters
    assert c.optimizer_steps == 30
    assert c.jumps_accepted + c.jumps_refused == 1
    assert c.predicted_steps == trainer.history.jumps[0].horizon
    assert c.probe_evaluations == 1 + len(trainer.history.jumps[0].candidates)
    assert min(c.seconds_record, c.seconds_fit, c.seconds_predict, c.seconds_probe) > 0
    assert "30 optimizer steps" in repr(trainer)


# Idle, it is not there


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("how", ["attached", "disabled", "refusing"])
def test_idle_training_is_bit_identical_to_the_plain_optimizer(optimizer: str, how: str) -> None:
    plain, watched = noisy_run(optimizer), noisy_run(optimizer)
    steps = 30
    torch.manual_seed(1)
    for _ in range(steps):
        plain.step()
    expected = everything(plain)
    torch.manual_seed(1)
    worst = iter(range(10**9))

    def probe() -> float:
        watched.loss()
        return next(worst)

    window = 5 if how == "refusing" else 32
    trainer = KoopmanTrainer(watched.model, watched.optimizer, window=window, stride=1, rank=2)
    trainer.attach(probe)
    trainer.enabled = how != "disabled"
    for _ in range(steps):
        watched.step()
    got = everything(watched)
    for state in (expected, got):
        del state["gradient ids"]
    assert_same(got, expected)
    assert trainer.history.counters.optimizer_steps == steps
    assert trainer.history.counters.jumps_refused == (6 if how == "refusing" else 0)


def test_switching_off_drops_the_window() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 20)
    trainer.enabled = False
    run.train(trainer, 10)
    trainer.enabled = True
    run.train(trainer, 23)
    assert trainer.history.jumps == []
    run.train(trainer, 1)
    assert [jump.step for jump in trainer.history.jumps] == [54]


# Attached to the optimizer


def test_attached_the_optimizer_makes_the_call() -> None:
    by_hand, attached = smooth_run(), smooth_run()
    by_hand.train(KoopmanTrainer(by_hand.model, by_hand.optimizer, **FAST), 50)
    trainer = KoopmanTrainer(attached.model, attached.optimizer, **FAST)
    trainer.attach(lambda: float("nan"))
    trainer.probe = attached.loss
    for _ in range(50):
        attached.step()
    assert trainer.history.counters.optimizer_steps == 50
    assert trainer.history.counters.jumps_accepted == 2
    assert_same(attached.weights(), by_hand.weights())


def test_attached_a_call_by_hand_is_an_error_and_detaching_ends_it() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    trainer.attach()
    with pytest.raises(ConfigError, match="attached"):
        trainer.after_step(run.loss)
    trainer.detach()
    trainer.detach()
    run.step()
    assert trainer.history.counters.optimizer_steps == 0
    run.train(trainer, 1)
    assert trainer.history.counters.optimizer_steps == 1


# The optimizer's state, and the way back


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("state", ["keep", "reset"])
def test_rollback_brings_weights_and_optimizer_back_to_the_jump(optimizer: str, state: str) -> None:
    run = smooth_run(optimizer)
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST, optimizer_state=state)
    losses = iter([1.0, 0.5, 0.6, 0.7])
    for _ in range(24):
        run.step()
        before = everything(run)
        trainer.after_step(lambda: next(losses))
    assert trainer.history.counters.jumps_accepted == 1
    for _ in range(3):
        run.step()
        trainer.after_step(run.loss)
    trainer.rollback()
    after = everything(run)
    assert_same(after["weights"], before["weights"])
    assert_same(after["optimizer"], before["optimizer"])
    assert trainer.history.counters.jumps_rolled_back == 1
    run.train(trainer, 23)
    assert len(trainer.history.jumps) == 1


def test_rollback_forgets_the_state_of_a_parameter_first_stepped_after_the_jump() -> None:
    run = smooth_run("adam")
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST, horizon=10, guard="finite")
    late = run.model[2].bias
    for _ in range(30):
        run.optimizer.zero_grad()
        run.loss().backward()
        if trainer.history.counters.jumps_accepted == 0:
            late.grad = None
        run.optimizer.step()
        trainer.after_step()
    assert late in run.optimizer.state
    trainer.rollback()
    assert late not in run.optimizer.state


def test_rollback_brings_the_running_statistics_back() -> None:
    run = noisy_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST, horizon=10, guard="finite")
    for _ in range(24):
        run.step()
        before = everything(run)
        trainer.after_step()
    run.step()
    trainer.rollback()
    assert_same(everything(run)["buffers"], before["buffers"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_reset_makes_the_next_step_that_of_a_new_optimizer(optimizer: str) -> None:
    run = smooth_run(optimizer)
    config = {**FAST, "horizon": 10, "guard": "finite", "optimizer_state": "reset"}
    trainer = KoopmanTrainer(run.model, run.optimizer, **config)
    run.train(trainer, 24)
    assert trainer.history.counters.jumps_accepted == 1
    fresh = Run(run.model, optimizer, run.x, run.y)
    at_jump = run.weights()
    run.step()
    stepped = run.weights()
    with torch.no_grad():
        for p, value in zip(run.model.parameters(), at_jump, strict=True):
            p.copy_(value)
    fresh.step()
    assert_same(fresh.weights(), stepped)


def test_keep_leaves_the_optimizer_as_it_was() -> None:
    run = smooth_run("adam")
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST, horizon=10, guard="finite")
    for _ in range(24):
        run.step()
        before = everything(run)["optimizer"]
        trainer.after_step()
    assert trainer.history.counters.jumps_accepted == 1
    assert_same(everything(run)["optimizer"], before)


# The whole loop


def batches(run: Run) -> list[tuple[Tensor, Tensor]]:
    return [(run.x[:10], run.y[:10]), (run.x[10:], run.y[10:])]


def test_fit_is_the_ordinary_loop_with_the_batch_as_probe() -> None:
    looped, fitted = smooth_run(), smooth_run()
    by_hand = KoopmanTrainer(looped.model, looped.optimizer, **FAST)
    for _ in range(20):
        for x, y in batches(looped):
            looped.optimizer.zero_grad()
            nn.functional.mse_loss(looped.model(x), y).backward()
            looped.optimizer.step()
            by_hand.after_step(lambda x=x, y=y: nn.functional.mse_loss(looped.model(x), y))
    trainer = KoopmanTrainer(fitted.model, fitted.optimizer, **FAST)
    history = trainer.fit(batches(fitted), nn.functional.mse_loss, epochs=20)
    assert isinstance(history, History)
    assert history is trainer.history
    assert history.counters.optimizer_steps == 40
    assert len(history.jumps) == len(by_hand.history.jumps) >= 1
    assert_same(fitted.weights(), looped.weights())


def test_fit_counts_once_when_attached() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    trainer.attach()
    trainer.fit(batches(run), nn.functional.mse_loss, epochs=12)
    assert trainer.history.counters.optimizer_steps == 24
    assert trainer.history.jumps[0].loss_before is not None


def test_fit_records_losses_and_validation_by_epoch_and_keeps_the_mode() -> None:
    run = noisy_run()

    def validate(model: nn.Module) -> Tensor:
        model.eval()
        return run.loss()

    trainer = KoopmanTrainer(run.model, run.optimizer)
    history = trainer.fit(batches(run), nn.functional.mse_loss, epochs=3, validate=validate)
    assert [step for step, _ in history.validation] == [2, 4, 6]
    assert [epoch.step for epoch in history.epochs] == [2, 4, 6]
    assert history.epochs[0].loss > 0
    assert all(module.training for module in run.model.modules())


def test_fit_stops_at_max_steps_in_mid_epoch() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    trainer.fit(batches(run), nn.functional.mse_loss, epochs=9, max_steps=3)
    assert [epoch.step for epoch in trainer.history.epochs] == [2, 3]


def test_fit_shows_a_bar_when_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    trainer.fit(batches(run), nn.functional.mse_loss, progress=False)
    trainer.fit(batches(run), nn.functional.mse_loss)
    assert capsys.readouterr().err == ""
    trainer.fit(batches(run), nn.functional.mse_loss, epochs=2, progress=True)
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs: expected an integer of 1 or more, got 0"),
        ({"max_steps": 1.5}, "max_steps: expected an integer of 1 or more, got 1.5"),
        ({"validate": lambda model: None}, "validate: expected a scalar, got NoneType"),
        ({"loader": [torch.zeros(1)]}, r"batches \(x, y\), got a Tensor"),
        ({"loader": [(1, 2, 3)]}, r"batches \(x, y\), got a tuple of 3"),
        ({"loader": []}, "at least one batch, got none in epoch 1 of 1"),
    ],
)
def test_fit_refuses_what_it_cannot_use(arguments: dict[str, Any], message: str) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    arguments = {"loader": batches(run), **arguments}
    with pytest.raises(ConfigError, match=message):
        trainer.fit(loss_fn=nn.functional.mse_loss, **arguments)
    trainer.fit(batches(run), nn.functional.mse_loss)


def test_a_generator_is_empty_in_the_second_epoch_and_that_is_said() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    with pytest.raises(ConfigError, match="none in epoch 2 of 2"):
        trainer.fit(iter(batches(run)), nn.functional.mse_loss, epochs=2)


# Reports


def test_a_json_report_holds_the_whole_history(tmp_path: Path) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 24)
    path = trainer.report(tmp_path / "new" / "report.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert History.from_dict(data["history"]) == trainer.history
    assert data["config"]["window"] == 12
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_a_failed_report_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    path = trainer.report(tmp_path / "report.json")
    old = path.read_text(encoding="utf-8")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        trainer.report(path)
    assert path.read_text(encoding="utf-8") == old
    assert len(list(tmp_path.iterdir())) == 1


def test_any_other_suffix_makes_a_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 24)
    path = trainer.report(tmp_path / "report.html")
    assert "<html" in path.read_text(encoding="utf-8")
