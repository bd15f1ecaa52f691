# SPDX-License-Identifier: BSD-3-Clause
"""One race of the study: some methods on one experiment, one learning rate, one seed, in turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from methods import Method
from ours import Control
from tasks import Experiment
from torch import nn

SCORES = 100  # a run
# Who has not reached the target within the budget may go on for so many budgets in all: otherwise a
# method that is a little slower, or as fast and less lucky, would look like one that never arrives.
_PATIENCE = 1.25
_LAST = 5  # scores whose median is where a run ends: minibatches make a single one jitter


@dataclass
class Trace:
    """What a run scored on its way.

    Attributes:
        cost: gradient evaluations, at each score.
        seconds: of training, scores not included.
        scores: training loss on a fixed set, of which the method sees nothing in minibatch tasks.
        within: how many of the scores lie within the budget; the others came afterwards.
        jumps: steps at which it left the optimizer's path.
        outcome: how good the result is on what it was not trained for, when the budget was spent.
    """

    cost: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    within: int = 0
    jumps: list[int] = field(default_factory=list)
    outcome: float = 0.0

    @property
    def end(self) -> float:
        """The loss when the budget was spent."""
        return statistics.median(self.scores[: self.within][-_LAST:])

    @property
    def time(self) -> float:
        """Seconds until the budget was spent."""
        return self.seconds[self.within - 1]

    def first_below(self, score: float, *, jitters: bool) -> tuple[float, float] | None:
        """Gradient evaluations and seconds until a run was first this low; None if never.

        Where single scores jitter, the median of the last few must be.
        """
        last = _LAST if jitters else 1
        for i, (cost, seconds) in enumerate(zip(self.cost, self.seconds, strict=True), start=1):
            if statistics.median(self.scores[max(0, i - last) : i]) <= score:
                return cost, seconds
        return None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


class _Run:
    """A method, its clock and its trace."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.clock = 0.0
        self.trace = Trace()
        self._score()

    def advance(self, cost: float, most_steps: float = math.inf) -> None:
        """Train until the method's cost is this much, or until it took so many steps."""
        begin = perf_counter()
        while self.method.cost < cost and self.method.steps < most_steps:
            self.method.advance()
        self.clock += perf_counter() - begin
        self._score()

    def spent(self) -> None:
        """The budget is spent."""
        self.trace.within = len(self.trace.scores)
        self.trace.jumps = list(self.method.jumped)
        self.trace.outcome = self.method.task.outcome(self.method.scored())

    def _score(self) -> None:
        score = self.method.task.score(self.method.scored())
        self.trace.cost.append(self.method.cost)
        self.trace.seconds.append(self.clock)
        self.trace.scores.append(score)


def race(
    experiment: Experiment,
    rate: float,
    seed: int,
    steps: int,
    methods: Mapping[str, type[Method]],
    controls: Mapping[str, type[Control]],
) -> dict[str, Trace]:
    """Train by every method from the same weights on the same batches, for the same gradients.

    They take turns, and each round begins with another one, so that whatever slows the machine for
    a moment slows all. ``controls`` follow the method "koopman".
    """
    task = experiment.task(seed, steps)

    def make_optimizer(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        return experiment.optimizer(parameters, lr=rate)

    runs = {
        name: _Run(kind(task, seed, make_optimizer))
        for name, kind in methods.items()
        if experiment.full_batch or not kind.full_batch_only
    }
    leader = runs.get("koopman")
    followers: dict[str, _Run] = {}
    if leader is not None:
        for name, control in controls.items():
            followers[name] = _Run(control(task, seed, make_optimizer, leader.method))
    every = max(1, steps // SCORES)
    order = list(runs.values())
    for cost in range(every, steps + 1, every):
        for run in order:
            run.advance(cost)
        order = order[1:] + order[:1]
        # A control knows only of the jumps that the Koopman run has made, so it stays behind it.
        for run in followers.values():
            run.advance(cost, leader.method.steps if leader is not None else 0)
    everyone = {**runs, **followers}
    for run in everyone.values():
        run.spent()
    if "plain" in runs:
        target, jitters = runs["plain"].trace.end, not experiment.full_batch
        for run in runs.values():
            cost = steps
            while cost < _PATIENCE * steps:
                if run.trace.first_below(target, jitters=jitters) is not None:
                    break
                cost += every
                run.advance(cost)
    return {name: run.trace for name, run in everyone.items()}
