# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from koopfast import ConfigError
from koopfast._savepoint import Savepoint, restore_all
from koopfast.guard import Guard, Verdict, scalar_loss
from koopfast.parameters import ParameterVector
from training_runs import Run, assert_same, everything, noisy_run

pytestmark = pytest.mark.usefixtures("on_device")


class Point(nn.Module):
    """One weight; the tests read the loss from a table."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0], dtype=dtype))

    def at(self) -> float:
        return self.weight.item()


def judge(
    losses: dict[float, float], guard: Guard | None = None, weights: list[float] | None = None
) -> tuple[Verdict, float, list[float]]:
    """Judge candidates 1, 2, 3, ...; the verdict, the weight left, and the weights formed."""
    point = Point()
    vector = ParameterVector(point.named_parameters())
    formed = []

    def candidates() -> Iterator[tuple[int, Tensor]]:
        for i, weight in enumerate(weights or [w for w in losses if w > 0]):
            formed.append(weight)
            yield 10 * (i + 1), torch.tensor([weight])

    savepoint = Savepoint(point, vector.parameters, vector.device)
    guard = guard or Guard("probe")
    verdict = guard.judge(vector, candidates(), savepoint, lambda: losses[point.at()])
    return verdict, point.at(), formed


def test_the_lowest_loss_of_all_horizons_is_kept() -> None:
    verdict, weight, _ = judge({0.0: 1.0, 1.0: 0.9, 2.0: 0.5, 3.0: 0.6, 4.0: 0.4, 5.0: 0.7})
    assert (verdict.accepted, verdict.horizon, weight) == (True, 40, 4.0)
    assert (verdict.loss_before, verdict.loss_after) == (1.0, 0.4)
    assert verdict.candidates == ((10, 0.9), (20, 0.5), (30, 0.6), (40, 0.4), (50, 0.7))
    assert verdict.probe_evaluations == 6
    assert verdict.seconds_probe > 0


def test_the_search_stops_after_two_in_a_row_that_are_no_better_than_the_best() -> None:
    verdict, weight, formed = judge({0.0: 1.0, 1.0: 0.5, 2.0: 0.6, 3.0: 0.5, 4.0: 0.1})
    assert (verdict.horizon, weight) == (10, 1.0)
    assert formed == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_search_stops_at_a_loss_that_is_not_finite(bad: float) -> None:
    verdict, weight, formed = judge({0.0: 1.0, 1.0: 0.5, 2.0: bad, 3.0: 0.1})
    assert (verdict.horizon, weight, formed) == (10, 1.0, [1.0, 2.0])


def test_an_equal_loss_is_refused_and_the_weight_comes_back() -> None:
    verdict, weight, _ = judge({0.0: 1.0, 1.0: 1.0})
    assert (verdict.accepted, verdict.horizon, verdict.kind, weight) == (False, 0, "no_gain", 0.0)
    assert verdict.loss_after is None


def test_a_loss_that_was_computed_before_the_jump_is_told_from_one_that_does_not_change() -> None:
    """``probe=lambda: loss`` looks right, and never sees the weights under trial."""
    loss = torch.tensor(1.0)
    for probe, kind in ((lambda: loss, "stale"), (loss.clone, "no_gain"), (lambda: 1.0, "no_gain")):
        point = Point()
        vector = ParameterVector(point.named_parameters())
        savepoint = Savepoint(point, vector.parameters, vector.device)
        candidates = [(10, torch.tensor([1.0])), (20, torch.tensor([2.0]))]
        verdict = Guard("probe").judge(vector, candidates, savepoint, probe)
        assert (verdict.accepted, verdict.kind, point.at()) == (False, kind, 0.0)


def test_weights_that_are_not_finite_are_never_probed() -> None:
    verdict, weight, _ = judge({0.0: 1.0}, weights=[math.inf, 1.0])
    assert (verdict.accepted, verdict.kind, weight) == (False, "non_finite", 0.0)
    assert verdict.probe_evaluations == 1
    assert math.isnan(verdict.candidates[0][1])


def test_a_loss_that_is_not_finite_before_the_jump_forms_no_candidate() -> None:
    verdict, weight, formed = judge({0.0: math.nan, 1.0: 0.5})
    assert (verdict.kind, weight, formed) == ("non_finite_loss", 0.0, [])


def test_the_finite_guard_takes_the_first_finite_weights_without_a_probe() -> None:
    verdict, weight, formed = judge({}, Guard("finite"), weights=[7.0, 8.0])
    assert (verdict.accepted, verdict.horizon, weight, formed) == (True, 10, 7.0, [7.0])
    assert (verdict.loss_before, verdict.probe_evaluations) == (None, 0)


def test_the_finite_guard_refuses_the_rest() -> None:
    verdict, weight, _ = judge({}, Guard("finite"), weights=[math.nan])
    assert (verdict.accepted, verdict.kind, weight) == (False, "non_finite", 0.0)


def test_a_weight_too_large_for_its_own_dtype_is_not_finite() -> None:
    model = nn.ModuleList([Point(torch.float16), Point(torch.float32)])
    vector = ParameterVector(model.named_parameters())
    savepoint = Savepoint(model, vector.parameters, vector.device)
    too_large = torch.tensor([1e6, 0.0])
    verdict = Guard("finite").judge(vector, [(1, too_large)], savepoint)
    assert not verdict.accepted
    assert Guard("finite").judge(vector, [(1, too_large.flip(0))], savepoint).accepted


# What a probe disturbs is put back


def guarded(run: Run, probe: Callable[[], object], guard: Guard | None = None) -> Verdict:
    """Judge two candidates that nothing can make better: the weights times two and three."""
    vector = ParameterVector(run.model.named_parameters())
    savepoint = Savepoint(run.model, vector.parameters, vector.device)
    now = vector.read()
    candidates = [(1, 2 * now), (2, 3 * now)]
    return (guard or Guard("probe")).judge(vector, candidates, savepoint, probe)


def test_a_refused_jump_leaves_no_trace() -> None:
    run = noisy_run("adam")
    run.step()
    before = everything(run)

    def probe() -> float:
        loss = run.loss()
        run.model.eval()
        random.random()
        np.random.random()  # noqa: NPY002
        return loss.item() + run.model[0].weight.abs().sum().item() * 100

    assert not guarded(run, probe).accepted
    assert_same(everything(run), before)


def test_every_candidate_sees_the_same_masks_buffers_and_modes() -> None:
    run = noisy_run()
    run.step()
    seen = []

    def probe() -> float:
        state = everything(run)
        del state["weights"]
        seen.append(state)
        run.loss()
        run.model.eval()
        return 1.0

    guarded(run, probe)
    assert len(seen) == 3
    assert_same(seen[1], seen[0])
    assert_same(seen[2], seen[0])


def test_a_probe_that_calls_backward_leaves_no_gradient() -> None:
    run = noisy_run()
    run.step()
    before = everything(run)

    def probe() -> Tensor:
        loss = run.loss()
        loss.backward()
        return loss * 0

    guard = Guard("probe")
    assert not guarded(run, probe, guard).accepted
    assert guard.needs_gradients
    assert_same(everything(run), before)


def test_a_gradient_of_none_stays_none() -> None:
    run = noisy_run()

    def probe() -> float:
        run.loss().backward()
        return 1.0

    guarded(run, probe, Guard("probe", gradients=True))
    assert all(p.grad is None for p in run.model.parameters())


def test_a_buffer_that_the_probe_replaces_is_the_old_one_again() -> None:
    run = noisy_run()
    norm = run.model[1]
    old = norm.running_mean

    def probe() -> float:
        norm.running_mean = old + 1
        old.data.resize_(0)
        return 1.0

    guarded(run, probe)
    assert norm.running_mean is old
    assert torch.equal(old, torch.zeros(8))


def test_an_expanded_buffer_is_no_obstacle() -> None:
    run = noisy_run()
    run.model.register_buffer("mask", torch.ones(1).expand(4))
    assert not guarded(run, lambda: 1.0).accepted


# Gradients where the probe needs them


def test_gradients_are_off_unless_the_probe_asks_for_them() -> None:
    run = noisy_run()
    modes = []

    def plain() -> float:
        modes.append(torch.is_grad_enabled())
        return 1.0

    guarded(run, plain)
    assert modes == [False] * 3


def test_a_probe_that_differentiates_runs_with_gradients_and_that_is_remembered() -> None:
    run = noisy_run()
    modes = []

    def probe() -> Tensor:
        modes.append(torch.is_grad_enabled())
        x = run.x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(run.model(x).sum(), x)
        return (slope**2).mean() * 0

    guard = Guard("probe")
    verdict = guarded(run, probe, guard)
    assert modes == [False, True, True, True]
    assert verdict.probe_evaluations == 3
    guarded(run, probe, guard)
    assert False not in modes[1:]


def test_gradients_can_be_forbidden() -> None:
    run = noisy_run()
    with pytest.raises(RuntimeError, match="grad"):
        guarded(run, lambda: run.loss().backward(), Guard("probe", gradients=False))


# Probes that fail


@pytest.mark.parametrize("calls_before", [0, 1, 2])
@pytest.mark.parametrize("error", [KeyError("lost"), KeyboardInterrupt(), RuntimeError("no")])
def test_an_exception_passes_through_unchanged_and_all_is_restored(
    error: BaseException, calls_before: int
) -> None:
    run = noisy_run("momentum")
    run.step()
    before = everything(run)
    losses = iter([3.0, 2.0, 1.0][:calls_before])

    def probe() -> float:
        run.loss()
        for loss in losses:
            return loss
        raise error

    with pytest.raises(type(error)) as caught:
        guarded(run, probe)
    assert caught.value is error
    assert_same(everything(run), before)


@pytest.mark.parametrize(
    ("value", "came"),
    [
        (torch.zeros(3), r"a Tensor of shape \(3,\)"),
        (torch.zeros(0), r"a Tensor of shape \(0,\)"),
        (np.zeros((2, 2)), r"a ndarray of shape \(2, 2\)"),
        (None, "NoneType"),
        (True, "bool"),
        ("0.5", "str"),
        (1j, "complex"),
        (torch.tensor(1j), "complex"),
    ],
)
def test_what_is_no_scalar_is_named_and_all_is_restored(value: object, came: str) -> None:
    run = noisy_run()
    run.step()
    before = everything(run)
    with pytest.raises(ConfigError, match=f"probe: expected a scalar, got {came}"):
        guarded(run, lambda: value)
    assert_same(everything(run), before)


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        torch.tensor(0.5),
        torch.tensor([[0.5]], requires_grad=True),
        torch.tensor(0.5, dtype=torch.bfloat16),
        np.float32(0.5),
        np.array([0.5]),
    ],
)
def test_a_scalar_may_come_in_many_forms(value: object) -> None:
    assert scalar_loss(value, "probe") == 0.5
    assert scalar_loss(2, "probe") == 2.0


def test_the_probe_guard_wants_a_probe() -> None:
    run = noisy_run()
    vector = ParameterVector(run.model.named_parameters())
    savepoint = Savepoint(run.model, vector.parameters, vector.device)
    with pytest.raises(ConfigError, match="probe"):
        Guard("probe").judge(vector, [], savepoint)


def test_inside_autocast_each_candidate_is_judged_by_its_own_weights() -> None:
    """Autocast keeps the bfloat16 copies of weights that were cast once."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 8.0)
    vector = ParameterVector(model.named_parameters())
    x = torch.ones(1, 1)
    candidates = [(1, torch.tensor([4.0])), (2, torch.tensor([2.0]))]
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).item() == 8.0
        savepoint = Savepoint(model, vector.parameters, vector.device)
        verdict = Guard("probe").judge(vector, candidates, savepoint, lambda: model(x))
        assert model(x).item() == 2.0
    assert verdict.loss_before == 8.0
    assert verdict.candidates == ((1, 4.0), (2, 2.0))


class Stubborn:
    """Is restored at the second attempt."""

    def __init__(self, error: BaseException) -> None:
        self.errors = iter([error])
        self.restored = False

    def restore(self) -> None:
        for error in self.errors:
            raise error
        self.restored = True


def test_an_interrupt_or_an_error_does_not_keep_the_rest_from_being_restored() -> None:
    interrupted, after = Stubborn(KeyboardInterrupt()), Stubborn(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        restore_all(interrupted, after)
    assert interrupted.restored
    assert after.restored
    after = Stubborn(KeyboardInterrupt())
    with pytest.raises(OSError, match="first"):
        restore_all(Stubborn(OSError("first")), after, Stubborn(OSError("second")))
    assert after.restored


def test_an_interrupt_while_restoring_waits_until_all_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = noisy_run()
    run.step()
    before = everything(run)
    restore = torch.set_rng_state
    interrupts = iter([KeyboardInterrupt()])

    def interrupted(state: Tensor) -> None:
        for interrupt in interrupts:
            raise interrupt
        restore(state)

    monkeypatch.setattr(torch, "set_rng_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        guarded(run, run.loss)
    assert_same(everything(run), before)
