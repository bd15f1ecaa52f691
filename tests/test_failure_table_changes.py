# SPDX-License-Identifier: BSD-3-Clause
"""The failure table, rows 8 to 11: what changes in the middle of a window.

Each test fails without its protection; docs/safety.md lists row, protection and test.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from koopfast import ParameterChangedError
from test_failure_table import one_warning, watched
from training_runs import Run, assert_same, everything, smooth_run

# Row 8


def test_frozen_in_mid_window() -> None:
    run = smooth_run("adam")
    trainer = watched(run)
    run.train(trainer, 3)
    run.model[2].bias.requires_grad_(False)  # type: ignore[union-attr]
    run.step()
    before = everything(run)
    with pytest.raises(
        ParameterChangedError,
        match=r"step 4: parameter '2\.bias': expected requires_grad True .* got False; .* new one",
    ):
        trainer.after_step(run.loss)
    assert_same(everything(run), before)


def test_unfrozen_in_mid_window() -> None:
    run = smooth_run()
    last = run.model[2].weight
    last.requires_grad_(False)  # type: ignore[union-attr]
    trainer = watched(run)
    run.train(trainer, 3)
    last.requires_grad_(True)  # type: ignore[union-attr]
    with one_warning("parameter '2.weight' is trained now"):
        run.train(trainer, 9)
    assert trainer.history.counters.jumps_accepted == 2


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"observables": "state"},
        {"observables": "state", "partition": "weight", "method": "qr"},
        {"stride": 3, "average": True},
        {"stride": "auto"},
        {"observables": "state", "streaming": True, "window": 80, "guard": "finite", "horizon": 1},
    ],
    ids=str,
)
def test_grad_is_none(how: dict[str, Any]) -> None:
    """A parameter that no gradient reaches stays what it is, through an accepted jump too."""
    run = smooth_run()
    unused = nn.Parameter(torch.randn(50, dtype=torch.float64))
    run.model.register_parameter("unused", unused)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    before = unused.detach().clone()
    trainer = watched(run, **how)
    for _ in range(80):
        run.train(trainer, 1)
        assert unused.grad is None
    assert trainer.history.jumps[0].accepted
    assert torch.equal(unused, before)


# Row 9


def test_param_group_added_in_mid_window() -> None:
    run = smooth_run()
    last = list(run.model[2].parameters())
    run.optimizer = torch.optim.SGD(run.model[0].parameters(), lr=0.05)
    trainer = watched(run)
    run.train(trainer, 3)
    run.optimizer.add_param_group({"params": last, "lr": 0.01})
    with one_warning("parameter '2.weight' is trained now but was not"):
        run.train(trainer, 6)
    assert trainer.history.counters.windows_split == 1
    assert trainer.history.jumps[0].step == 9  # six steps after the change, not before


def _resize(run: Run) -> None:
    run.model[2].weight.data = torch.zeros(2, 8, dtype=torch.float64)  # would broadcast


def _cast(run: Run) -> None:
    run.model.float()
    run.x, run.y = run.x.float(), run.y.float()


def _assign(run: Run) -> None:
    run.model.load_state_dict(copy.deepcopy(run.model.state_dict()), assign=True)


def _move(run: Run) -> None:
    run.model.to("meta")
    run.x, run.y = run.x.to("meta"), run.y.to("meta")


@pytest.mark.parametrize(
    ("change", "steps", "message"),
    [
        (_resize, 0, r"step 3: parameter '2\.weight': expected shape \(1, 8\) .* got \(2, 8\); "),
        (_cast, 1, r"step 4: parameter '0\.weight': expected dtype .*float64 .* got .*float32; "),
        (_assign, 3, r"step 6: parameter '0\.weight': .* another parameter object .*; make a new"),
        (_move, 3, r"step 6: parameter '0\.weight': .* another parameter object .*; make a new"),
    ],
)
def test_parameter_resized_assigned_cast_or_moved_in_mid_window(
    change: Callable[[Run], None], steps: int, message: str
) -> None:
    """Said with parameter, step, expected, actual and remedy; weights are as before.

    Parameter objects that were exchanged are looked for before a jump, not at every step.
    """
    run = smooth_run("sgd")
    trainer = watched(run)
    run.train(trainer, 3)
    change(run)
    for step in range(steps):
        run.step()
        if step < steps - 1:
            trainer.after_step(run.loss)
    values = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(ParameterChangedError, match=message):
        trainer.after_step(run.loss)
    for p, value in zip(run.model.parameters(), values, strict=True):
        assert p.shape == value.shape
        assert p.is_meta or torch.equal(p, value)
    assert trainer.history.jumps == []
    assert trainer._snapshots.count == 0


# Row 10


def _average(run: Run) -> None:
    ema = torch.optim.swa_utils.AveragedModel(smooth_run().model)
    with torch.no_grad():
        for p, average in zip(run.model.parameters(), ema.module.parameters(), strict=True):
            p.copy_(average)


def _exchange(run: Run) -> None:
    for p, other in zip(run.model.parameters(), smooth_run().model.parameters(), strict=True):
        p.data = other.data.clone()


def _write_data(run: Run) -> None:
    for p in run.model.parameters():
        p.data.mul_(0.5)  # which no version counter shows


@pytest.mark.parametrize(
    "write",
    [
        _average,
        _exchange,
        _write_data,
        lambda run: run.model.load_state_dict(smooth_run().model.state_dict()),
    ],
)
@pytest.mark.parametrize("attached", [False, True])
def test_weights_loaded_or_written_by_another_in_mid_window(
    attached: bool, write: Callable[[Run], None]
) -> None:
    run = smooth_run("adam")
    trainer = watched(run)
    if attached:
        trainer.attach(run.loss)

    def train(steps: int) -> None:
        for _ in range(steps):
            run.step()
            if not attached:
                trainer.after_step(run.loss)

    train(4)
    write(run)
    with one_warning("after step 4: expected those that the step left, got others"):
        train(1)
    assert trainer._snapshots.count == 1
    train(5)
    assert [jump.step for jump in trainer.history.jumps] == [10]
    assert trainer.history.counters.windows_split == 1


def test_weights_trained_by_another_optimizer() -> None:
    """Made when a layer was unfrozen, say: the trainer sees no step, and says so once."""
    run = smooth_run("adam")
    trainer = watched(run)
    run.train(trainer, 4)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    with one_warning("make a new KoopmanTrainer with that one"):
        run.train(trainer, 30)
    assert trainer.history.counters.optimizer_steps == 4


def test_many_calls_before_a_step_are_no_other_optimizer() -> None:
    run = smooth_run("adam")
    trainer = watched(run)
    for _ in range(30):
        run.loss().backward()
        trainer.after_step(run.loss)
    run.optimizer.step()
    trainer.after_step(run.loss)
    assert trainer.history.counters.optimizer_steps == 1


def test_an_average_swapped_in_for_a_validation_and_out_again_splits_nothing() -> None:
    run = smooth_run("adam")
    trainer = watched(run)
    for _ in range(6):
        run.step()
        trainer.after_step(run.loss)
        kept = run.weights()
        _average(run)
        with torch.no_grad():
            for p, value in zip(run.model.parameters(), kept, strict=True):
                p.copy_(value)
    assert [jump.step for jump in trainer.history.jumps] == [6]
    assert trainer.history.counters.windows_split == 0


# Row 11


def test_learning_rate_change_in_the_window() -> None:
    run = smooth_run()
    trainer = watched(run)
    run.train(trainer, 4)
    run.optimizer.param_groups[0]["lr"] *= 0.1
    run.train(trainer, 5)
    assert trainer.history.jumps == []
    assert trainer.history.counters.windows_split == 1
    run.train(trainer, 1)
    assert [jump.step for jump in trainer.history.jumps] == [10]


def test_a_smooth_schedule_is_part_of_the_dynamics() -> None:
    run = smooth_run()
    trainer = watched(run)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, T_max=200)
    for _ in range(12):
        run.train(trainer, 1)
        schedule.step()
    assert [jump.step for jump in trainer.history.jumps] == [6, 12]
    assert trainer.history.counters.windows_split == 0
