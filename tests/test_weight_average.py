# SPDX-License-Identifier: BSD-3-Clause
"""The mean of the weights of late: what it is, when it is shown, and that it disturbs nothing."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import koopfast
from koopfast import ConfigError, KoopmanTrainer
from koopfast._weight_average import WeightAverage
from koopfast.controller import Controller
from koopfast.errors import CheckpointError
from koopfast.parameters import ParameterVector


class _Bowl(nn.Module):
    """Least squares whose gradient is seen through noise."""

    def __init__(self, n: int = 50) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.register_buffer("seen", torch.zeros(()))

    def loss(self) -> Tensor:
        return self.weight.square().mean()


def _noisy(
    steps: int, **overrides: Any
) -> tuple[_Bowl, KoopmanTrainer, Callable[[], None], Callable[[], Tensor]]:
    """A run that has come to where only noise moves it, and what takes a step more."""
    model = _Bowl()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = KoopmanTrainer(model, optimizer, overhead=None, **overrides)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        model.weight.grad = model.weight.detach() + torch.randn(50, generator=generator)
        optimizer.step()
        trainer.after_step(probe=model.loss)

    for _ in range(steps):
        step()
    return model, trainer, step, model.loss


def _vector(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ParameterVector]:
    p = nn.Parameter(torch.zeros(3, dtype=dtype))
    return p, ParameterVector([("p", p)])


def _put(p: Tensor, value: float) -> None:
    with torch.no_grad():
        p.fill_(value)


def test_the_memory_is_a_twentieth_of_all_steps() -> None:
    p, vector = _vector()
    average = WeightAverage(vector)
    average.reserve()
    for step in range(1, 4001):
        _put(p, float(step))
        average.step(step)
    assert average.mean is not None
    assert float(average.mean[0]) == pytest.approx(4000 * (1 - 1 / 20), rel=0.02)


def test_at_first_and_after_a_jump_it_is_the_plain_mean_of_what_came_since() -> None:
    p, vector = _vector()
    average = WeightAverage(vector)
    average.reserve()
    assert average.mean is None
    for step, value in enumerate((1.0, 2.0, 6.0), start=1):
        _put(p, value)
        average.step(step)
    assert average.mean is not None
    assert average.mean.tolist() == pytest.approx([6.0] * 3)  # no memory yet: the last weights
    average.forget()
    for step, value in ((1000, 1.0), (1001, 2.0), (1003, 6.0)):  # a sample in three steps
        assert average.mean is None
        _put(p, value)
        average.step(step)
    assert average.mean is not None
    assert average.mean.tolist() == pytest.approx([3.5] * 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_of_16_bits_the_mean_has_32(dtype: torch.dtype) -> None:
    p, vector = _vector(dtype)
    average = WeightAverage(vector)
    average.reserve()
    for step in range(1, 1001):
        _put(p, 1.0 + 2**-7 * (step % 2))
        average.step(step)
    assert average.mean is not None
    assert average.mean.dtype == torch.float32
    assert average.mean[0] == pytest.approx(1 + 2**-8, abs=2**-9)


def test_complex_and_mixed_parameters_have_a_mean_too() -> None:
    real, turning = nn.Parameter(torch.ones(2)), nn.Parameter(torch.full((2,), 1j))
    average = WeightAverage(ParameterVector([("real", real), ("turning", turning)]))
    average.reserve()
    for step in range(1, 100):
        average.step(step)
    assert average.mean is not None
    assert torch.allclose(average.mean, torch.tensor([1, 1, 1j, 1j], dtype=torch.complex64))


@pytest.mark.parametrize(
    ("losses", "leads"),
    [((1.0, 0.5), True), ((0.5, 1.0), False), ((1.0, float("nan")), False)],
)
def test_the_lower_loss_leads(losses: tuple[float, float], leads: bool) -> None:
    average = WeightAverage(_vector()[1])
    average.look(100, *losses)
    assert (average.lead > 0) == leads
    assert not average.wants_look(149)


def test_a_loss_that_is_not_finite_says_nothing_of_the_mean() -> None:
    average = WeightAverage(_vector()[1])
    average.look(100, float("inf"), 1.0)
    assert average.lead == 0
    average.look(200, 1.0, 1e-9)
    assert average.lead == 1  # and no single look says more than that


def test_where_noise_is_the_limit_the_mean_is_shown_and_is_better() -> None:
    model, trainer, _, loss = _noisy(400)
    model.seen.fill_(7)
    weights, before = model.weight.detach().clone(), loss().item()
    with trainer.averaged() as shown:
        assert shown
        assert loss().item() < 0.5 * before
        model.seen.fill_(8)
    assert torch.equal(model.weight, weights)
    assert model.seen == 7
    assert trainer.history.counters.lead_of_mean > 0.5
    assert "averaged()" in trainer.history.summary()


def test_the_mean_lies_where_the_weights_lie(device: torch.device) -> None:
    weights = nn.Parameter(torch.zeros(4, device=device))
    vector = ParameterVector([("weights", weights)])
    average = WeightAverage(vector)
    average.reserve()
    for step in range(1, 41):
        with torch.no_grad():
            weights.fill_(float(step % 2))
        average.step(step)
    assert average.mean is not None
    assert average.mean.device.type == device.type
    assert average.mean.cpu().tolist() == pytest.approx([0.4] * 4, abs=0.1)
    other = WeightAverage(vector)
    other.load_state_dict(average.state_dict())
    assert other.mean is not None
    assert torch.equal(other.mean.cpu(), average.mean.cpu())


def test_where_weights_drift_they_are_shown_themselves() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    trainer = KoopmanTrainer(model, optimizer, overhead=None)
    x, y = torch.eye(2), torch.tensor([[1.0], [3.0]])

    def loss() -> Tensor:
        return nn.functional.mse_loss(model(x), y)

    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    trainer.attach(loss)
    weights = model.weight.detach().clone()
    with trainer.averaged() as shown:
        assert not shown
        assert torch.equal(model.weight, weights)


def test_a_probe_given_decides_anew() -> None:
    _, trainer, _, loss = _noisy(400)
    counters = trainer.history.counters
    before = counters.probe_evaluations
    with trainer.averaged(lambda: -loss()) as shown:
        assert not shown
    assert counters.probe_evaluations == before + 2
    trainer.attach(lambda: -loss())
    with trainer.averaged() as shown:
        assert not shown


def test_fit_leaves_its_batches_to_decide_by() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    trainer = KoopmanTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batches = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(8)]
    trainer.fit(batches, nn.functional.mse_loss, epochs=12)

    def held() -> float:
        losses = [nn.functional.mse_loss(model(x), y) for x, y in batches[:3]]
        return torch.stack(losses).mean().item()

    before = held()
    with trainer.averaged() as shown:
        assert shown == (held() < before)


def test_looking_does_not_change_the_training() -> None:
    runs = []
    for looks in (False, True):
        model, trainer, step, _ = _noisy(150)
        for _ in range(150):
            if looks:
                with trainer.averaged():
                    pass
            step()
        runs.append((model.weight.detach().clone(), trainer.history.counters.jumps_refused))
        assert trainer.history.counters.windows_split == 0
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_nothing_is_trained_in_the_block() -> None:
    model, trainer, step, _ = _noisy(400)
    weights = model.weight.detach().clone()
    with pytest.raises(ConfigError, match="leave the `with"), trainer.averaged():
        step()
    assert torch.equal(model.weight, weights)
    once, again = trainer.averaged(), trainer.averaged()
    with pytest.raises(ConfigError, match="leave the `with"), once, again:
        pass
    with pytest.raises(ConfigError, match="leave the `with"), trainer.averaged():
        trainer.load_state_dict(trainer.state_dict())
    step()
    assert not torch.equal(model.weight, weights)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_whatever_happens_in_the_block_the_weights_come_back(error: type[BaseException]) -> None:
    model, trainer, step, _ = _noisy(400)
    weights = model.weight.detach().clone()
    with pytest.raises(error), trainer.averaged():
        raise error
    assert torch.equal(model.weight, weights)
    step()


def test_a_probe_that_fails_leaves_all_as_it_was() -> None:
    model, trainer, step, _ = _noisy(400)
    weights = model.weight.detach().clone()

    def broken() -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), trainer.averaged(broken):
        raise AssertionError
    with pytest.raises(ConfigError, match="callable"):
        trainer.averaged(3)  # type: ignore[arg-type]
    assert torch.equal(model.weight, weights)
    step()


@pytest.mark.parametrize("overrides", [{"weight_average": False}, {"stride": 2}])
def test_none_is_kept_where_none_is_wanted(overrides: dict[str, Any]) -> None:
    _, trainer, _, loss = _noisy(100, **overrides)
    with trainer.averaged(loss) as shown:
        assert not shown
    assert trainer.state_dict()["average"] is None
    with pytest.raises(ConfigError, match="weight_average"):
        trainer.config.replace(weight_average=1)


def test_statistics_of_batches_are_those_of_the_mean() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    trainer = KoopmanTrainer(model, optimizer, batch_norm="recalibrate")
    batches = [(torch.randn(16, 3), torch.randn(16, 1)) for _ in range(8)]
    trainer.fit(batches, nn.functional.mse_loss, epochs=30)
    normalization = model[1]
    statistics = copy.deepcopy(normalization.state_dict())
    shows = iter((1.0, 0.5))
    stream = torch.get_rng_state()
    with trainer.averaged(lambda: next(shows)) as shown:
        assert shown
        assert int(normalization.num_batches_tracked) == 3  # those that fit() holds
        assert not torch.equal(normalization.running_mean, statistics["running_mean"])
    assert torch.equal(torch.get_rng_state(), stream)
    for name, value in statistics.items():
        assert torch.equal(normalization.state_dict()[name], value)


def test_it_is_saved_and_resumed_bit_for_bit() -> None:
    model, trainer, step, _ = _noisy(200)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "trainer": trainer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, resumed, _, _ = _noisy(0)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["trainer"])
    mine, theirs = trainer.state_dict()["average"], resumed.state_dict()["average"]
    assert torch.equal(mine.pop("mean"), theirs.pop("mean"))
    assert mine == theirs
    step()
    assert mine != {k: v for k, v in trainer.state_dict()["average"].items() if k != "mean"}


def test_a_state_from_before_there_was_a_mean_is_read() -> None:
    model, trainer, _, _ = _noisy(200)
    state = trainer.state_dict()
    del state["average"], state["config"]["weight_average"]
    del state["history"]["counters"]["lead_of_mean"]
    other, resumed, step, _ = _noisy(0)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(state)
    with resumed.averaged() as shown:
        assert not shown
    step()
    _, without, _, _ = _noisy(0, weight_average=False)
    without.load_state_dict(state)
    assert without.state_dict()["average"] is None


@pytest.mark.parametrize("steps", [0, 1, 100])
def test_weights_that_somebody_else_wrote_end_the_mean(steps: int) -> None:
    model, trainer, step, _ = _noisy(1000)
    trainer._idle = 10**6  # in a pause, too
    step()
    with torch.no_grad():
        model.weight.fill_(100.0)
    if steps == 0:
        weights = model.weight.detach().clone()
        with pytest.warns(koopfast.KoopmanWarning, match="changed"), trainer.averaged() as shown:
            assert torch.equal(model.weight, weights)
        assert not shown
        return
    with pytest.warns(koopfast.KoopmanWarning, match="changed between"):
        step()
    for _ in range(1, steps):
        step()
    with trainer.averaged() as shown:
        assert not shown  # nothing was compared since


def test_where_there_is_no_room_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("not enough memory")

    average = WeightAverage(_vector()[1])
    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", full)
        with pytest.raises(MemoryError, match="room for 3 weights"):
            average.reserve()

    def refuse(_: WeightAverage) -> None:
        raise MemoryError("no room")

    _, trainer, step, loss = _noisy(0)
    monkeypatch.setattr(WeightAverage, "reserve", refuse)
    with pytest.warns(koopfast.KoopmanWarning, match="no room; no mean"):
        step()
    for _ in range(30):
        step()
    with trainer.averaged(loss) as shown:
        assert not shown
    assert trainer.history.jumps


def test_a_trainer_that_was_switched_off_shows_nothing_of_before() -> None:
    _, trainer, step, _ = _noisy(1000)
    trainer.enabled = False
    trainer.enabled = True
    for _ in range(5):
        step()
    with trainer.averaged() as shown:
        assert not shown


def test_an_autocast_region_around_the_block_sees_its_weights() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=5e-4)
    trainer = KoopmanTrainer(model, optimizer)
    x = torch.ones(2, 4)
    for _ in range(60):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        trainer.after_step(lambda: 1.0)
    losses = iter((1.0, 0.5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(x)
        with trainer.averaged(losses.__next__) as shown:
            within = model(x)
        after = model(x)
    assert shown
    assert not torch.equal(before, within)
    assert torch.equal(before, after)


def test_the_block_may_be_in_inference_mode() -> None:
    model, trainer, step, loss = _noisy(400)
    weights = model.weight.detach().clone()

    def needs_gradients() -> Tensor:
        value = loss()
        torch.autograd.grad(value, model.weight)
        return value

    with torch.inference_mode(), trainer.averaged(needs_gradients) as shown:
        assert shown
        assert not torch.equal(model.weight, weights)
    assert torch.equal(model.weight, weights)
    step()


def test_fit_and_checkpoints_are_refused_in_the_block(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    trainer = KoopmanTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batches = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(8)]
    trainer.fit(batches, nn.functional.mse_loss, epochs=3)
    grad = model.weight.grad
    with trainer.averaged():
        with pytest.raises(ConfigError, match="leave the `with"):
            trainer.fit(list(batches), nn.functional.mse_loss)
        with pytest.raises(ConfigError, match="leave the `with"):
            koopfast.save_checkpoint(tmp_path / "run.pt", trainer)
    assert model.weight.grad is grad
    assert not list(tmp_path.iterdir())
    with trainer.averaged():
        pass
    with pytest.raises(ConfigError, match="epochs"):
        KoopmanTrainer(model, trainer.optimizer).fit(batches, nn.functional.mse_loss, epochs=0)


def _malformed() -> Iterator[tuple[str, Any]]:
    yield "mean", torch.zeros(3)
    yield "mean", "none"
    yield "samples", 1.5
    yield "samples", -1
    yield "lead", float("nan")
    yield "next_look", float("inf")
    yield "lead", None
    yield "looks", True


@pytest.mark.parametrize(("field", "value"), list(_malformed()))
def test_what_is_malformed_is_refused(field: str, value: Any) -> None:
    model, trainer, _, _ = _noisy(100)
    state = trainer.state_dict()
    state["average"][field] = value
    weights = model.weight.detach().clone()
    with pytest.raises(CheckpointError, match="average"):
        trainer.load_state_dict(state)
    state["average"] = {"mean": None}
    with pytest.raises(CheckpointError, match="average"):
        trainer.load_state_dict(state)
    assert torch.equal(model.weight, weights)


def test_a_jump_must_gain_more_than_the_mean() -> None:
    controller = Controller(12)
    for _ in range(12):
        controller.step()
    assert controller.worth(1.0, 0.9)
    controller.spare = 0.2
    assert not controller.worth(1.0, 0.9)
    assert controller.worth(1.0, 0.7)
