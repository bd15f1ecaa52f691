# SPDX-License-Identifier: BSD-3-Clause
"""Recording snapshots of a training run."""

from __future__ import annotations

import io
import math
import statistics
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from koopfast import CheckpointError, ConfigError, ParameterChangedError, SnapshotBuffer
from koopfast import parameters as parameters_module
from koopfast.parameters import ParameterVector, trainable_parameters

pytestmark = pytest.mark.usefixtures("on_device")


def model_of(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Linear(3, 2))
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, generator=generator)
    return model.to(dtype, memory_format=torch.channels_last)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def train(model: nn.Module, buffer: SnapshotBuffer, steps: int) -> list[Tensor]:
    """Move the weights, record, and return their state, each step."""
    states = []
    for _ in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.01).add_(0.01)
        buffer.record()
        states.append(flat(model))
    return states


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_each_row_is_the_state_at_its_step(dtype: torch.dtype) -> None:
    model = model_of(dtype)
    buffer = SnapshotBuffer(model, capacity=5)
    states = train(model, buffer, 4)
    assert buffer.snapshots.dtype == dtype
    assert torch.equal(buffer.snapshots, torch.stack(states))


def test_rows_of_the_second_window_are_right_too() -> None:
    model = model_of()
    buffer = SnapshotBuffer(model, capacity=3)
    train(model, buffer, 3)
    buffer.clear()
    assert (buffer.count, buffer.full, tuple(buffer.snapshots.shape)) == (0, False, (0, 35))
    assert torch.equal(
        torch.stack(train(model, buffer, 3)),
        buffer.snapshots,
    )


def test_every_stride_th_call_stores_a_row() -> None:
    model = model_of()
    buffer = SnapshotBuffer(model, capacity=4, stride=3)
    assert [buffer.record() for _ in range(7)] == [False, False, True, False, False, True, False]
    buffer.clear()
    states = train(model, buffer, 7)
    assert torch.equal(buffer.snapshots, torch.stack([states[2], states[5]]))


def test_a_full_buffer_stays_as_it_is() -> None:
    model = model_of()
    buffer = SnapshotBuffer(model, capacity=2)
    states = train(model, buffer, 4)
    assert buffer.full
    assert not buffer.record()
    assert torch.equal(buffer.snapshots, torch.stack(states[:2]))


def test_averages_are_means_over_each_stride() -> None:
    model = model_of(torch.float64)
    buffer = SnapshotBuffer(model, capacity=3, stride=4, average=True)
    states = torch.stack(train(model, buffer, 12))
    torch.testing.assert_close(buffer.snapshots, states.view(3, 4, -1).mean(1), rtol=1e-15, atol=0)


def test_averages_of_a_few_samples_take_evenly_spaced_states() -> None:
    model = model_of(torch.float64)
    buffer = SnapshotBuffer(model, capacity=2, stride=8, average=True, samples=2)
    states = torch.stack(train(model, buffer, 16))
    expected = states[[3, 7, 11, 15]].view(2, 2, -1).mean(1)
    torch.testing.assert_close(buffer.snapshots, expected, rtol=1e-15, atol=0)


def test_averages_over_one_step_are_the_states() -> None:
    model = model_of()
    buffer = SnapshotBuffer(model, capacity=3, average=True)
    assert torch.equal(torch.stack(train(model, buffer, 3)), buffer.snapshots)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_averages_of_half_precision_are_summed_in_float32(dtype: torch.dtype) -> None:
    model = model_of(dtype)
    buffer = SnapshotBuffer(model, capacity=2, stride=300, average=True)
    states = torch.stack(train(model, buffer, 300))
    expected = states.double().mean(0).to(dtype)
    # Summed in the weights' own dtype the mean would be off by many units in the last place.
    torch.testing.assert_close(buffer.snapshots[0], expected, rtol=torch.finfo(dtype).eps, atol=0)


