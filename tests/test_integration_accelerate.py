# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from integration_runs import FAST, data, example, network, weights
from koopfast import KoopmanOptimizer

pytest.importorskip("accelerate")


def run() -> Any:
    """(train for so many steps, accelerator, model, trainer)."""
    from accelerate import Accelerator

    from koopfast.integrations import accelerated_trainer

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=1e-2))
    x, y = data()

    def loss() -> torch.Tensor:
        return torch.nn.functional.mse_loss(model(x), y)

    trainer = accelerated_trainer(accelerator, model, optimizer, probe=loss, **FAST)

    def train(batches: int) -> None:
        for _ in range(batches):
            with accelerator.accumulate(model):
                optimizer.zero_grad()
                accelerator.backward(loss())
                optimizer.step()

    return train, accelerator, model, trainer


def test_the_example_jumps() -> None:
    assert example("accelerate_loop.py")["koopman"].history.counters.jumps_accepted > 0


def test_a_koopman_optimizer_can_be_prepared_too() -> None:
    from accelerate import Accelerator

    accelerator, model, (x, y) = Accelerator(cpu=True), network(), data()
    own = KoopmanOptimizer(torch.optim.Adam(model.parameters(), lr=1e-2), model=model, **FAST)
    model, optimizer = accelerator.prepare(model, own)
    own.probe = lambda: torch.nn.functional.mse_loss(model(x), y)
    for _ in range(24):
        optimizer.zero_grad()
        accelerator.backward(own.probe())
        optimizer.step()
    assert own.trainer.history.counters.optimizer_steps == 24
    assert own.trainer.history.counters.jumps_accepted > 0


def test_resumed_by_load_state_in_mid_window_the_run_is_the_same(tmp_path: Path) -> None:
    train, accelerator, model, trainer = run()
    train(18)  # 9 steps
    accelerator.save_state(str(tmp_path))
    train(42)
    assert trainer.history.counters.optimizer_steps == 30
    assert [jump.step for jump in trainer.history.jumps] == [12, 24]

    train, accelerator, resumed, trainer = run()
    accelerator.load_state(str(tmp_path))
    train(42)
    assert [jump.step for jump in trainer.history.jumps] == [12, 24]
    assert torch.equal(weights(resumed), weights(model))
