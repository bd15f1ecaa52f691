# SPDX-License-Identifier: BSD-3-Clause
"""The failure table, rows 12 to 16: what surrounds the weights, from memory to processes.

Each test fails without its protection; docs/safety.md lists row, protection and test.
"""

from __future__ import annotations

import copy
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import resumable_run
from koopfast import ConfigError, KoopmanTrainer, SnapshotBuffer, UnsupportedParameterError
from test_failure_table import FAST, one_warning, state_of, watched
from training_runs import Run, assert_same, everything, noisy_run, smooth_run

# Row 12


class Odd(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())


@pytest.mark.parametrize(
    ("weight", "came"),
    [
        (torch.ones(3, device="meta"), r"on the meta device; materialise it"),
        (torch.eye(3).to_sparse(), r"layout torch\.sparse_coo; make it dense"),
    ],
)
def test_meta_or_sparse_parameters(weight: Tensor, came: str) -> None:
    """Refused by name before anything is recorded; left out of the optimizer they are no matter."""
    model = nn.ModuleDict({"odd": Odd(weight), "plain": nn.Linear(2, 1)})
    message = rf"parameter 'odd\.weight': expected a dense .* got .*{came}"
    with pytest.raises(UnsupportedParameterError, match=message):
        KoopmanTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    KoopmanTrainer(model, torch.optim.SGD(model["plain"].parameters(), lr=0.1))


class Spiral(nn.Module):
    """A complex weight that turns as it comes nearer to its end, and a real one beside it."""

    end = torch.tensor([1.0 + 2.0j, -3.0j], dtype=torch.complex128)

    def __init__(self) -> None:
        super().__init__()
        self.turning = nn.Parameter(torch.zeros(2, dtype=torch.complex128))
        self.real = nn.Parameter(torch.tensor([4.0], dtype=torch.float64))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        way = self.turning.detach() - self.end
        self.turning.grad = way - way * torch.tensor([0.5 + 0.5j, 0.8 - 0.3j])
        self.real.grad = 0.25 * self.real.detach()
        optimizer.step()

    def loss(self) -> Tensor:
        return (self.turning - self.end).abs().square().sum() + self.real.square().sum()


def test_complex_parameters() -> None:
    """Turned in the complex plane as their dynamics turns them; real ones stay real."""
    model = Spiral()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = KoopmanTrainer(model, optimizer, window=8, stride=1, partition="layer", rank=None)
    for _ in range(8):
        model.step(optimizer)
        record = trainer.after_step(model.loss)
    assert record is not None
    assert record.accepted
    assert (model.turning - model.end).abs().max() < 1e-6
    assert model.real.dtype == torch.float64
    assert model.real.abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:.*quantiz.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning")
@pytest.mark.parametrize("kind", ["quantized", "integer"])
def test_quantized_or_integer_parameters(kind: str) -> None:
    """They have no gradients and cannot be trained: recorded they are not, nor ever written."""
    weight = torch.arange(3)
    if kind == "quantized":
        weight = torch.quantize_per_tensor(weight.float(), 0.1, 0, torch.qint8)
    run = smooth_run()
    odd = Odd(weight)
    run.model[1].register_module("odd", odd)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    trainer = watched(run)
    run.train(trainer, 6)
    assert trainer.history.jumps[0].accepted
    assert trainer._parameters.n == 41
    assert torch.equal(_integers(odd.weight.detach()), _integers(weight))
    with pytest.raises(UnsupportedParameterError, match=f"parameter '0': .* got .*{weight.dtype}"):
        SnapshotBuffer([odd.weight], capacity=2)


def _integers(weight: Tensor) -> Tensor:
    return weight.int_repr() if weight.is_quantized else weight


# Row 13


def test_memory_cap_exceeded() -> None:
    """Refused before a byte is taken, with the window that fits."""
    run = smooth_run()
    message = r"room for 100 snapshots of 41 weights, 32800 bytes, got 10000; .*\(window=30\)"
    with pytest.raises(ConfigError, match=message):
        watched(run, window=100, max_bytes=10_000)
    trainer = watched(run, window=30, max_bytes=10_000)
    run.train(trainer, 1)
    assert trainer._snapshots.nbytes == trainer._snapshots.nbytes_needed <= 10_000


def test_no_room_for_the_snapshots() -> None:
    """The trainer stands aside with one warning, and training is the plain one."""
    run, plain = smooth_run("adam"), smooth_run("adam")
    trainer = watched(run, window=2**40)  # 328 TiB
    with one_warning("expected room for 360639813910528 bytes"):
        run.train(trainer, 12)
    for _ in range(12):
        plain.step()
    assert_same(state_of(run), state_of(plain))
    assert not trainer.enabled
    assert trainer.history.counters.optimizer_steps == 12


def test_no_memory_for_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    run, plain = smooth_run("adam"), smooth_run("adam")
    trainer = watched(run)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB\nand many more lines")

    monkeypatch.setattr("koopfast._ops.operator_fit", full)
    with one_warning("the fit failed: OutOfMemoryError: tried to allocate 9 GiB; training goes on"):
        run.train(trainer, 12)
    for _ in range(12):
        plain.step()
    assert_same(state_of(run), state_of(plain))
    assert [jump.kind for jump in trainer.history.jumps] == ["operator"] * 2


