# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch

from koopfast import (
    CheckpointError,
    ConfigError,
    KoopmanOptimizer,
    KoopmanTrainer,
    KoopmanWarning,
    Partition,
)
from training_runs import Run, assert_same, everything, noisy_run, smooth_run

pytestmark = pytest.mark.usefixtures("on_device")

FAST = {"window": 6, "stride": 3, "partition": "network", "rank": 3, "warmup": 2, "cooldown": 4}


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """The state after a way through a file, read with weights_only=True."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("at", [1, 12, 20, 21, 30])
def test_resumed_anywhere_training_goes_on_to_the_last_bit(at: int, average: bool) -> None:
    """In the warm-up, in mid-window and mid-stride, at a jump, in the cool-down, afterwards."""
    config = {**FAST, "average": average}
    whole = smooth_run("adam")
    trainer = KoopmanTrainer(whole.model, whole.optimizer, **config)
    whole.train(trainer, at)
    state = saved(
        {
            "model": whole.model.state_dict(),
            "optimizer": whole.optimizer.state_dict(),
            "trainer": trainer.state_dict(),
        }
    )
    whole.train(trainer, 60 - at)
    assert len(trainer.history.jumps) >= 2

    resumed = smooth_run("adam")
    resumed.model.load_state_dict(state["model"])
    resumed.optimizer.load_state_dict(state["optimizer"])
    other = KoopmanTrainer(resumed.model, resumed.optimizer, **config)
    other.load_state_dict(state["trainer"])
    resumed.train(other, 60 - at)
    assert_same(resumed.weights(), whole.weights())
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
    assert [j.step for j in other.history.jumps] == [j.step for j in trainer.history.jumps]
    assert [j.candidates for j in other.history.jumps] == [
        j.candidates for j in trainer.history.jumps
    ]
    assert other.history.counters.optimizer_steps == 60


def test_resumed_in_mid_stride_a_jump_at_once_is_the_same() -> None:
    run, resumed = smooth_run(), smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST, horizon=30)
    run.train(trainer, 16)
    resumed.model.load_state_dict(run.model.state_dict())
    other = KoopmanTrainer(resumed.model, resumed.optimizer, **FAST, horizon=30)
    other.load_state_dict(saved(trainer.state_dict()))
    assert trainer.jump_now(run.loss).accepted
    assert other.jump_now(resumed.loss).accepted
    assert_same(resumed.weights(), run.weights())


@pytest.mark.parametrize(("factor", "splits"), [(1.0, 0), (0.8, 1)])
def test_resumed_at_another_rate_than_it_was_made_with_a_window_goes_on(
    factor: float, splits: int
) -> None:
    """A schedule has moved the rate since: what counts is the last step's and the window's."""
    options = {"window": 8, "stride": 1, "partition": "network", "rank": 3}
    run, other = smooth_run(), smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **options)
    resumed = KoopmanTrainer(other.model, other.optimizer, **options)
    for _ in range(13):  # into the second window
        run.train(trainer, 1)
        run.optimizer.param_groups[0]["lr"] *= 0.92
    other.model.load_state_dict(run.model.state_dict())
    other.optimizer.load_state_dict(run.optimizer.state_dict())
    resumed.load_state_dict(saved(trainer.state_dict()))
    for each, its in ((run, trainer), (other, resumed)):
        each.optimizer.param_groups[0]["lr"] *= factor
        each.train(its, 3)
        assert its.history.counters.windows_split == splits
        assert len(its.history.jumps) == 2 - splits
    assert_same(other.weights(), run.weights())


def test_weights_written_between_loading_and_the_next_step_are_noticed() -> None:
    run, other = smooth_run(), smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 13)
    resumed = KoopmanTrainer(other.model, other.optimizer, **FAST)
    resumed.load_state_dict(saved(trainer.state_dict()))
    with pytest.warns(KoopmanWarning, match="after step 13: expected those that the step left"):
        other.train(resumed, 1)  # from weights of its own: the model's were never loaded
    assert resumed.history.counters.windows_split == 1


def test_a_state_taken_does_not_follow_the_run() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 10)
    state = trainer.state_dict()
    before = saved(state)
    run.train(trainer, 40)
    assert_same(saved(state), before)


def test_what_a_run_has_learnt_about_its_probe_and_said_is_kept() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    modes: list[bool] = []

    def probe() -> torch.Tensor:
        modes.append(torch.is_grad_enabled())
        loss = run.loss()
        loss.backward()
        return loss

    for _ in range(20):
        run.step()
        trainer.after_step(probe)
    assert modes[:2] == [False, True]
    modes.clear()
    other = KoopmanTrainer(run.model, run.optimizer, **FAST)
    other.load_state_dict(saved(trainer.state_dict()))
    for _ in range(22):
        run.step()
        other.after_step(probe)
    assert modes
    assert all(modes)


def test_switched_off_and_warned_it_stays_so() -> None:
    run = smooth_run()
    run.optimizer.param_groups[0]["lr"] = 0.0
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 19)
    with pytest.warns(KoopmanWarning, match="jump refused"):
        run.train(trainer, 1)
    trainer.enabled = False
    other = KoopmanTrainer(run.model, run.optimizer, **FAST)
    other.load_state_dict(saved(trainer.state_dict()))
    run.train(other, 20)
    assert len(other.history.jumps) == 1
    other.enabled = True
    run.train(other, 18)
    assert len(other.history.jumps) == 2


def test_another_configuration_is_refused_with_the_differences() -> None:
    run = smooth_run()
    state = KoopmanTrainer(run.model, run.optimizer, window=8, rank=3).state_dict()
    other = KoopmanTrainer(run.model, run.optimizer, window=9, observables="state", rank=3)
    with pytest.raises(CheckpointError) as caught:
        other.load_state_dict(state)
    message = str(caught.value)
    assert "window: saved 8, this trainer has 9" in message
    assert "observables: saved 'increments', this trainer has 'state'" in message
    assert "rank" not in message


def test_other_parameters_are_refused_with_the_differences() -> None:
    run = smooth_run()
    state = KoopmanTrainer(run.model, run.optimizer).state_dict()
    wider = smooth_run().model.float()
    trainer = KoopmanTrainer(wider, torch.optim.SGD(wider.parameters(), lr=0.1))
    with pytest.raises(CheckpointError, match=r"saved \['0.weight', \[8, 3\], 'torch.float64'\]"):
        trainer.load_state_dict(state)
    frozen = smooth_run()
    trainer = KoopmanTrainer(frozen.model, torch.optim.SGD(frozen.model[0].parameters(), lr=0.1))
    with pytest.raises(CheckpointError, match="parameters: saved 4, this trainer has 2"):
        trainer.load_state_dict(state)


@pytest.mark.parametrize("other", ["layer", Partition.from_segments([[(0, 40)], [(40, 1)]], 41)])
def test_a_partition_of_ones_own_is_compared_by_its_table(other: str | Partition) -> None:
    run = smooth_run()
    own = Partition.from_segments([[(0, 20)], [(20, 21)]], 41)
    same = Partition.from_segments([[(0, 20)], [(20, 21)]], 41)
    state = saved(KoopmanTrainer(run.model, run.optimizer, partition=own).state_dict())
    KoopmanTrainer(run.model, run.optimizer, partition=same).load_state_dict(state)
    with pytest.raises(CheckpointError, match="partition: saved"):
        KoopmanTrainer(run.model, run.optimizer, partition=other).load_state_dict(state)


def _spoilt(state: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return state


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("surplus",), 1, r"unknown keys \['surplus'\]"),
        (("format",), 99, "expected format 1, got 99"),
        (("config",), 1, "expected a dict, got int"),
        (("config", "window"), 1, "window"),
        (("config", "partition"), {"n": 3}, "config"),
        (("parameters",), None, "expected a list, got NoneType"),
        (("history", "jumps"), 1, "history.jumps"),
        (("history", "counters", "optimizer_steps"), "12", "optimizer_steps"),
        (("enabled",), 1, "expected True or False, got 1"),
        (("idle",), -1, "expected an integer of 0 or more, got -1"),
        (("lag",), 1.0, "expected an integer of 0 or more, got 1.0"),
        (("needs_gradients",), None, "expected True or False, got None"),
        (("warned",), [1], "expected a list of strings"),
        (("rates",), [None], "expected a list of floats"),
        (("largest_rates",), [], "expected 1 of them, as 'rates' has, got 0"),
        (("noted",), 1, r"expected a tensor \(k,\) or None"),
        (("snapshots",), None, "snapshots"),
        (("snapshots", "snapshots"), torch.zeros(2, 3), "snapshots"),
        (("snapshots", "phase"), "one", "snapshots"),
        (("snapshots", "phase"), 77, "snapshots"),
    ],
)
def test_a_malformed_state_is_refused_and_the_trainer_untouched(
    path: tuple[Any, ...], value: Any, message: str
) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 10)
    before, weights = trainer.state_dict(), run.weights()
    with pytest.raises(CheckpointError, match=message):
        trainer.load_state_dict(_spoilt(before, path, value))
    assert_same(trainer.state_dict(), before)
    assert_same(run.weights(), weights)


@pytest.mark.parametrize("state", [None, {}, [1], "state"])
def test_something_else_altogether_is_refused(state: Any) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer)
    with pytest.raises(CheckpointError, match="state: "):
        trainer.load_state_dict(state)


def _copied_by(how: str, trainer: Any) -> Any:
    if how == "deepcopy":
        return copy.deepcopy(trainer)
    return pickle.loads(pickle.dumps(trainer))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("optimizer", ["momentum", "adagrad"])
def test_a_copy_trains_on_alone_and_to_the_same_bit(how: str, optimizer: str) -> None:
    run = smooth_run(optimizer)
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    trainer.attach(run.loss)
    for _ in range(25):
        run.step()
    before = everything(run)
    twin = _copied_by(how, trainer)
    other = Run(twin._model, optimizer, run.x, run.y)
    other.optimizer = twin._optimizer
    twin.probe = (
        other.loss
    )  # the copy is attached as the original is; the probe is of the old model
    for _ in range(40):
        other.step()
    assert_same(everything(run), before)
    for _ in range(40):
        run.step()
    assert len(trainer.history.jumps) >= 2
    assert_same(other.weights(), run.weights())


def test_copies_of_model_and_optimizer_leave_the_trainer_out() -> None:
    run = noisy_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    trainer.attach(run.loss)
    run.step()
    optimizer = copy.deepcopy(run.optimizer)
    copy.deepcopy(run.model)
    optimizer.step()
    assert trainer.history.counters.optimizer_steps == 1


def test_loading_forgets_the_way_back() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 20)
    assert trainer.history.counters.jumps_accepted == 1
    trainer.load_state_dict(trainer.state_dict())
    with pytest.raises(Exception, match="no accepted jump to undo"):
        trainer.rollback()


def test_a_copy_trains_alone_or_with_all_ranks_as_the_original_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where two processes run and nothing tells whether they train together, what was said counts.

    The group of some ranks only says why it cannot come along.
    """
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        some, world = torch.distributed.new_group([0]), torch.distributed.group.WORLD
        for given in (False, world):
            run = smooth_run()
            trainer = KoopmanTrainer(run.model, run.optimizer, process_group=given, **FAST)
            optimizer = KoopmanOptimizer(smooth_run().optimizer, process_group=given)
            with monkeypatch.context() as patch:
                if given is False:
                    patch.setattr("torch.distributed.get_world_size", lambda *_: 2)
                for how in ("deepcopy", "pickle"):
                    assert _copied_by(how, trainer).process_group is given
                    assert _copied_by(how, optimizer).trainer.process_group is given
        run = smooth_run()
        trainer = KoopmanTrainer(run.model, run.optimizer, process_group=some, **FAST)
        with pytest.raises(ConfigError, match=r"process_group: .* save its state_dict\(\)"):
            copy.deepcopy(trainer)
    finally:
        torch.distributed.destroy_process_group()
