# SPDX-License-Identifier: BSD-3-Clause
"""Statistics of batch normalisation: of the weights that a jump keeps, or untouched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from koopfast import ConfigError, KoopmanTrainer, KoopmanWarning
from koopfast.controller import FORWARD
from training_runs import assert_same, everything


class NormalizedRun:
    """Full-batch training of a network with batch normalisation, judged in evaluation mode."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)
        ).double()
        self.x = torch.randn(32, 3, dtype=torch.float64)
        self.y = self.x.sin().sum(1, keepdim=True)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.batches = [self.x[:16], self.x[16:]]

    def step(self) -> None:
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.model(self.x), self.y).backward()
        self.optimizer.step()

    def loss(self) -> Tensor:
        self.model.eval()
        return nn.functional.mse_loss(self.model(self.x), self.y)

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def forward(self) -> list[Tensor]:
        return [self.model(x) for x in self.batches]

    def trainer(self, **overrides: Any) -> KoopmanTrainer:
        settings = {"window": 8, "stride": 1, "batch_norm": "recalibrate", **overrides}
        trainer = KoopmanTrainer(self.model, self.optimizer, **settings)
        trainer.recalibrate = self.forward
        return trainer

    def train(self, trainer: KoopmanTrainer, steps: int) -> None:
        for _ in range(steps):
            self.step()
            trainer.after_step(self.loss)


def test_an_accepted_jump_leaves_the_statistics_of_its_own_weights() -> None:
    run = NormalizedRun()
    trainer = run.trainer()
    run.train(trainer, 8)
    assert trainer.history.jumps[-1].accepted
    same = copy.deepcopy(run.model)
    update_bn(run.batches, same)
    assert_same(dict(same.named_buffers()), dict(run.model.named_buffers()))
    assert run.model[1].momentum == 0.1
    assert all(module.training for module in run.model.modules())


def test_weights_are_judged_with_the_statistics_that_stay() -> None:
    run = NormalizedRun()
    trainer = run.trainer()
    run.train(trainer, 8)
    loss = run.loss().item()
    assert trainer.history.jumps[-1].loss_after == pytest.approx(loss, rel=1e-12)


def test_a_refused_jump_leaves_them_to_the_last_bit() -> None:
    run, alone = NormalizedRun(), NormalizedRun()
    trainer = run.trainer()
    for _ in range(8):
        alone.step()
    losses = iter(range(10**6))
    for _ in range(8):
        run.step()
        trainer.after_step(lambda: run.loss().item() * 0 + next(losses))
    assert not trainer.history.jumps[-1].accepted
    assert_same(dict(alone.model.named_buffers()), dict(run.model.named_buffers()))


def test_a_rollback_brings_the_statistics_back() -> None:
    run, alone = NormalizedRun(), NormalizedRun()
    trainer = run.trainer()
    run.train(trainer, 8)
    trainer.rollback()
    for _ in range(8):
        alone.step()
    assert_same(dict(alone.model.named_buffers()), dict(run.model.named_buffers()))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_on_the_way_leaves_everything(error: type[BaseException]) -> None:
    run = NormalizedRun()
    trainer = run.trainer()
    run.train(trainer, 7)
    run.step()
    before = everything(run)  # type: ignore[arg-type]

    def breaks_off() -> None:
        run.model(run.x[:4])
        raise error("stop")

    trainer.recalibrate = breaks_off
    with pytest.raises(error):
        trainer.after_step(run.loss)
    assert_same(before, everything(run))  # type: ignore[arg-type]
    assert run.model[1].momentum == 0.1


def test_its_passes_are_counted_as_evaluations() -> None:
    costs = {}
    for batch_norm in ("keep", "recalibrate"):
        run = NormalizedRun()
        trainer = run.trainer(window="auto", stride="auto", batch_norm=batch_norm)
        run.train(trainer, 12)
        assert trainer._controller is not None
        tried = len(trainer.history.jumps[-1].candidates)
        costs[batch_norm] = (trainer._controller.evaluations - 12) / FORWARD, tried
    looks = costs["keep"][0] - costs["keep"][1]
    cost, tried = costs["recalibrate"]
    assert cost == pytest.approx(looks + 3 * tried)  # a probe and two batches


def test_fit_recalibrates_from_the_batches_that_it_judges_by() -> None:
    run = NormalizedRun()
    trainer = KoopmanTrainer(run.model, run.optimizer, batch_norm="recalibrate")
    loader = [(run.x, run.y)]
    trainer.fit(loader, nn.functional.mse_loss, epochs=12, progress=False)
    assert trainer.history.jumps[-1].accepted
    same = copy.deepcopy(run.model)
    update_bn([run.x], same)
    assert_same(dict(same.named_buffers()), dict(run.model.named_buffers()))


def test_without_batches_they_are_kept_and_that_is_said_once() -> None:
    run = NormalizedRun()
    trainer = run.trainer()
    trainer.recalibrate = None
    with pytest.warns(KoopmanWarning, match="no batches are there") as warned:
        run.train(trainer, 16)
    assert len(warned) == 1


def test_without_a_probe_there_is_nothing_to_recalibrate_for() -> None:
    with pytest.raises(ConfigError, match="got guard='finite'"):
        NormalizedRun().trainer(guard="finite", horizon=3)
