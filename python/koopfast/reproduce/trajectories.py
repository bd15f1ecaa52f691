# SPDX-License-Identifier: BSD-3-Clause
"""Train solver networks and keep their weights, in chunks of steps that survive a killed run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from time import sleep
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from koopfast.data import Oscillator
from koopfast.reproduce.stacked import StackedSolvers, initial_weights
from koopfast.reproduce.store import Store

__all__ = ["OPTIMIZERS", "RunSpec", "load_losses", "load_weights", "perturbed", "train_all"]

# Adam's betas are those of the Hamiltonian-network code that the paper builds on; all else is
# torch's default but the rate, which the study chooses.
OPTIMIZERS: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "Adadelta": lambda weights, rate: torch.optim.Adadelta(weights, lr=rate),
    "Adam": lambda weights, rate: torch.optim.Adam(weights, lr=rate, betas=(0.999, 0.9999)),
    "Adagrad": lambda weights, rate: torch.optim.Adagrad(weights, lr=rate),
}


@dataclass(frozen=True)
class RunSpec:
    """One training of several networks at once, float64.

    float64, because a weight moves by some 1e-6 a step here: in float32 that is ten units in the
    last place, and rounding would be a tenth of the motion that is to be predicted.

    Attributes:
        optimizer, rate: a name in OPTIMIZERS, and its learning rate.
        networks: how many; their initial weights have the seeds first, first + 1, ....
        keep_from, last: weights are kept after each step from the one to the other; ``last`` is
            also the number of steps in all.
        noise: standard deviation of the points' perturbation at each step, in spacings.
        chunk: steps in one file.
        width, points: units in a hidden layer; points in time.
        first: seed of the first network.
    """

    optimizer: str
    rate: float
    networks: int
    keep_from: int
    last: int
    noise: float = 0.0
    chunk: int = 2500
    width: int = 10
    points: int = 200
    first: int = 0

    @property
    def seeds(self) -> range:
        return range(self.first, self.first + self.networks)

    @property
    def name(self) -> str:
        """A folder's name, another one for other fields."""
        fields = json.dumps(dataclasses.asdict(self), sort_keys=True)
        digest = hashlib.sha256(fields.encode()).hexdigest()[:8]
        noisy = "-noisy" if self.noise else ""
        seeds = f"{self.first}to{self.first + self.networks - 1}"
        return f"{self.optimizer.lower()}-{self.rate:g}-{seeds}{noisy}-{digest}"

    @property
    def chunks(self) -> int:
        return -(-self.last // self.chunk)

    def file(self, chunk: int) -> str:
        return f"{self.name}/chunk-{chunk:03d}.pt"


def perturbed(problem: Oscillator, noise: float, generator: torch.Generator, steps: int) -> Tensor:
    """Points of this many steps, (steps, points), each moved by noise times the spacing times a
    standard normal number, reflected at both ends of the interval; the first stays at 0.

    As in the Hamiltonian-network code (Mattheakis et al., arXiv 2001.11107), which perturbs by
    0.03 times the duration.
    """
    grid = problem.times()
    normal = torch.randn(steps, len(grid), generator=generator, dtype=grid.dtype)
    moved = (grid + noise * (grid[1] - grid[0]) * normal).abs()
    moved = torch.where(moved > problem.duration, 2 * problem.duration - moved, moved)
    moved[:, 0] = 0.0
    return moved


def train_all(
    specs: Sequence[RunSpec], folder: Path, *, workers: int = 1, label: str = "training"
) -> None:
    """Train what is not yet on disk, under one progress bar, in this many processes."""
    missing = [spec for spec in specs if not _finished(spec, Store(folder))]
    steps = sum(spec.last for spec in missing)
    if not missing:
        return
    with tqdm(total=steps, desc=label, unit="step", smoothing=0.1) as bar:
        if workers == 1 or len(missing) == 1:
            for spec in missing:
                _train(spec, folder, bar.update)
            return
        context = multiprocessing.get_context("spawn")
        done: Synchronized[int] = context.Value("q", 0)
        with ProcessPoolExecutor(workers, context, _begin_worker, (done,)) as pool:
            jobs = [pool.submit(_train_in_worker, spec, folder) for spec in missing]
            while jobs:
                sleep(0.3)
                bar.update(done.value - bar.n)
                for job in [job for job in jobs if job.done()]:
                    job.result()
                    jobs.remove(job)
            bar.update(done.value - bar.n)


def load_losses(spec: RunSpec, folder: Path) -> Tensor:
    """Losses of a finished run before each step, (last, networks)."""
    store = Store(folder)
    chunks = [store.load_tensors(spec.file(i))["losses"] for i in range(spec.chunks)]
    return torch.cat(chunks)


def load_weights(spec: RunSpec, folder: Path) -> Tensor:
    """Kept weights of a finished run: (networks, last - keep_from + 1, n), float64."""
    store = Store(folder)
    chunks = [store.load_tensors(spec.file(i))["weights"] for i in range(spec.chunks)]
    return torch.cat(chunks).transpose(0, 1).contiguous()


def _finished(spec: RunSpec, store: Store) -> bool:
    return store.has(spec.file(spec.chunks - 1))


_done: Any = None  # steps done by all workers together


def _begin_worker(done: Any) -> None:
    global _done  # noqa: PLW0603  # the only way into a pool's worker
    _done = done
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed command leaves no worker behind, which would go on training for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _count(steps: int) -> None:
    with _done.get_lock():
        _done.value += steps


def _train_in_worker(spec: RunSpec, folder: Path) -> None:
    _train(spec, folder, _count)


def _train(spec: RunSpec, folder: Path, count: Callable[[int], object]) -> None:
    """All chunks that are missing, beginning where the last one ended."""
    store = Store(folder)
    problem = Oscillator(points=spec.points)
    solvers = StackedSolvers(problem, spec.width)
    begun = 0
    while store.has(spec.file(begun)):
        begun += 1
    count(min(begun * spec.chunk, spec.last))
    if begun:
        state = store.load_tensors(spec.file(begun - 1))["state"]
        weights = state["weights"]
        optimizer = OPTIMIZERS[spec.optimizer]([weights], spec.rate)
        optimizer.load_state_dict(state["optimizer"])
    else:
        weights = initial_weights(problem, spec.seeds, spec.width)
        optimizer = OPTIMIZERS[spec.optimizer]([weights], spec.rate)
    for chunk in range(begun, spec.chunks):
        first = chunk * spec.chunk
        losses, kept = _advance(spec, solvers, weights, optimizer, chunk, count)
        content = {
            "losses": losses,
            "weights": kept,
            "state": {"weights": weights, "optimizer": optimizer.state_dict()},
            "first": first,
        }
        store.save_tensors(spec.file(chunk), content)


def _advance(
    spec: RunSpec,
    solvers: StackedSolvers,
    weights: Tensor,
    optimizer: torch.optim.Optimizer,
    chunk: int,
    count: Callable[[int], object],
) -> tuple[Tensor, Tensor]:
    """One chunk of steps: losses before each (steps, networks), and the weights kept."""
    first = chunk * spec.chunk
    steps = min(spec.chunk, spec.last - first)
    times = _points(spec, solvers.problem, chunk, steps) if spec.noise else None
    losses = torch.empty(steps, spec.networks, dtype=torch.float64)
    kept = [weights.clone()] if first == spec.keep_from == 0 else []
    for i in range(steps):
        losses[i], weights.grad = solvers.gradients(weights, None if times is None else times[i])
        optimizer.step()
        if first + i + 1 >= spec.keep_from:
            kept.append(weights.clone())
        if (i + 1) % 250 == 0 or i + 1 == steps:
            count((i % 250) + 1)
    return losses, torch.stack(kept) if kept else weights.new_empty(0, *weights.shape)


def _points(spec: RunSpec, problem: Oscillator, chunk: int, steps: int) -> Tensor:
    """Each network's own noise, the same however many are trained: (steps, networks, points)."""
    return torch.stack(
        [
            perturbed(problem, spec.noise, torch.Generator().manual_seed(1000 * i + chunk), steps)
            for i in spec.seeds
        ],
        dim=1,
    )
