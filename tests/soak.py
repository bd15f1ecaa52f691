# SPDX-License-Identifier: BSD-3-Clause
"""Training under random faults for as long as you like: nothing is lost, and memory stays flat.

    python tests/soak.py [--minutes 30] [--seed 0]      (make soak; SOAK_MINUTES=30)

Runs come and go, each with its own random configuration. While they train, gradients and probes
fail, the keyboard interrupts at any instruction, weights and rates are changed by others,
checkpoints are loaded, copies take over, processes are killed and resumed. After every step the
complete state is compared with what it has to be, to the last bit.
"""

from __future__ import annotations

import argparse
import copy
import gc
import io
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import resumable_run
from koopfast import ConfigError, KoopfastError, KoopmanTrainer, ParameterChangedError
from training_runs import OPTIMIZERS, Run, assert_same, everything, noisy_run, smooth_run

# What random streams and gradients a jump must leave, whatever becomes of it.
_NEVER_MOVED = ("gradients", "gradient ids", "modes", "torch stream", "python stream")
_KILLED_EVERY = 45.0  # seconds
_PATIENCE = 1800.0  # seconds: a busy machine may take long to start a process of low priority
# Growth of resident memory that a run of any length may show, in bytes: the allocator's own.
MOST_GROWTH = 24 * 2**20


class Interrupt:
    """KeyboardInterrupt after a random time, at whatever instruction that is."""

    armed = False

    @classmethod
    def arm(cls, chance: random.Random) -> None:
        cls.armed = True
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 4e-3))

    @classmethod
    def handler(cls, *_: Any) -> None:
        armed, cls.armed = cls.armed, False
        if armed:
            raise KeyboardInterrupt


