# SPDX-License-Identifier: BSD-3-Clause
"""What breaks a window is noticed, and watching holds on to nothing."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import nn

from koopfast import KoopmanTrainer
from koopfast._watch import RateWatch, WeightWatch
from koopfast.parameters import ParameterVector
from training_runs import smooth_run


def watch_of(model: nn.Module) -> WeightWatch:
    return WeightWatch(ParameterVector(model.named_parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_change_of_any_sampled_parameter_is_seen_and_a_nan_that_stays_is_none(
    dtype: torch.dtype,
) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm1d(3)).to(
        dtype, memory_format=torch.channels_last
    )
    model[0].weight.data.fill_(float("nan"))
    watch = watch_of(model)
    assert not watch.compare()  # nothing is noted yet
    for p in model.parameters():
        watch.note()
        assert not watch.compare()
        p.data.add_(1)
        assert watch.compare() == (not p.isnan().any())
        watch.forget()
        assert not watch.compare()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_change_of_weights_that_do_not_lie_side_by_side_is_seen(dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.ones(20, 3, dtype=dtype)[:, 1])
    watch = WeightWatch(ParameterVector([("p", p)]))
    watch.note()
    assert not watch.compare()
    p.data[3] = 2
    assert watch.compare()


def test_on_a_device_that_must_be_waited_for_the_answer_stays_there_until_asked() -> None:
    model = nn.Linear(3, 2)
    watch = watch_of(model)
    watch._device = torch.device("cuda")  # as if
    watch.note()
    assert not watch.compare()
    assert not watch.broken()
    model.weight.data.add_(1)
    assert not watch.compare()
    watch.note()
    assert not watch.compare()
    assert watch.broken()
    assert watch.noted is not None
    assert watch.noted.numel() == 0  # nothing will equal it
    watch.forget()
    assert not watch.broken()


def test_a_saved_sample_is_compared_with_and_one_of_a_broken_window_never_equals() -> None:
    model = nn.Linear(3, 2)
    watch, other = watch_of(model), watch_of(model)
    watch.note()
    other.noted = watch.noted
    assert not other.compare()
    model.bias.data.add_(1)
    assert other.compare()
    other.noted = torch.empty(0, dtype=torch.int32)
    assert other.compare()


def test_rates_may_be_numbers_tensors_or_none() -> None:
    p = nn.Parameter(torch.ones(2))
    for rate in (0.1, torch.tensor(0.1)):
        optimizer = torch.optim.Adam([p], lr=rate, foreach=False, capturable=False)
        watch = RateWatch(optimizer)
        optimizer.param_groups[0]["lr"] = 0.095
        assert not watch.changed(True)
        optimizer.param_groups[0]["lr"] = 0.05
        assert watch.changed(True)
        optimizer.param_groups[0]["lr"] = None
        assert watch.changed(True)
        optimizer.param_groups[0]["lr"] = 0.0
        assert not watch.changed(True)


def splits(rates: list[float], begins: int = 0) -> list[int]:
    """After how many steps a window that begins with the rate at ``begins`` is split."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=rates[0])
    watch, found = RateWatch(optimizer), []
    for step, rate in enumerate(rates[1:], 1):
        optimizer.param_groups[0]["lr"] = rate
        if watch.changed(step > begins):
            found.append(step)
    return found


def test_a_rate_that_falls_evenly_to_zero_splits_no_window_that_could_have_filled() -> None:
    falling = [1e-3 * (1 - step / 100) for step in range(101)]
    assert splits(falling) == splits(falling, begins=88) == []
    cosine = [5e-4 * (1 + math.cos(math.pi * step / 100)) for step in range(101)]
    assert splits(cosine) == []


def test_a_drop_a_rise_and_a_restart_of_the_rate_each_split_once() -> None:
    assert splits([0.1] * 9 + [0.089] * 9) == [9]
    assert splits([0.1] * 9 + [0.5] * 9) == [9]
    assert splits([0.1 * (1 - step / 40) for step in range(40)] + [0.1] * 9) == [40]
    # Against the largest of this window, not of one before a pause.
    assert splits([1.0] * 5 + [0.1] * 5 + [0.08] * 5, begins=7) == [10]


def test_the_optimizer_does_not_keep_the_trainer_alive_nor_its_hook() -> None:
    run = smooth_run()
    hooks = len(run.optimizer._optimizer_step_pre_hooks)
    trainer = KoopmanTrainer(run.model, run.optimizer)
    run.train(trainer, 3)
    gone = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert gone() is None
    assert len(run.optimizer._optimizer_step_pre_hooks) == hooks
    run.step()
