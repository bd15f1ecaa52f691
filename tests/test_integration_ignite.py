# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from integration_runs import FAST, data, example, network, weights

pytest.importorskip("ignite")


def run() -> Any:
    """(engine, model, optimizer, handler)."""
    from ignite.engine import create_supervised_trainer

    from koopfast.integrations import IgniteKoopman

    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    engine = create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss)

    def loss(engine: Any) -> torch.Tensor:
        x, y = engine.state.batch
        return torch.nn.functional.mse_loss(model(x), y)

    koopman = IgniteKoopman(model, optimizer, loss, **FAST)
    koopman.attach(engine)
    return engine, model, optimizer, koopman


def test_the_example_jumps() -> None:
    assert example("ignite_handler.py")["koopman"].trainer.history.counters.jumps_accepted > 0


def test_resumed_by_ignites_checkpoint_in_mid_window_the_run_is_the_same(tmp_path: Path) -> None:
    from ignite.engine import Events
    from ignite.handlers import Checkpoint, DiskSaver

    engine, model, optimizer, koopman = run()
    parts = {"engine": engine, "model": model, "optimizer": optimizer, "koopman": koopman}
    saver = DiskSaver(str(tmp_path), create_dir=True)
    saving = Checkpoint(
        parts, saver, n_saved=None, global_step_transform=lambda e, _: e.state.epoch
    )
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=9), saving)
    engine.run([data()], max_epochs=30)
    assert [jump.step for jump in koopman.trainer.history.jumps] == [12, 24]

    engine, resumed, optimizer, again = run()
    parts = {"engine": engine, "model": resumed, "optimizer": optimizer, "koopman": again}
    (path,) = tmp_path.iterdir()
    Checkpoint.load_objects(parts, torch.load(path, weights_only=True))
    engine.run([data()], max_epochs=30)
    assert [jump.step for jump in again.trainer.history.jumps] == [12, 24]
    assert torch.equal(weights(resumed), weights(model))


def test_outside_a_run_steps_are_not_watched_and_a_failed_run_can_be_repeated() -> None:
    engine, _, optimizer, koopman = run()
    with pytest.raises(TypeError):
        engine.run([data(), None], max_epochs=2)
    engine.state.max_epochs = None
    for _ in range(2):
        engine.run([data()], max_epochs=3)
    optimizer.step()
    assert koopman.trainer.history.counters.optimizer_steps == 7
