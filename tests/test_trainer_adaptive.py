# SPDX-License-Identifier: BSD-3-Clause
"""A trainer with default settings: it sets itself, pays for itself, and repeats to the last bit."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from koopfast import (
    CheckpointError,
    KoopmanConfig,
    KoopmanOperator,
    KoopmanTrainer,
    Partition,
    SnapshotBuffer,
)
from koopfast._adaptive import Predictions, is_uneven
from koopfast._horizon_search import Damped, Secant
from koopfast._training_loop import HeldBatches
from training_runs import OPTIMIZERS, Run, assert_same, everything, noisy_run, smooth_run

pytestmark = pytest.mark.usefixtures("on_device")


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 100), ("adagrad", 100), ("adam", 30)])
def test_default_settings_lower_a_smooth_loss_by_orders(optimizer: str, factor: float) -> None:
    plain, helped = smooth_run(optimizer), smooth_run(optimizer)
    trainer = KoopmanTrainer(helped.model, helped.optimizer)
    helped.train(trainer, 400)
    for _ in range(400):
        plain.step()
    assert helped.loss() < plain.loss() / factor


def state_of(run: Run) -> dict[str, Any]:
    """What two runs have in common that took the same steps."""
    return {key: value for key, value in everything(run).items() if key != "gradient ids"}


def predictions_from(states: Tensor, operator: KoopmanOperator) -> Predictions:
    """The candidates of a window that holds these states (m, n)."""
    parameters = nn.Parameter(torch.zeros_like(states[0]))
    snapshots = SnapshotBuffer([parameters], capacity=len(states))
    for state in states:
        parameters.data.copy_(state)
        snapshots.record()
    return Predictions(snapshots, operator.predict, operator, lag=0, room=0)


def test_a_block_goes_the_shorter_a_way_the_worse_its_hindcast() -> None:
    """One block decays evenly, the other turns at random."""
    torch.manual_seed(0)
    halving = 0.9 ** torch.arange(12, dtype=torch.float64)
    states = torch.stack((halving, 2 * halving, *torch.randn(2, 12, dtype=torch.float64)), dim=1)
    partition = Partition.from_segments([[(2, 2)], [(0, 2)]], 4)
    operator = KoopmanOperator.fit(states, partition, rank=1)
    operator.hindcast_error[:] = torch.tensor([2.0, 0.0])
    assert is_uneven(operator)
    predictions = predictions_from(states, operator)
    asked = predictions.search(item for item in (1.0, Damped(1.0)))  # type: ignore[arg-type]
    (steps, whole), (damped_steps, damped) = asked
    assert steps == damped_steps == 11
    way = torch.tensor([1.0, 1.0, 0.2, 0.2], dtype=torch.float64)
    torch.testing.assert_close(damped, states[-1] + way * (whole - states[-1]))


def test_a_secant_goes_straight_on_from_the_last_snapshot() -> None:
    states = torch.arange(12, dtype=torch.float64)[:, None] ** 2 * torch.tensor([1.0, -2.0])
    operator = KoopmanOperator.fit(states, Partition.from_segments([[(0, 2)]], 2), rank=1)
    predictions = predictions_from(states, operator)
    asked = predictions.search(item for item in (Secant(0.5), Secant(4.0)))  # type: ignore[arg-type]
    (short, near), (long, far) = asked
    assert (short, long) == (6, 44)
    torch.testing.assert_close(near, 1.5 * states[-1])
    torch.testing.assert_close(far, 5 * states[-1])


def test_snapshots_are_few_and_dense_at_first() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    run.train(trainer, 24)
    assert [jump.step for jump in trainer.history.jumps] == [12, 24]


def test_refused_jumps_become_rare_and_cost_two_percent() -> None:
    """A probe that likes nothing but what it is given first."""
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    losses = iter(range(10**6))
    for _ in range(1500):
        run.step()
        trainer.after_step(lambda: 1.0 + next(losses))
    counters = trainer.history.counters
    assert counters.jumps_accepted == 0
    assert counters.probe_evaluations / 3 <= 0.02 * 1500


def test_training_in_which_nothing_is_accepted_is_bit_identical_to_plain_training() -> None:
    plain, watched = noisy_run("adam"), noisy_run("adam")
    torch.manual_seed(1)
    for _ in range(100):
        plain.step()
    torch.manual_seed(1)
    trainer = KoopmanTrainer(watched.model, watched.optimizer)
    losses = iter(range(10**6))
    for _ in range(100):
        watched.step()
        trainer.after_step(lambda: float(next(losses)) + watched.loss().item() * 0)
    assert trainer.history.counters.probe_evaluations > 0
    assert_same(state_of(plain), state_of(watched))


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("first", [5, 17, 100])
def test_a_run_resumes_in_mid_window_to_the_last_bit(optimizer: str, first: int) -> None:
    whole = smooth_run(optimizer)
    unbroken = KoopmanTrainer(whole.model, whole.optimizer)
    whole.train(unbroken, 200)

    begun = smooth_run(optimizer)
    trainer = KoopmanTrainer(begun.model, begun.optimizer)
    begun.train(trainer, first)
    file = io.BytesIO()
    torch.save((begun.model.state_dict(), begun.optimizer.state_dict(), trainer.state_dict()), file)
    file.seek(0)
    model, state, of_trainer = torch.load(file, weights_only=True)

    resumed = smooth_run(optimizer)
    resumed.model.load_state_dict(model)
    resumed.optimizer.load_state_dict(state)
    trainer = KoopmanTrainer(resumed.model, resumed.optimizer)
    trainer.load_state_dict(of_trainer)
    resumed.train(trainer, 200 - first)
    assert_same(state_of(whole), state_of(resumed))


class Trap(nn.Module):
    """A weight whose loss, as probed, falls with every jump, and rises behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        self.sprung = False

    def step(self) -> None:
        self.optimizer.zero_grad()
        (self.weight**2).sum().backward()
        self.optimizer.step()

    def loss(self) -> Tensor:
        return (self.weight**2).sum() * (10 if self.sprung else 1)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(("treatment", "steps"), [("keep", 24), ("auto", 15)])