def test_mixed_dtypes_are_recorded_and_averaged_in_what_they_promote_to() -> None:
    model = nn.Sequential(nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2))
    plain, means = SnapshotBuffer(model, 3), SnapshotBuffer(model, 3, stride=2, average=True)
    states = []
    for _ in range(2):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(2)
        plain.record()
        means.record()
        states.append(torch.cat([p.detach().float().reshape(-1) for p in model.parameters()]))
    assert torch.equal(plain.snapshots, torch.stack(states))
    assert torch.equal(means.snapshots[0], torch.stack(states).mean(0))


def test_values_that_are_not_finite_are_recorded_as_they_are() -> None:
    model = nn.Linear(2, 1)
    buffer = SnapshotBuffer(model, capacity=2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[float("nan"), float("-inf")]]))
    buffer.record()
    assert buffer.snapshots[0, :2].isnan().tolist() == [True, False]
    assert buffer.snapshots[0, 1] == float("-inf")


def test_memory_is_allocated_once_and_at_the_first_row() -> None:
    model = model_of()
    buffer = SnapshotBuffer(model, capacity=4)
    assert buffer.nbytes == 0
    train(model, buffer, 4)
    place = buffer.snapshots.data_ptr()
    buffer.clear()
    train(model, buffer, 2)
    assert buffer.nbytes == 4 * 35 * 4
    assert buffer.snapshots.data_ptr() == place
    assert buffer.snapshots.is_contiguous()


def test_recording_leaves_training_alone() -> None:
    model = nn.Linear(3, 2)
    buffer = SnapshotBuffer(model, capacity=2)
    loss = model(torch.ones(1, 3)).square().sum()
    buffer.record()
    loss.backward()  # would fail if recording had touched the weights
    assert not buffer.snapshots.requires_grad


def test_what_is_recorded_may_be_given_in_any_form() -> None:
    model = nn.Linear(3, 2)
    forms: list[Any] = [
        model,
        ParameterVector(trainable_parameters(model)),
        model.parameters(),
        list(model.named_parameters()),
    ]
    for form in forms:
        buffer = SnapshotBuffer(form, capacity=2)
        buffer.record()
        assert torch.equal(buffer.snapshots[0], flat(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 1}, r"capacity: expected an integer of 2 or more snapshots .* got 1"),
        ({"capacity": 2, "stride": 0}, "stride: expected an integer of 1 or more, got 0"),
        ({"capacity": 2, "parameters": []}, "parameters: expected at least one"),
        ({"capacity": 2, "parameters": [3]}, "parameters: expected tensors .* got int"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SnapshotBuffer(**{"parameters": nn.Linear(2, 2), **arguments})


@pytest.mark.parametrize("average", [False, True])
def test_a_changed_parameter_is_noticed(average: bool) -> None:
    model = nn.Linear(3, 2)
    buffer = SnapshotBuffer(model, capacity=4, stride=2, average=average)
    buffer.record()
    model.weight.data = torch.zeros(1, 3)  # would broadcast
    with pytest.raises(ParameterChangedError, match="'weight'"):
        buffer.record()
    assert buffer.count == 0


def test_an_interrupted_step_can_be_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    buffer = SnapshotBuffer(model, capacity=3)
    buffer.record()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parameters_module, "_copy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            buffer.record()
    assert buffer.count == 1
    assert buffer.record()
    assert torch.equal(buffer.snapshots[1], flat(model))


@pytest.mark.parametrize(("average", "samples"), [(False, None), (True, None), (True, 1)])
@pytest.mark.parametrize("interrupted_after", [0, 3, 5, 9])
def test_recording_resumes_bit_for_bit(
    average: bool, samples: int | None, interrupted_after: int
) -> None:
    def run(steps_before: int) -> Tensor:
        model = model_of(torch.bfloat16)
        buffer = SnapshotBuffer(model, capacity=3, stride=3, average=average, samples=samples)
        train(model, buffer, steps_before)
        file = io.BytesIO()
        torch.save(buffer.state_dict(), file)
        file.seek(0)
        train(model, buffer, 3 - steps_before % 3)  # what was saved must not follow
        resumed = model_of(torch.bfloat16)
        with torch.no_grad():
            for _ in range(steps_before):
                for p in resumed.parameters():
                    p.mul_(1.01).add_(0.01)
        buffer = SnapshotBuffer(resumed, capacity=3, stride=3, average=average, samples=samples)
        buffer.load_state_dict(torch.load(file, weights_only=True))
        train(resumed, buffer, 9 - steps_before)
        return buffer.snapshots.clone()

    model = model_of(torch.bfloat16)
    straight = SnapshotBuffer(model, capacity=3, stride=3, average=average, samples=samples)
    train(model, straight, 9)
    assert straight.full
    assert torch.equal(run(interrupted_after), straight.snapshots)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (SnapshotBuffer(nn.Linear(3, 2), 5, 2), "capacity .* 5 was saved, 4 is recorded"),
        (SnapshotBuffer(nn.Linear(3, 2), 4, 3), "stride .* 3 was saved"),
        (SnapshotBuffer(nn.Linear(3, 2), 4, 2, average=True), "average .* True was saved"),
        (SnapshotBuffer(nn.Linear(3, 2, bias=False), 4, 2), "1 parameters were saved, 2 are"),
        (SnapshotBuffer(nn.Linear(4, 2), 4, 2), "lengths .* parameter 0 was 8, is 6"),
        (SnapshotBuffer(nn.Linear(3, 2).double(), 4, 2), "expected torch.float32 .* torch.float64"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(other: SnapshotBuffer, message: str) -> None:
    buffer = SnapshotBuffer(nn.Linear(3, 2), 4, 2)
    train(nn.Linear(3, 2), buffer, 2)
    before = buffer.snapshots.clone()
    with pytest.raises(CheckpointError, match=message):
        buffer.load_state_dict(other.state_dict())
    assert buffer.count == 1
    assert torch.equal(buffer.snapshots, before)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("phase", 2, "step 2 of a stride of 2"),
        ("sum", None, "running sum missing"),
        ("sum", torch.zeros(7), r"running sum \(7,\)"),
        ("snapshots", torch.zeros(5, 8), "5 rows of 4"),
        ("snapshots", None, "got NoneType"),
    ],
)
def test_a_damaged_checkpoint_is_refused(key: str, value: object, message: str) -> None:
    buffer = SnapshotBuffer(nn.Linear(3, 2), 4, 2, average=True)
    buffer.record()
    with pytest.raises(CheckpointError, match=message):
        buffer.load_state_dict({**buffer.state_dict(), key: value})
    state = buffer.state_dict()
    del state["phase"]
    with pytest.raises(CheckpointError, match="'phase' is missing"):
        buffer.load_state_dict(state)