class Episode:
    """One run with its trainer, and the faults that strike it."""

    def __init__(self, chance: random.Random, told: Counter[str]) -> None:
        self.chance, self.told = chance, told
        optimizer = chance.choice(list(OPTIMIZERS))
        self.run: Run = chance.choice([smooth_run, noisy_run])(optimizer)
        torch.manual_seed(chance.getrandbits(31))
        self.config: dict[str, Any] = {
            "window": chance.randint(4, 9),
            "partition": chance.choice(["network", "layer", "node", "weight"]),
            "rank": chance.choice(["auto", 2, None]),
            "optimizer_state": chance.choice(["auto", "keep", "reset"]),
            "cooldown": chance.randint(0, 2),
        }
        if chance.random() < 0.5:  # otherwise the trainer sets itself
            self.config["stride"] = chance.randint(1, 3)
            self.config["average"] = chance.random() < 0.3
        told["runs that set themselves"] += "stride" not in self.config
        self.fault = ""
        self.before: dict[str, Any] = {}
        self.way_back: dict[str, Any] = {}  # all as it was before the last jump
        self.trainer = self._attached(
            KoopmanTrainer(self.run.model, self.run.optimizer, **self.config)
        )
        self.steps = 0

    def _attached(self, trainer: KoopmanTrainer) -> KoopmanTrainer:
        self.marking = self.run.optimizer.register_step_post_hook(self._mark)  # before the jump
        trainer.attach(self.probe)
        return trainer

    def _mark(self, *_: Any) -> None:
        self.before = everything(self.run)
        if self.fault == "interrupt anywhere":
            Interrupt.arm(self.chance)

    def probe(self) -> Any:
        loss = self.run.loss()
        if self.fault and self.chance.random() < 0.6:
            return FAULTY[self.fault](self, loss) if self.fault in FAULTY else loss
        return loss

    def step(self) -> None:
        """One step under the fault of the moment; then everything is as it has to be."""
        tried = len(self.trainer.history.jumps)
        rolled_back = self.trainer.history.counters.jumps_rolled_back
        error: BaseException | None = None
        try:
            try:
                self.run.step()
            finally:
                Interrupt.armed = False
        except BaseException as caught:
            error = caught
        self.steps += 1
        allowed = (LookupError, ConfigError, KeyboardInterrupt)
        if error is not None and not (self.fault and isinstance(error, allowed)):
            raise error
        if error is not None:
            self.told[f"{self.fault}: {type(error).__name__} passed on"] += 1
        jumps, now = self.trainer.history.jumps, everything(self.run)
        if len(jumps) > tried and jumps[-1].accepted:
            self.told["jumps accepted"] += 1
            for key in _NEVER_MOVED:
                assert_same(now[key], self.before[key], key)
            assert all(bool(torch.isfinite(w).all()) for w in now["weights"])
            self.way_back = self.before
            return
        self.told["jumps refused"] += len(jumps) - tried
        if self.trainer.history.counters.jumps_rolled_back > rolled_back:
            self.told["jumps undone by the trainer"] += 1
            self._is_back(now)
            for key in _NEVER_MOVED:
                assert_same(now[key], self.before[key], key)
        else:
            assert_same(now, self.before)
        # An interrupt may come before the step was counted.
        lost = self.steps - self.trainer.history.counters.optimizer_steps
        assert 0 <= lost <= (self.fault == "interrupt anywhere")
        self.steps -= lost

    def _is_back(self, now: dict[str, Any]) -> None:
        """The last jump, and what came after it, was undone."""
        for key in ("weights", "buffers"):
            assert_same(now[key], self.way_back[key], key)
        assert_same(now["optimizer"]["state"], self.way_back["optimizer"]["state"], "optimizer")

    # What others do to the run between its steps

    def spoilt_gradients(self) -> None:
        """NaN reaches the weights; the trainer stands aside; the checkpoint brings all back."""
        saved = self._saved()
        self.run.optimizer.zero_grad()
        self.run.loss().backward()
        for p in self.run.model.parameters():
            p.grad = torch.full_like(p, math.nan)
        self.run.optimizer.step()
        self.steps += 1
        for _ in range(3 * self.config["window"]):
            self.run.optimizer.step()
        assert not any(j.accepted for j in self.trainer.history.jumps if j.step > self.steps), (
            "a jump from NaN"
        )
        self._load(*saved)

    def checkpoint(self) -> None:
        saved = self._saved()
        for _ in range(self.chance.randint(0, 9)):
            self.step()
        self._load(*saved)

    def _saved(self) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
        packed = resumable_run.packed(self.run, self.trainer)
        return packed, everything(self.run), self.way_back

    def _load(self, data: bytes, state: dict[str, Any], way_back: dict[str, Any]) -> None:
        self.way_back = way_back
        resumable_run.unpack(io.BytesIO(data), self.run, self.trainer)
        now = everything(self.run)
        for key in ("weights", "buffers", "optimizer", "torch stream"):
            assert_same(now[key], state[key], key)
        self.steps = self.trainer.history.counters.optimizer_steps

    def copied(self) -> None:
        """A copy of all takes over; the original is thrown away."""
        before = everything(self.run)
        how: Callable[[Any], Any] = self.chance.choice(
            [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
        )
        self.trainer.detach()
        self.marking.remove()
        trainer = how(self.trainer)
        self.run.model, self.run.optimizer = trainer._model, trainer._optimizer
        self.trainer = self._attached(trainer)
        now = everything(self.run)
        for key in ("weights", "buffers", "optimizer"):
            assert_same(now[key], before[key], key)

    def rate_changed(self) -> None:
        for group in self.run.optimizer.param_groups:
            group["lr"] = min(max(group["lr"] * self.chance.choice([0.1, 0.9, 1.1]), 1e-5), 0.5)

    def weights_written(self) -> None:
        for p in self.run.model.parameters():
            p.data.mul_(0.999)

    def frozen(self) -> None:
        p = self.chance.choice(list(self.run.model.parameters()))
        p.requires_grad_(False)
        try:
            self.run.step()
        except ParameterChangedError:
            self.told["frozen: named"] += 1
        p.requires_grad_(True)
        assert_same(everything(self.run)["weights"], self.before["weights"])
        self.steps = self.trainer.history.counters.optimizer_steps

    def rolled_back(self) -> None:
        before = everything(self.run)
        try:
            self.trainer.rollback()
        except KoopfastError:
            assert_same(everything(self.run), before)
        else:
            self.told["rollbacks"] += 1
            self._is_back(everything(self.run))

    def switched(self) -> None:
        self.trainer.enabled = not self.trainer.enabled
        self.run.step()
        self.steps += 1
        self.trainer.enabled = True


def _step_within(episode: Episode, loss: Tensor) -> Tensor:
    episode.run.optimizer.step()
    return loss


def _raise(episode: Episode, loss: Tensor) -> Tensor:
    raise LookupError("the probe's own")


def _interrupt(episode: Episode, loss: Tensor) -> Tensor:
    signal.raise_signal(signal.SIGINT)
    return loss


def _disturb(episode: Episode, loss: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        loss.backward()
    episode.run.model.eval()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - as users do
    return loss.detach()


FAULTY: dict[str, Callable[[Episode, Tensor], Any]] = {
    "probe raises": _raise,
    "probe is interrupted": _interrupt,
    "probe returns NaN": lambda episode, loss: math.nan,
    "probe returns a vector": lambda episode, loss: episode.run.x,
    "probe disturbs all": _disturb,
    "probe errs": lambda episode, loss: loss * episode.chance.uniform(0.1, 10.0),
    "probe steps": _step_within,
}
FAULTS = ("", "", *FAULTY, "interrupt anywhere")
EVENTS = (
    Episode.spoilt_gradients,
    Episode.checkpoint,
    Episode.copied,
    Episode.rate_changed,
    Episode.weights_written,
    Episode.frozen,
    Episode.rolled_back,
    Episode.switched,
)


def killed_and_resumed(chance: random.Random, folder: Path, told: Counter[str]) -> None:
    """A process dies twice, in a jump and in a checkpoint, and ends as one that was left alone."""
    config = chance.choice(list(resumable_run.CONFIGS))
    expected = resumable_run.train(folder / f"{chance.random()}", 40, config)
    path, script = folder / f"{chance.random()}", Path(resumable_run.__file__)
    command = [sys.executable, str(script), str(path), "40", config]
    for kill in (["jump", "12"], ["checkpoint", f"{chance.randint(12, 30)}"]):
        died = subprocess.run([*command, *kill], timeout=_PATIENCE, check=False)
        assert died.returncode == -signal.SIGKILL, died
    ended = subprocess.run(command, timeout=_PATIENCE, check=True, capture_output=True, text=True)
    assert ended.stdout == f"{expected[0]} {expected[1]}\n"
    told["processes killed"] += 2


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(samples: list[tuple[float, int]]) -> float:
    """Bytes by which memory grew after the first quarter: a line's slope times its length."""
    times, sizes = np.array(samples, dtype=np.float64).T
    late = times > times[-1] / 4
    slope = np.polyfit(times[late], sizes[late], 1)[0]
    return float(slope * (times[-1] - times[late][0]))


def soak(seconds: float, seed: int, *, kill: bool = True) -> dict[str, Any]:
    """Train under faults; raises at the first thing that is not as it has to be.

    Returns:
        How often each thing happened, and the memory at the end.
    """
    chance, told = random.Random(seed), Counter[str]()
    started = time.monotonic()
    alarm = signal.signal(signal.SIGALRM, Interrupt.handler)
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background too
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            samples = _episodes(seconds, chance, told, Path(folder) if kill else None)
    finally:
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGINT, ctrl_c)
    grown = growth(samples)
    result = {
        "seconds": round(time.monotonic() - started),
        "resident bytes": samples[-1][1],
        "growth in bytes": round(grown),
        **dict(sorted(told.items())),
    }
    assert grown < MOST_GROWTH, f"memory grew by {grown:.3g} bytes: {result}"
    return result


def _episodes(
    seconds: float, chance: random.Random, told: Counter[str], folder: Path | None
) -> list[tuple[float, int]]:
    """Episode after episode; (seconds, resident bytes) after each."""
    started, killed, took = time.monotonic(), -math.inf, 0.0
    samples: list[tuple[float, int]] = []
    while (now := time.monotonic() - started) < seconds:
        episode = Episode(chance, told)
        for _ in range(chance.randint(20, 120)):
            episode.fault = chance.choice(FAULTS)
            episode.step()
            episode.fault = ""
            if chance.random() < 0.1:
                event = chance.choice(EVENTS)
                told[event.__name__] += 1
                event(episode)
        told["optimizer steps"] += episode.steps
        told["runs"] += 1
        samples.append((now, resident()))
        if folder is not None and now - killed > _KILLED_EVERY and now + took < seconds:
            killed_and_resumed(chance, folder, told)
            killed = time.monotonic() - started
            took = killed - now
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", "30"))
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = soak(60 * options.minutes, options.seed)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