def test_a_jump_behind_which_the_loss_rises_is_undone(
    resumed: bool, treatment: Any, steps: int
) -> None:
    """When the next window is full; after a quarter of it where a state was forgotten on trial."""
    trap = Trap()
    trainer = KoopmanTrainer(trap, trap.optimizer, optimizer_state=treatment)
    while trainer.history.counters.jumps_accepted == 0:
        trap.step()
        before = copy.deepcopy((trap.state_dict(), trap.optimizer.state_dict()))
        trainer.after_step(trap.loss)
    trap.sprung = True
    if resumed:
        state = trainer.state_dict()
        trainer = KoopmanTrainer(trap, trap.optimizer, optimizer_state=treatment)
        trainer.load_state_dict(state)
    while trainer.history.counters.jumps_rolled_back == 0:
        trap.step()
        trainer.after_step(trap.loss)
    assert trainer.history.counters.optimizer_steps == steps
    assert_same(before, (trap.state_dict(), trap.optimizer.state_dict()))


def test_a_jump_beyond_the_account_is_undone_in_mid_window() -> None:
    trap = Trap()
    trainer = KoopmanTrainer(trap, trap.optimizer, overhead=None)
    while trainer.history.counters.jumps_accepted == 0:
        trap.step()
        before = copy.deepcopy((trap.state_dict(), trap.optimizer.state_dict()))
        trainer.after_step(trap.loss)
    assert trainer._controller is not None
    trainer._controller._s.daring = True  # as where the window is long and the account is low
    trap.sprung = True
    for _ in range(3):
        assert trainer.history.counters.jumps_rolled_back == 0
        trap.step()
        trainer.after_step(trap.loss)
    assert trainer.history.counters.jumps_rolled_back == 1
    assert_same(before, (trap.state_dict(), trap.optimizer.state_dict()))
    assert trainer._rows.count == 0
    for _ in range(40):
        trap.step()
        trainer.after_step(trap.loss)
    assert trainer.history.counters.jumps_rolled_back == 1


def test_every_look_is_counted() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, probe_gradients=False)
    calls = 0

    def probe() -> Tensor:
        nonlocal calls
        calls += 1
        return run.loss()

    for _ in range(300):
        run.step()
        trainer.after_step(probe)
    assert trainer.history.counters.probe_evaluations == calls


def test_an_undo_of_another_model_is_refused() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    run.train(trainer, 15)
    state = trainer.state_dict()
    for undo in ({}, {**state["undo"], "weights": state["undo"]["weights"][1:]}):
        with pytest.raises(CheckpointError, match="undo"):
            trainer.load_state_dict({**state, "undo": undo})


def test_a_failing_probe_leaves_the_controller_as_it_was() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    run.train(trainer, 11)
    controller = trainer._controller
    assert controller is not None
    before = controller.state_dict()
    run.step()
    calls = iter([run.loss()])
    with pytest.raises(StopIteration):
        trainer.after_step(lambda: next(calls))
    after = controller.state_dict()
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {
        *("evaluations", "credit", "attempts", "mark_at", "mark_loss", "rate", "noise"),
        *("latest", "last_look", "gained"),
    }
    assert not controller.on_trial