def test_unmoved_are_the_weights_that_are_one_number_in_all_rows() -> None:
    weights = torch.zeros(5)
    buffer = SnapshotBuffer([weights], capacity=4)
    rows = [
        [1.0, 2.0, 3.0, 0.0, math.nan],
        [1.0, 5.0, 3.0, 0.0, math.nan],
        [1.0, 2.0, 3.0, -0.0, math.nan],
        [1.0, 2.0, 4.0, 0.0, math.nan],
    ]
    for count, unmoved in ((1, [0, 1, 2, 3]), (2, [0, 2, 3]), (3, [0, 2, 3]), (4, [0, 3])):
        weights.copy_(torch.tensor(rows[count - 1]))
        buffer.record()
        assert buffer.unmoved().tolist() == unmoved


def test_recording_costs_little_more_than_copying_the_weights() -> None:
    model = nn.Sequential(nn.Linear(784, 1000), nn.Linear(1000, 200), nn.Linear(200, 10))
    buffer = SnapshotBuffer(model, capacity=8)
    weights = flat(model)
    rows = torch.zeros(8, weights.numel())
    while buffer.record():
        pass
    ours, memcpy = [], []
    for _ in range(8):
        buffer.clear()
        for row in range(8):
            start = time.perf_counter()
            buffer.record()
            between = time.perf_counter()
            rows[row].copy_(weights)
            ours.append(between - start)
            memcpy.append(time.perf_counter() - between)
    # About 1.1 on an idle machine; a copy too many would double it, a Python loop far more.
    assert statistics.median(ours) < 3 * statistics.median(memcpy)
