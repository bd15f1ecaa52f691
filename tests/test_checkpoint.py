# SPDX-License-Identifier: BSD-3-Clause
"""A checkpoint is one file, whole or not there, and loading it is all or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from koopfast import (
    CheckpointError,
    ConfigError,
    KoopmanTrainer,
    load_checkpoint,
    save_checkpoint,
)
from koopfast.checkpoint import Stateful
from training_runs import Run, assert_same, everything, noisy_run, smooth_run

pytestmark = pytest.mark.usefixtures("on_device")

FAST = {"window": 6, "stride": 3, "partition": "network", "rank": 3}


def trained(run: Run, steps: int, **overrides: Any) -> tuple[KoopmanTrainer, Any]:
    trainer = KoopmanTrainer(run.model, run.optimizer, **{**FAST, **overrides})
    scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 100)
    go_on(run, trainer, scheduler, steps)
    return trainer, scheduler


def go_on(run: Run, trainer: KoopmanTrainer, scheduler: Any, steps: int) -> None:
    for _ in range(steps):
        run.train(trainer, 1)
        scheduler.step()


def test_resumed_from_a_file_in_mid_window_a_run_with_dropout_is_the_same_to_the_last_bit(
    tmp_path: Path,
) -> None:
    run = noisy_run("adam")
    trainer, scheduler = trained(run, 29)
    path = save_checkpoint(tmp_path / "run.pt", trainer, scheduler=scheduler)
    go_on(run, trainer, scheduler, 30)
    whole = everything(run)

    run = noisy_run("adam")
    trainer, scheduler = trained(run, 3)
    load_checkpoint(path, trainer, scheduler=scheduler)
    go_on(run, trainer, scheduler, 30)
    whole.pop("gradient ids")
    resumed = everything(run)
    resumed.pop("gradient ids")
    assert_same(resumed, whole)
    assert trainer.history.counters.optimizer_steps == 59
    assert scheduler.last_epoch == 59


def test_a_checkpoint_holds_tensors_and_primitives_only(tmp_path: Path) -> None:
    run = smooth_run("momentum")
    trainer, _ = trained(run, 20)
    content = torch.load(save_checkpoint(tmp_path / "run.pt", trainer), weights_only=True)
    assert set(content) == {"format", "random", "model", "optimizer", "koopman"}


def _other_model(trainer: KoopmanTrainer) -> tuple[KoopmanTrainer, dict[str, Any]]:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return KoopmanTrainer(model, optimizer, trainer.config), {}


def _other_config(trainer: KoopmanTrainer) -> tuple[KoopmanTrainer, dict[str, Any]]:
    run = smooth_run("momentum")
    return KoopmanTrainer(run.model, run.optimizer, trainer.config, window=9, stride=2), {}


def _one_part_more(trainer: KoopmanTrainer) -> tuple[KoopmanTrainer, dict[str, Any]]:
    run = smooth_run("momentum")
    scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 3)
    return KoopmanTrainer(run.model, run.optimizer, trainer.config), {"scheduler": scheduler}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (_other_model, r"checkpoint\['model'\]: Error"),
        (
            _other_config,
            r"window: saved 6, this trainer has 9\n  stride: saved 3, this trainer has 2",
        ),
        (_one_part_more, r"missing \['scheduler'\]"),
    ],
)
def test_what_belongs_to_another_run_changes_nothing(
    other: Any, message: str, tmp_path: Path
) -> None:
    run = smooth_run("momentum")
    trainer, _ = trained(run, 20)
    path = save_checkpoint(tmp_path / "run.pt", trainer)
    target, others = other(trainer)
    state = [target.model.state_dict(), target.optimizer.state_dict(), target.state_dict()]
    before = [{k: v.clone() for k, v in state[0].items()}, *state[1:]]
    stream = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, target, **others)
    after = [dict(target.model.state_dict()), target.optimizer.state_dict(), target.state_dict()]
    assert_same(after, before)
    assert torch.equal(torch.get_rng_state(), stream)


class Unwilling:
    """Takes its own state back, and none that came from a file."""

    def state_dict(self) -> dict[str, Any]:
        return {"own": object}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["own"] is not object:
            raise ValueError("not this one")


def test_a_load_that_fails_in_its_last_part_leaves_the_jump_that_can_be_undone(
    tmp_path: Path,
) -> None:
    run = smooth_run()
    trainer, _ = trained(run, 20)
    assert trainer.history.counters.jumps_accepted == 1
    path = save_checkpoint(tmp_path / "run.pt", trainer, other=torch.nn.Linear(1, 1))
    operator, before = trainer.operator, everything(run)
    with pytest.raises(CheckpointError, match=r"checkpoint\['other'\]"):
        load_checkpoint(path, trainer, other=Unwilling())
    assert_same(everything(run), before)
    assert trainer.operator is operator
    trainer.rollback()
    assert trainer.history.counters.jumps_rolled_back == 1


def test_a_damaged_file_is_named_as_such(tmp_path: Path) -> None:
    trainer, _ = trained(smooth_run(), 3)
    path = save_checkpoint(tmp_path / "run.pt", trainer)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path, trainer)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt", trainer)


def test_what_has_no_state_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    trainer, _ = trained(smooth_run(), 3)
    with pytest.raises(ConfigError, match="scaler: expected an object with state_dict"):
        save_checkpoint(tmp_path / "run.pt", trainer, scaler=1.0)
    with pytest.raises(ConfigError, match="model: this name is taken"):
        save_checkpoint(tmp_path / "run.pt", trainer, model=trainer.model)
    assert not list(tmp_path.iterdir())


def test_killed_while_writing_the_old_checkpoint_stands(tmp_path: Path) -> None:
    """The process dies (SIGKILL) when half of the new one is on the disk."""
    code = (
        "import os, signal, sys, torch\n"
        "from koopfast._files import written_whole\n"
        "with written_whole(sys.argv[1]) as file:\n"
        "    file.write(b'new'); file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    trainer, _ = trained(smooth_run(), 20)
    path = save_checkpoint(tmp_path / "run.pt", trainer)
    steps = trainer.history.counters.optimizer_steps
    died = subprocess.run([sys.executable, "-c", code, str(path)], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    load_checkpoint(path, trainer)
    assert trainer.history.counters.optimizer_steps == steps


# In the optimizer's own state


def through_a_file(state: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    torch.save(state, tmp_path / "state.pt")
    loaded: dict[str, Any] = torch.load(tmp_path / "state.pt", weights_only=True)
    return loaded


def test_the_state_travels_in_the_optimizers_when_asked(tmp_path: Path) -> None:
    run = smooth_run("adam")
    trainer, _ = trained(run, 20)
    assert set(run.optimizer.state_dict()) == {"state", "param_groups"}
    trainer.save_with_optimizer()
    state = through_a_file(run.optimizer.state_dict(), tmp_path)
    weights = run.model.state_dict()

    resumed = smooth_run("adam")
    resumed.model.load_state_dict(weights)
    other, _ = trained(resumed, 0)
    other.save_with_optimizer()
    resumed.optimizer.load_state_dict(state)
    assert "koopman" in state  # the caller's dict is as it was
    run.train(trainer, 30)
    resumed.train(other, 30)
    assert_same(resumed.weights(), run.weights())
    trainer.save_with_optimizer(False)
    assert set(run.optimizer.state_dict()) == {"state", "param_groups"}


def test_a_state_that_does_not_fit_is_refused_before_the_optimizer_changes() -> None:
    run, other = smooth_run("adam"), smooth_run("adam")
    trainer, _ = trained(run, 20)
    trainer.save_with_optimizer()
    target, _ = trained(other, 2, window=9)
    target.save_with_optimizer()
    before = everything(other)
    with pytest.raises(CheckpointError, match="window: saved 6, this trainer has 9"):
        other.optimizer.load_state_dict(run.optimizer.state_dict())
    assert_same(everything(other), before)


def test_a_plain_optimizers_state_begins_a_new_window() -> None:
    run = smooth_run("adam")
    plain = run.optimizer.state_dict()
    trainer, _ = trained(run, 10)
    trainer.save_with_optimizer()
    assert trainer._snapshots.count == 3
    run.optimizer.load_state_dict(plain)
    assert trainer._snapshots.count == 0


# torch.distributed.checkpoint


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable:UserWarning")
def test_dcp_saves_and_loads_the_window_into_a_new_run(
    tmp_path: Path, device: torch.device
) -> None:
    if device.type == "elsewhere":
        pytest.skip("DCP wants streams")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    from torch.distributed.checkpoint.stateful import Stateful as Protocol

    run, resumed = smooth_run(), smooth_run()
    trainer, _ = trained(run, 20)
    assert isinstance(Stateful(trainer), Protocol)
    saved = {"model": run.model.state_dict(), "koopman": Stateful(trainer)}
    dcp.save(saved, checkpoint_id=tmp_path / "dcp", no_dist=True)

    other, _ = trained(resumed, 2)
    state = {"model": resumed.model.state_dict(), "koopman": Stateful(other)}
    dcp.load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    resumed.model.load_state_dict(state["model"])
    run.train(trainer, 30)
    resumed.train(other, 30)
    assert_same(resumed.weights(), run.weights())
    with pytest.raises(CheckpointError, match="save Stateful"):
        Stateful(other).load_state_dict(trainer.state_dict())
