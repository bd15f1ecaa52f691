# SPDX-License-Identifier: BSD-3-Clause
"""A dry run never jumps, and says what jumps would have gained."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from koopfast import ConfigError, History, KoopmanOperator, KoopmanTrainer, Partition, cli
from koopfast._rehearsal import outlook, relative_error
from koopfast.history import Forecast
from training_runs import assert_same, everything, noisy_run, smooth_run

pytestmark = pytest.mark.usefixtures("on_device")

SCRIPT = """
import torch
def make_training():
    model = torch.nn.Linear(2, 1, bias=False).double()
    torch.nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr={rate})
    def loss():
        return (model.weight ** 2 * torch.tensor([1.0, 0.1])).sum()
    def step():
        optimizer.zero_grad(); loss().backward(); optimizer.step()
        if {rate} == 1.0: model.weight.data[0, 1] = 1.0
    return model, optimizer, step, loss
"""


@pytest.mark.parametrize("make", [smooth_run, noisy_run])
def test_training_is_that_without_a_trainer_to_the_last_bit(make: object) -> None:
    plain, watched = make("adam"), make("adam")  # type: ignore[operator]
    for _ in range(80):
        plain.step()
    torch.manual_seed(1)
    expected = everything(plain)
    watched = make("adam")  # type: ignore[operator]
    trainer = KoopmanTrainer(watched.model, watched.optimizer, dry_run=True)
    for _ in range(80):
        watched.step()
        assert trainer.after_step(watched.loss) is None
    torch.manual_seed(1)
    now = everything(watched)
    for key in ("weights", "buffers", "optimizer", "modes"):
        assert_same(now[key], expected[key], key)
    assert trainer.history.forecasts
    assert trainer.history.jumps == []


def test_a_forecast_is_compared_with_the_weights_and_the_loss_that_came() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, dry_run=True, window=8, stride=2)
    weights, losses = {}, {}
    for step in range(1, 90):
        run.step()
        weights[step] = nn.utils.parameters_to_vector(run.model.parameters()).detach()
        losses[step] = run.loss().item()
        trainer.after_step(run.loss)
    first = [f for f in trainer.history.forecasts if f.step == 16]
    assert [f.horizon for f in first] == [4, 7, 14, 28, 56]
    assert [f.windows for f in first] == [4 / 14, 0.5, 1, 2, 4]
    rows = torch.stack([weights[step] for step in range(2, 17, 2)])
    operator = KoopmanOperator.fit(rows, Partition.layer(run.model))
    for f in first:
        assert f.loss_before == losses[16]
        assert f.loss_real == losses[16 + f.horizon]
        (predicted,) = operator.predict([f.horizon / 2])
        real, start = weights[16 + f.horizon], weights[16]
        expected = float((predicted - real).norm() / (real - start).norm())
        assert f.error == pytest.approx(expected, rel=1e-6)
        nn.utils.vector_to_parameters(predicted, run.model.parameters())
        assert f.loss_predicted == pytest.approx(run.loss().item(), rel=1e-9)
    assert trainer.history.counters.probe_evaluations > len(first)


def test_relative_error_of_standing_still_is_1() -> None:
    start, real = torch.zeros(3), torch.ones(3)
    assert relative_error(start, real, start) == 1
    assert relative_error(real, real, start) == 0
    assert relative_error(start, start, start) == 0
    assert relative_error(real, start, start) == float("inf")


def forecast(horizon: int, predicted: float, real: float, step: int = 12) -> Forecast:
    return Forecast(step, 1, horizon, horizon / 11, 0.1, 1.0, predicted, real)


def test_what_is_gained_is_what_training_takes_to_the_lowest_loss_predicted() -> None:
    """The best prediction, 0.5, is reached 22 steps later; three looks and the first cost 4/3."""
    window = [forecast(3, 0.9, 0.9), forecast(11, 0.5, 0.7), forecast(22, 0.8, 0.5)]
    assert outlook(window).gained == pytest.approx(22 - 4 / 3)
    assert outlook(window).helps
    in_vain = [forecast(3, 1.1, 0.9, 24), forecast(11, float("nan"), 0.7, 24)]
    assert outlook(in_vain).gained == pytest.approx(-1)
    assert not outlook(in_vain).helps
    assert outlook(window + in_vain).gained == pytest.approx((22 - 4 / 3 - 1) / 2)
    assert "nothing can be said yet" in outlook([]).in_words()


def test_without_a_probe_the_weights_alone_are_compared() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, dry_run=True, window=8, stride=2)
    for _ in range(80):
        run.step()
        trainer.after_step()
    found = trainer.history.outlook()
    assert found.helps
    assert found.gained is None
    assert "predicted to within half of the motion" in found.in_words()
    assert trainer.history.counters.probe_evaluations == 0


def test_strides_take_turns_and_a_resumed_run_goes_on_in_mid_window() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, dry_run=True)
    run.train(trainer, 30)
    state, model = copy.deepcopy(trainer.state_dict()), copy.deepcopy(run.model.state_dict())
    other = smooth_run()
    other.model.load_state_dict(model)
    resumed = KoopmanTrainer(other.model, other.optimizer, dry_run=True)
    resumed.load_state_dict(state)
    for one, owner in ((run, trainer), (other, resumed)):
        one.train(owner, 320)
        assert {f.stride for f in owner.history.forecasts} == {1, 4, 16}
    later = [f for f in trainer.history.forecasts if f.step > 30]
    assert [f for f in resumed.history.forecasts if f.step > 30] == later


def test_weights_written_by_another_end_what_was_waited_for(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("noticed when the window is full: test_watch.py")
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, dry_run=True, window=8, stride=1)
    run.train(trainer, 9)
    with torch.no_grad():
        run.model[0].weight.mul_(2)
    with pytest.warns(match="the weights were changed between two optimizer steps"):
        run.train(trainer, 8)
    assert trainer.history.forecasts == []


def test_there_is_no_jump_on_demand() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, dry_run=True)
    with pytest.raises(ConfigError, match="dry_run=True never jumps"):
        trainer.jump_now(run.loss)


def test_history_report_and_summary_tell_it(tmp_path: Path) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, dry_run=True)
    run.train(trainer, 80)
    assert History.from_dict(trainer.history.to_dict()) == trainer.history
    assert "would help" in trainer.history.summary()
    data = json.loads(trainer.report(tmp_path / "run.json").read_text())
    assert data["history"]["forecasts"]
    pytest.importorskip("matplotlib")
    page = trainer.report(tmp_path / "run.html").read_text(encoding="utf-8")
    assert "Predictions and what came of them" in page


@pytest.mark.parametrize(("rate", "code"), [(0.01, 0), (1.0, 3)])
def test_doctor_rehearses_a_script_that_has_a_loss(
    rate: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate of 1 the weight changes its sign at each step, and the loss is what it was."""
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT.format(rate=rate), encoding="utf-8")
    assert cli.main(["doctor", str(path), "--steps", "200", "--json"]) == code
    facts = json.loads(capsys.readouterr().out)
    assert facts["helps"] == (code == 0)
    assert {row["stride"] for row in facts["rows"]} >= {1}
    assert cli.main(["doctor", str(path), "--steps", "200", "--quiet"]) == code
    assert capsys.readouterr().out.strip() == facts["verdict"]
