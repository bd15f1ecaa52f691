# SPDX-License-Identifier: BSD-3-Clause
"""After a jump the optimizer's state is predicted, or momenta are halved; both can be undone."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from koopfast import ConfigError, KoopmanTrainer, KoopmanWarning
from koopfast._moment_window import tensors_a_weight
from koopfast._savepoint import OptimizerState
from training_runs import OPTIMIZERS, Run, assert_same, everything, smooth_run


class Quadratic(nn.Module):
    """Ten weights on a bowl of two curvatures: with momentum, a linear system of four modes."""

    def __init__(self, optimizer: str = "momentum") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, 10, dtype=torch.float64))
        self.curvature = torch.tensor([1.0, 3.0], dtype=torch.float64).repeat(5)
        self.optimizer = OPTIMIZERS[optimizer](self.parameters())

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def loss(self) -> Tensor:
        return (self.curvature * self.weight**2).sum()

    @property
    def state(self) -> dict[str, Any]:
        return self.optimizer.state[self.weight]


def jumped(model: Quadratic, horizon: int = 20, **overrides: Any) -> KoopmanTrainer:
    """Twelve steps and a jump."""
    settings: dict[str, Any] = {
        "optimizer_state": "predict",
        "window": 12,
        "stride": 1,
        "rank": None,
    }
    settings |= {"horizon": horizon, "guard": "finite", **overrides}
    trainer = KoopmanTrainer(model, model.optimizer, **settings)
    for _ in range(12):
        model.step()
        trainer.after_step()
    assert trainer.history.counters.jumps_accepted == 1
    return trainer


def test_a_momentum_becomes_what_training_would_have_made_of_it() -> None:
    real, model = Quadratic(), Quadratic()
    for _ in range(32):
        real.step()
    jumped(model, 20, delays=2)
    # Singular values of a Gram matrix below 1e-7 of the largest are lost.
    torch.testing.assert_close(model.weight, real.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        model.state["momentum_buffer"], real.state["momentum_buffer"], rtol=0, atol=1e-6
    )


def test_squares_stay_above_zero_and_steps_are_counted_on() -> None:
    model, watched = Quadratic("adadelta"), Quadratic("adadelta")
    seen = []
    for _ in range(12):
        watched.step()
        seen.append(watched.state["square_avg"].clone())
    jumped(model, 500)  # it falls: predicted so far ahead, to below zero
    assert torch.equal(model.state["square_avg"], torch.stack(seen).amin(dim=0) / 4)
    assert float(model.state["step"]) == 12 + 500


def test_every_tensor_of_the_state_is_predicted() -> None:
    counts = {"sgd": 0, "momentum": 1, "adam": 2, "adadelta": 2, "adagrad": 1}
    for optimizer, count in counts.items():
        model = Quadratic(optimizer)
        assert tensors_a_weight(model.optimizer) == count
        jumped(model)
        before = dict(model.state)
        assert sum(value.shape == (10,) for value in before.values() if value is not None) == count
        model.step()  # goes on


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "adagrad"])
@pytest.mark.parametrize("treatment", ["predict", "decay"])
def test_a_rollback_brings_the_state_back_to_the_last_bit(optimizer: str, treatment: str) -> None:
    run, alone = smooth_run(optimizer), smooth_run(optimizer)
    trainer = KoopmanTrainer(
        run.model, run.optimizer, window=12, stride=1, optimizer_state=treatment
    )
    for _ in range(12):
        alone.step()
    run.train(trainer, 12)
    assert trainer.history.counters.jumps_accepted == 1
    run.step()
    trainer.rollback()
    assert_same(run.optimizer.state_dict(), alone.optimizer.state_dict())
    assert_same(run.weights(), alone.weights())


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_nothing_is_left_half_written(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    run = smooth_run("adam")
    trainer = KoopmanTrainer(
        run.model, run.optimizer, window=12, stride=1, optimizer_state="predict"
    )
    run.train(trainer, 11)
    run.step()
    before = everything(run)
    write = OptimizerState.replace

    def half(self: OptimizerState, entries: dict[Tensor, dict[str, Any]]) -> None:
        write(self, dict(list(entries.items())[:2]))
        raise error

    monkeypatch.setattr(OptimizerState, "replace", half)
    with pytest.raises(error):
        trainer.after_step(run.loss)
    assert_same(before, everything(run))


def test_no_room_for_the_fit_of_the_state_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("koopfast._ops.dual_fit", none)
    model = Quadratic("adam")
    with pytest.warns(KoopmanWarning, match="keeps the optimizer's state: the fit failed"):
        jumped(model)
    assert float(model.state["step"]) == 12


@pytest.mark.parametrize("first", [5, 17])
def test_a_run_resumes_in_mid_window_to_the_last_bit(first: int) -> None:
    def trainer_of(run: Run) -> KoopmanTrainer:
        return KoopmanTrainer(run.model, run.optimizer, optimizer_state="predict")

    whole, begun, resumed = smooth_run("adam"), smooth_run("adam"), smooth_run("adam")
    whole.train(trainer_of(whole), 60)
    trainer = trainer_of(begun)
    begun.train(trainer, first)
    file = io.BytesIO()
    torch.save((begun.model.state_dict(), begun.optimizer.state_dict(), trainer.state_dict()), file)
    file.seek(0)
    model, state, of_trainer = torch.load(file, weights_only=True)
    resumed.model.load_state_dict(model)
    resumed.optimizer.load_state_dict(state)
    trainer = trainer_of(resumed)
    trainer.load_state_dict(of_trainer)
    resumed.train(trainer, 60 - first)
    assert_same(whole.weights(), resumed.weights())
    assert_same(whole.optimizer.state_dict(), resumed.optimizer.state_dict())


def test_a_state_of_another_kind_is_kept_and_said_once() -> None:
    model = Quadratic()
    model.optimizer = torch.optim.NAdam(model.parameters())  # a product of rates beside the moments
    with pytest.warns(KoopmanWarning, match="NAdam keeps something else"):
        trainer = jumped(model)
    for _ in range(12):  # said once: another warning would be an error here
        model.step()
        trainer.after_step()
    assert float(model.state["step"]) == 24


def test_a_state_that_is_replaced_in_mid_window_is_kept() -> None:
    run = smooth_run("adam")
    trainer = KoopmanTrainer(
        run.model, run.optimizer, window=12, stride=1, optimizer_state="predict"
    )
    run.train(trainer, 6)
    run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    with pytest.warns(KoopmanWarning, match="it was replaced in the middle of a window"):
        run.train(trainer, 6)
    assert float(next(iter(run.optimizer.state.values()))["step"]) == 12


def test_momenta_are_halved_and_squares_stay() -> None:
    model, plain = Quadratic("adam"), Quadratic("adam")
    jumped(model, optimizer_state="decay")
    for _ in range(12):
        plain.step()
    assert torch.equal(model.state["exp_avg"], plain.state["exp_avg"] / 2)
    assert torch.equal(model.state["exp_avg_sq"], plain.state["exp_avg_sq"])


def test_what_cannot_be_predicted_is_refused_in_words() -> None:
    model = Quadratic("adam")
    for overrides in ({"streaming": True}, {"method": "qr"}, {"partition": "weight"}):
        with pytest.raises(ConfigError, match='"predict" combines recorded states'):
            jumped(model, **overrides)
    # Twelve snapshots of ten float64 weights, and of two moments of each: 2880 bytes.
    with pytest.raises(ConfigError, match="2 numbers more of each, 2880 bytes, got 2879"):
        jumped(model, max_bytes=2879)
    complex_model = nn.Linear(2, 2, dtype=torch.complex64)
    optimizer = torch.optim.SGD(complex_model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ConfigError, match="got complex parameters"):
        KoopmanTrainer(complex_model, optimizer, optimizer_state="predict")
