# SPDX-License-Identifier: BSD-3-Clause
"""Train twice from the same weights on the same batches: plainly, and with KoopmanTrainer.

The two runs take turns in short chunks of steps and swap who goes first, so whatever slows the
machine for a moment slows both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from koopfast.config import KoopmanConfig
from koopfast.demo.tasks import Task
from koopfast.history import History
from koopfast.operator import KoopmanOperator
from koopfast.trainer import KoopmanTrainer

__all__ = ["OPTIMIZERS", "Checkpoint", "RaceResult", "Run", "race"]

# torch's own defaults, learning rates included: nothing here is tuned for or against a jump.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    "Adadelta": torch.optim.Adadelta,
    "Adagrad": torch.optim.Adagrad,
}


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        steps: optimizer steps after which `scores` were taken: 0, the end of every chunk, and
            each kept jump.
        scores: the task's score there; with a trainer, at the weights that its `averaged` shows.
        seconds: wall time spent on training up to there, scores not included.
        gradients: gradient evaluations in all.
        probes: evaluations of the probe in all (forward passes, no gradient of the weights).
        outcome: the task's outcome of the trained network.
        model: the trained network.
    """

    steps: list[int]
    scores: list[float]
    seconds: list[float]
    gradients: int
    probes: int
    outcome: float
    model: nn.Module

    @property
    def score(self) -> float:
        """The score at the end."""
        return self.scores[-1]

    def steps_to(self, score: float) -> int | None:
        """Optimizer steps until the score was this low for the first time; None if never."""
        return next((k for k, s in zip(self.steps, self.scores, strict=True) if s <= score), None)


@dataclass(frozen=True)
class Checkpoint:
    """A plain run in the middle: what :mod:`koopfast.demo.stretch` goes on from."""

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]


@dataclass(frozen=True)
class RaceResult:
    """Both runs of one optimizer on one task."""

    optimizer: str
    plain: Run
    koopman: Run
    history: History
    config: KoopmanConfig
    operator: KoopmanOperator | None
    middle: Checkpoint


class _Contestant:
    """A network in training, its clock and its scores."""

    def __init__(
        self, task: Task, optimizer: str, seed: int, config: KoopmanConfig | None = None
    ) -> None:
        self.task = task
        self.model = task.build(seed)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.trainer = (
            None if config is None else KoopmanTrainer(self.model, self.optimizer, config)
        )
        self.step = 0
        self.clock = 0.0
        self.steps, self.scores, self.seconds = [0], [task.score(self.model)], [0.0]

    def advance(self, count: int) -> None:
        task, model, optimizer, trainer = self.task, self.model, self.optimizer, self.trainer
        end = self.step + count
        begin = perf_counter()
        while self.step < end:
            optimizer.zero_grad()
            task.loss(model, self.step).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self.step += 1
            jump = trainer.after_step(probe=self._probe) if trainer is not None else None
            if jump is not None and jump.accepted:
                # So that the curve shows the jump itself, not where the chunk happened to end.
                self.clock += perf_counter() - begin
                self._take_score()
                begin = perf_counter()
        self.clock += perf_counter() - begin
        if self.steps[-1] < end:
            self._take_score()

    def checkpoint(self) -> Checkpoint:
        state = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
        return Checkpoint(self.step, *state)

    def result(self) -> Run:
        probes = 0
        if self.trainer is not None:
            probes = self.trainer.history.counters.probe_evaluations
        with self._shown():
            return Run(
                steps=self.steps,
                scores=self.scores,
                seconds=self.seconds,
                gradients=self.step,
                probes=probes,
                outcome=self.task.outcome(self.model),
                model=copy.deepcopy(self.model),
            )

    def _shown(self) -> AbstractContextManager[object]:
        """The weights that somebody would evaluate are in the model."""
        return nullcontext() if self.trainer is None else self.trainer.averaged()

    def _take_score(self) -> None:
        self.steps.append(self.step)
        self.seconds.append(self.clock)
        with self._shown():
            self.scores.append(self.task.score(self.model))

    def _probe(self) -> torch.Tensor:
        return self.task.probe(self.model)


def race(
    task: Task,
    optimizer: str,
    *,
    seed: int = 0,
    chunk: int = 40,
    config: KoopmanConfig | None = None,
) -> RaceResult:
    """Train both ways for `task.steps` steps, in turns of `chunk` steps, under a progress bar.

    `config` is that of the trainer; None means its defaults.
    """
    plain = _Contestant(task, optimizer, seed)
    koopman = _Contestant(task, optimizer, seed, KoopmanConfig() if config is None else config)
    trainer = koopman.trainer
    assert trainer is not None
    middle = plain.checkpoint()
    order = [plain, koopman]
    label = f"{task.name:<10} {optimizer:<8}"
    with tqdm(total=task.steps, desc=label, unit="step", mininterval=0.25) as bar:
        while plain.step < task.steps:
            count = min(chunk, task.steps - plain.step)
            for contestant in order:
                contestant.advance(count)
            order.reverse()
            if middle.step == 0 and 2 * plain.step >= task.steps:
                middle = plain.checkpoint()
            scores = f"plain {plain.scores[-1]:.3g}, koopman {koopman.scores[-1]:.3g}"
            bar.set_postfix_str(scores, refresh=False)
            bar.update(count)
    return RaceResult(
        optimizer=optimizer,
        plain=plain.result(),
        koopman=koopman.result(),
        history=trainer.history,
        config=trainer.config,
        operator=trainer.operator,
        middle=middle,
    )