@pytest.mark.parametrize(
    ("gains", "accepted"), [([0.1, 0.11, 0.1, 0.12], True), ([0.9, -0.2, 0.1, -0.3], False)]
)
def test_losses_of_several_batches_must_fall_by_more_than_chance(
    gains: list[float], accepted: bool
) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    stepped: list[Tensor] = []

    def probe() -> list[float]:
        moved = not torch.equal(stepped[0], run.weights()[0])
        return [1.0 - gain * moved for gain in gains]

    for _ in range(12):
        run.step()
        stepped[:] = run.weights()
        record = trainer.after_step(probe)
    assert record is not None
    assert record.accepted is accepted


def test_what_jumps_gained_is_estimated_and_reported(tmp_path: Path) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    run.train(trainer, 300)
    counters = trainer.history.counters
    assert counters.evaluations_gained > 300
    data = json.loads(trainer.report(tmp_path / "run.json").read_text())
    assert data["history"]["counters"]["evaluations_gained"] == counters.evaluations_gained
    assert "gradient evaluations gained" in trainer.report(tmp_path / "run.html").read_text()


def test_a_stride_that_is_set_stays_and_nothing_adapts() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, stride=3)
    run.train(trainer, 2 * 96)
    assert [jump.step for jump in trainer.history.jumps] == [96, 192]
    assert trainer.config.snapshots == 32
    assert not trainer.config.adaptive


@pytest.mark.parametrize(
    ("fields", "adaptive", "snapshots", "stride"),
    [
        ({}, True, 12, 1),
        ({"window": 20}, True, 20, 1),
        ({"delays": 15}, True, 17, 1),
        ({"stride": 2}, False, 32, 2),
        ({"horizon": 50}, False, 32, 4),
        ({"guard": "finite", "horizon": 50}, False, 32, 4),
    ],
)
def test_what_auto_stands_for(
    fields: dict[str, Any], adaptive: bool, snapshots: int, stride: int
) -> None:
    config = KoopmanConfig(**fields)
    assert (config.adaptive, config.snapshots, config.first_stride) == (adaptive, snapshots, stride)


def test_fit_judges_by_the_first_batches_of_its_loader() -> None:
    torch.manual_seed(0)
    loader = [(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(6)]
    held = HeldBatches()
    assert held.begin(loader)
    for x, y in loader:
        held.offer(x, y)
    assert not held.begin(loader)
    for x, y in reversed(loader):
        held.offer(x, y)
    model = nn.Linear(3, 1)
    losses = held.probe(model, nn.functional.mse_loss)()
    assert losses == [nn.functional.mse_loss(model(x), y) for x, y in loader[:3]]


def test_fit_trains_with_default_settings() -> None:
    run = smooth_run("adam")
    trainer = KoopmanTrainer(run.model, run.optimizer)
    trainer.fit([(run.x, run.y)], nn.functional.mse_loss, epochs=200, progress=False)
    assert trainer.history.counters.jumps_accepted > 5


@pytest.mark.clock
def test_no_pause_begins_while_longer_steps_are_on_trial() -> None:
    """They may be undone, and all that was trained since with them."""
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    controller = trainer._controller
    assert controller is not None
    for rising, idle in ((True, 0), (False, 50)):
        controller._steps.rising, controller.pause = rising, 50
        trainer._begin_pause(controller)
        assert trainer._idle == idle
        assert controller.pause == 0


@pytest.mark.clock
def test_the_controller_is_told_how_long_looking_on_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    assert trainer._controller is not None
    told = []
    monkeypatch.setattr(trainer._controller, "clock", lambda *numbers: told.append(numbers))
    monkeypatch.setattr(type(trainer._clock), "idle_share", 0.02)
    trainer._look_at_clock(trainer._controller)
    assert told[0][-2:] == (0.05, 0.02)


@pytest.mark.clock
def test_too_much_time_for_jumps_makes_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds a probe by the clock, and nothing gained."""
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    now = [0.0]
    monkeypatch.setattr("koopfast.guard.perf_counter", lambda: now[0])
    monkeypatch.setattr("koopfast._costs.perf_counter", lambda: now[0])
    losses = iter(range(10**6))

    def slow() -> float:
        now[0] += 2.0
        return 1.0 + next(losses)

    for _ in range(400):
        run.step()
        now[0] += 0.1
        trainer.after_step(slow)
    counters = trainer.history.counters
    assert counters.seconds_probe < 0.05 * now[0] + 3 * 8.0
