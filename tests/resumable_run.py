# SPDX-License-Identifier: BSD-3-Clause
"""A training run in a process of its own that can be killed at any point and started again.

    python resumable_run.py CHECKPOINT STEPS fixed|auto [jump STEP | checkpoint STEP]

Goes on from CHECKPOINT if it is there, saves model, optimizer, trainer and random streams there
every fifth step, prints a digest of all of them at the end; "auto" is the trainer that sets itself.
With two more arguments it is killed, as by kill -9, in the middle of the jump or the checkpoint at
that step.
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from koopfast import KoopmanTrainer
from koopfast._files import write_whole
from training_runs import Run, smooth_run

CONFIGS: dict[str, dict[str, Any]] = {
    "fixed": {"window": 6, "stride": 2, "partition": "network", "rank": 3},
    "auto": {"window": 6, "partition": "network", "overhead": None},
}
EVERY = 5


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def packed(run: Run, trainer: KoopmanTrainer) -> bytes:
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "trainer": trainer.state_dict(),
        "random": torch.get_rng_state(),
    }
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def unpack(path: Path | io.BytesIO, run: Run, trainer: KoopmanTrainer) -> None:
    state = torch.load(path, weights_only=True)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    trainer.load_state_dict(state["trainer"])
    torch.set_rng_state(state["random"])


def digest(run: Run) -> str:
    """Of weights, optimizer state and random stream."""
    tensors = run.weights()
    for entry in run.optimizer.state.values():
        tensors += [value for value in entry.values() if isinstance(value, torch.Tensor)]
    data = b"".join(t.detach().numpy().tobytes() for t in (*tensors, torch.get_rng_state()))
    return hashlib.sha256(data).hexdigest()


def _half_written(descriptor: int) -> None:
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    die()


def train(
    path: Path, steps: int, config: str = "fixed", kill: str = "", at: int = -1
) -> tuple[str, int]:
    """The digest at the end and the number of jumps tried."""
    torch.manual_seed(0)
    run = smooth_run("adam")
    trainer = KoopmanTrainer(run.model, run.optimizer, **CONFIGS[config])
    if path.exists():
        unpack(path, run, trainer)
    counters = trainer.history.counters
    calls = 0

    def probe() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if kill == "jump" and counters.optimizer_steps >= at and calls > 1:
            die()  # with weights under trial in the model
        return run.loss() + 0 * torch.rand(())

    while counters.optimizer_steps < steps:
        torch.rand(3)  # training draws numbers too
        calls = 0
        run.step()
        trainer.after_step(probe)
        if counters.optimizer_steps % EVERY == 0:
            if kill == "checkpoint" and counters.optimizer_steps >= at:
                os.fsync = _half_written
            write_whole(path, packed(run, trainer))
    return digest(run), len(trainer.history.jumps)


if __name__ == "__main__":
    path, steps, config, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    end, jumps = train(Path(path), int(steps), config, *rest[:1], *map(int, rest[1:]))
    sys.stdout.write(f"{end} {jumps}\n")
