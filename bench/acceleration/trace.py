# SPDX-License-Identifier: BSD-3-Clause
"""One cell of the study: all methods on one experiment, one learning rate, one seed, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import nn

from methods import CONTROLS, PEERS, Koopman, Method, Plain
from tasks import Experiment


@dataclass
class Trace:
    """What a run scored on its way.

    Attributes:
        cost: gradient evaluations, at each score.
        seconds: of training, scores not included.
        scores: training loss on a fixed set, of which the method sees nothing in minibatch tasks.
        jumps: steps at which it left the optimizer's path.
        outcome: how good the result is on what it was not trained for.
    """

    cost: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    jumps: list[int] = field(default_factory=list)
    outcome: float = 0.0

    def first_below(self, score: float) -> tuple[float, float] | None:
        """Gradient evaluations and seconds until the score was first this low; None if never."""
        for cost, seconds, reached in zip(self.cost, self.seconds, self.scores, strict=True):
            if reached <= score:
                return cost, seconds
        return None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


class _Run:
    """A method, its clock and its trace."""

    def __init__(self, method: Method, budget: float) -> None:
        self.method = method
        self.budget = budget
        self.clock = 0.0
        self.trace = Trace()
        self._score()

    @property
    def done(self) -> bool:
        return self.method.cost >= self.budget

    def advance(self, cost: float) -> None:
        """Train until the method's cost is this much."""
        begin = perf_counter()
        while self.method.cost < min(cost, self.budget):
            self.method.advance()
        self.clock += perf_counter() - begin
        self._score()

    def finish(self) -> Trace:
        self.trace.jumps = self.method.jumped
        self.trace.outcome = self.method.task.outcome(self.method.scored())
        return self.trace

    def _score(self) -> None:
        score = self.method.task.score(self.method.scored())
        self.trace.cost.append(self.method.cost)
        self.trace.seconds.append(self.clock)
        self.trace.scores.append(score)


def race(
    experiment: Experiment, rate: float, seed: int, steps: int, names: list[str] | None = None
) -> dict[str, Trace]:
    """Train every method from the same weights on the same batches, for the same gradients.

    They take turns, and each round begins with another one, so that whatever slows the machine for
    a moment slows all.
    """
    task = experiment.task(seed, steps)

    def make_optimizer(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        return experiment.optimizer(parameters, lr=rate)

    wanted = [
        (name, kind)
        for name, kind in PEERS.items()
        if (names is None or name in names) and (experiment.full_batch or not kind.full_batch_only)
    ]
    makers: dict[str, Callable[[], Method]] = {
        name: partial(kind, task, seed, make_optimizer) for name, kind in wanted
    }
    runs = {name: _Run(make(), steps) for name, make in makers.items()}
    controls = {}
    if "koopman" in runs:
        leader = runs["koopman"].method
        for name, control in CONTROLS.items():
            if names is None or name in names:
                controls[name] = _Run(control(task, seed, make_optimizer, leader), steps)
    every = max(1, steps // 100)
    order = list(runs.values())
    for cost in range(every, steps + every, every):
        for run in order:
            run.advance(cost)
        order = order[1:] + order[:1]
        # A control follows where the Koopman run, ahead of it by less than a round, has jumped.
        for run in controls.values():
            run.advance(cost)
    return {name: run.finish() for name, run in {**runs, **controls}.items()}


def alone(experiment: Experiment, rate: float, seed: int, steps: int) -> float:
    """The least score of the optimizer alone at this rate."""
    return min(race(experiment, rate, seed, steps, ["plain"])["plain"].scores)


__all__ = ["Koopman", "Plain", "Trace", "alone", "race"]