# Row 14


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT means Ctrl-C, also where the tests run in the background and would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("trial", [0, 1, 2])
@pytest.mark.parametrize("error", ["exception", "Ctrl-C"])
def test_exception_or_ctrl_c_in_the_middle_of_a_jump(error: str, trial: int) -> None:
    """A real SIGINT, with the old, the first or the second weights under trial in the model.

    Every single stage is struck in test_trainer_errors.py.
    """
    run = noisy_run("adam")
    trainer = watched(run, optimizer_state="reset")
    run.train(trainer, 5)
    run.step()
    before = everything(run)
    calls = 0

    def probe() -> float:
        nonlocal calls
        run.loss().backward()
        calls += 1
        if calls > trial + 1:  # the first call asks for gradients and is repeated
            if error == "Ctrl-C":
                signal.raise_signal(signal.SIGINT)
            raise LookupError("the probe's own")
        return -float(calls)

    with pytest.raises(KeyboardInterrupt if error == "Ctrl-C" else LookupError):
        trainer.after_step(probe)
    assert_same(everything(run), before)
    assert trainer.history.jumps == []
    run.train(trainer, 6)
    assert len(trainer.history.jumps) == 1


def resumable(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("resumable_run.py")
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("config", resumable_run.CONFIGS)
def test_kill_9_in_the_middle_of_a_jump_or_checkpoint(config: str, tmp_path: Path) -> None:
    """What was saved last is whole, and from there the run ends as if nothing had happened."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected, jumps = resumable_run.train(whole, 40, config)
    assert jumps >= 3
    for where, at in (("jump", 12), ("checkpoint", 20)):
        died = resumable(killed, 40, config, where, at)
        assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(list(tmp_path.iterdir())) == 3  # the two, and what was half written
    resumed = resumable(killed, 40, config)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == f"{expected} {jumps}\n"


# Row 15


def test_attach_twice() -> None:
    """The second time is an error; one step stays one step, and the probe can be changed."""
    run, once = smooth_run(), smooth_run()
    trainer, other = watched(run), watched(once)
    trainer.attach(lambda: float("nan"))
    with pytest.raises(ConfigError, match="attached already"):
        trainer.attach(run.loss)
    trainer.probe = run.loss
    other.attach(once.loss)
    for _ in range(12):
        run.step()
        once.step()
    assert trainer.history.counters.optimizer_steps == 12
    assert_same(state_of(run), state_of(once))
    trainer.detach()
    run.step()
    assert trainer.history.counters.optimizer_steps == 12


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_hooks_lost_by_deepcopy(how: Callable[[Any], Any]) -> None:
    """A copied optimizer is a plain one; a copied trainer is attached to its own, without probe."""
    run, plain = smooth_run("adam"), smooth_run("adam")
    trainer = watched(run)
    trainer.attach()
    other = Run(run.model, "adam", run.x, run.y)
    other.model, other.optimizer = how((run.model, run.optimizer))
    for _ in range(6):
        other.step()
        plain.step()
    assert_same(other.weights(), plain.weights())
    assert trainer.history.counters.optimizer_steps == 0
    twin = how(trainer)
    assert twin._optimizer is not run.optimizer
    assert twin.probe is None
    mine = Run(twin._model, "adam", run.x, run.y)
    mine.optimizer = twin._optimizer
    twin.probe = mine.loss
    for _ in range(6):
        mine.step()
    assert len(twin.history.jumps) == 1
    assert trainer.history.counters.optimizer_steps == 0


# Row 16


class Gan(nn.Module):
    """Two players with batch statistics and dropout, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))
        self.critic = nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 1)
        )
        self.noise, self.real = torch.randn(16, 2), torch.randn(16, 3)

    def generator_loss(self) -> Tensor:
        return nn.functional.softplus(-self.critic(self.generator(self.noise))).mean()

    def critic_loss(self) -> Tensor:
        fake = self.critic(self.generator(self.noise))
        return nn.functional.softplus(fake - self.critic(self.real)).mean()


def test_two_optimizers_gan() -> None:
    """A jump of one player leaves weights, statistics, gradients and optimizer of the other."""
    gan = Gan()
    players = {
        name: torch.optim.Adam(getattr(gan, name).parameters(), lr=1e-2)
        for name in ("generator", "critic")
    }
    losses = {"generator": gan.generator_loss, "critic": gan.critic_loss}
    trainers = {
        name: KoopmanTrainer(gan, optimizer, **FAST, guard="finite", horizon=5)
        for name, optimizer in players.items()
    }
    for _ in range(13):
        for name, other in (("generator", "critic"), ("critic", "generator")):
            gan.zero_grad()
            losses[name]().backward()
            players[name].step()
            before = _player(gan, other, players[other])
            trainers[name].after_step()
            assert_same(_player(gan, other, players[other]), before)
    assert {t.history.counters.jumps_accepted for t in trainers.values()} == {2}


def _player(gan: Gan, name: str, optimizer: torch.optim.Optimizer) -> Any:
    module = getattr(gan, name)
    gradients = [p.grad for p in module.parameters()]
    return copy.deepcopy([module.state_dict(), optimizer.state_dict(), gradients])


def test_a_probe_through_the_other_player_leaves_its_statistics() -> None:
    gan = Gan()
    optimizer = torch.optim.Adam(gan.generator.parameters(), lr=1e-2)
    trainer = KoopmanTrainer(gan, optimizer, **FAST)
    for _ in range(6):
        optimizer.zero_grad()
        gan.generator_loss().backward()
        optimizer.step()
        before = copy.deepcopy(gan.critic.state_dict())
        record = trainer.after_step(gan.generator_loss)
    assert record is not None
    assert record.probe_evaluations >= 2
    assert_same(gan.critic.state_dict(), before)
