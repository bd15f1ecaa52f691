# SPDX-License-Identifier: BSD-3-Clause
"""Steps that cancel each other are shortened; nothing else about an optimizer changes."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from koopfast import KoopmanTrainer
from koopfast._relaxation import Relaxation
from koopfast.parameters import ParameterVector
from training_runs import assert_same

CURVES = torch.tensor([0.02, 0.03, 0.05, 0.08, 0.1], dtype=torch.float64)
RATE = 0.021


class Valley(nn.Module):
    """A narrow valley with a long floor: at a rate above 2 / 100 steps come to swing across it."""

    def __init__(self) -> None:
        super().__init__()
        self.across = nn.Parameter(torch.tensor([1e-6], dtype=torch.float64))
        self.along = nn.Parameter(torch.linspace(1.0, 2.0, 5, dtype=torch.float64))

    def loss(self) -> Tensor:
        return 50 * torch.log1p(self.across**2).sum() + (CURVES * self.along**2).sum()


class Training:
    """Gradient descent in the valley."""

    def __init__(self, rate: float = RATE, **config: Any) -> None:
        self.model = Valley()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate)
        self.trainer = KoopmanTrainer(self.model, self.optimizer, overhead=None, **config)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model.loss().backward()
            self.optimizer.step()
            self.trainer.after_step(self.model.loss)

    @property
    def shortened(self) -> int:
        return self.trainer.history.counters.steps_shortened

    def everything(self) -> dict[str, Any]:
        state = self.trainer.state_dict()
        timed = ("seconds_",)
        history = state.pop("history")
        counters = {k: v for k, v in history["counters"].items() if not k.startswith(timed)}
        return {"weights": self.model.state_dict(), "counters": counters, "state": state}


def relaxed(p: nn.Parameter, optimizer: torch.optim.Optimizer) -> Relaxation:
    return Relaxation(optimizer, ParameterVector([("p", p)]))


def test_half_of_a_step_is_gone() -> None:
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([p], lr=0.1)
    relaxation = relaxed(p, optimizer)
    relaxation.part = 0.5
    p.grad = torch.tensor([4.0, 8.0])
    relaxation.begin()
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.8, -2.4]))
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_whole_steps_are_the_optimizers_own() -> None:
    p, q = (nn.Parameter(torch.tensor([0.3, 0.7])) for _ in range(2))
    one, other = torch.optim.Adam([p]), torch.optim.Adam([q])
    relaxation = relaxed(p, one)
    for _ in range(3):
        p.grad = q.grad = torch.tensor([0.1, 1e-9])
        relaxation.begin()
        one.step()
        other.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize(("gradients", "cosine"), [((1.0, -1.0), -1.0), ((1.0, 0.5), 1.0)])
def test_consecutive_steps_are_compared(gradients: tuple[float, ...], cosine: float) -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], lr=1.0)
    relaxation = relaxed(p, optimizer)
    relaxation.measuring = True
    for gradient in gradients:
        p.grad = torch.full((3,), gradient)
        relaxation.begin()
        optimizer.step()
    assert relaxation.turning() == pytest.approx(cosine, abs=1e-6)
    assert math.isnan(relaxation.turning())


class Nested(torch.optim.SGD):
    """A step within a step: torch calls the hooks of both."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_a_step_within_a_step_is_shortened_once() -> None:
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = Nested([p], lr=1.0)
    relaxation = relaxed(p, optimizer)
    relaxation.part = 0.5
    p.grad = torch.tensor([1.0])
    relaxation.begin()
    optimizer.step()
    assert p.item() == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_shares_of_a_step_need_enough_bits(dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.ones(2, dtype=dtype))
    assert not relaxed(p, torch.optim.SGD([p], lr=0.1)).possible


def test_swinging_steps_are_shortened_where_jumps_pay() -> None:
    with_it, without = Training(), Training(relax=False)
    with_it.run(400)
    without.run(400)
    assert with_it.shortened > 0
    assert without.shortened == 0
    assert with_it.model.loss() < without.model.loss()
    assert with_it.optimizer.param_groups[0]["lr"] == RATE


def test_smooth_training_is_left_alone() -> None:
    training = Training(rate=0.005)
    training.run(400)
    assert training.trainer.history.counters.jumps_accepted > 0
    assert training.shortened == 0


def test_swinging_steps_stay_whole_where_no_jump_is_kept() -> None:
    """As without a trainer, to the last bit."""
    training, alone = Training(), Training(relax=False)
    losses = iter(range(10**6))
    training.model.loss_seen = lambda: float(next(losses))  # type: ignore[assignment]
    for run in (training, alone):
        for _ in range(200):
            run.optimizer.zero_grad()
            run.model.loss().backward()
            run.optimizer.step()
            if run is training:
                run.trainer.after_step(run.model.loss_seen)  # type: ignore[operator]
    assert training.shortened == 0
    assert_same(dict(training.model.state_dict()), dict(alone.model.state_dict()))


def test_a_trainer_that_is_switched_off_leaves_steps_whole() -> None:
    training = Training()
    while training.shortened == 0:
        training.run(1)
    training.trainer.enabled = False
    before = training.model.along.detach().clone()
    training.run(1)
    torch.testing.assert_close(training.model.along.detach(), before * (1 - RATE * 2 * CURVES))


@pytest.mark.parametrize("first", range(95, 145, 3))
def test_a_run_with_shortened_steps_resumes_to_the_last_bit(first: int) -> None:
    whole = Training()
    whole.run(300)
    assert whole.shortened > 0

    begun = Training()
    begun.run(first)
    file = io.BytesIO()
    torch.save((begun.model.state_dict(), begun.trainer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = Training()
    resumed.model.load_state_dict(weights)
    resumed.trainer.load_state_dict(state)
    resumed.run(300 - first)
    assert_same(resumed.everything(), whole.everything())
