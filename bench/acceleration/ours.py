# SPDX-License-Identifier: BSD-3-Clause
"""Ways to train: with Koopman jumps, by luck alone, and the controls that follow such a run."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from methods import MakeOptimizer, Method, Plain
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import koopfast
from koopfast.controller import FORWARD
from koopfast.demo.tasks import Task


class Koopman(Method):
    """The optimizer with a KoopmanTrainer as it comes."""

    overrides: Mapping[str, Any] = {}

    def __init__(self, task: Task, seed: int, make_optimizer: MakeOptimizer) -> None:
        super().__init__(task, seed, make_optimizer)
        self.trainer = koopfast.KoopmanTrainer(self.model, self.optimizer, **self.overrides)
        self.parts: list[float] = []  # share of each step that was gone

    def advance(self) -> None:
        # Since the last step the other runs of the race had their turns.
        self.trainer._clock.resume()
        super().advance()

    def after_step(self) -> None:
        counters = self.trainer.history.counters
        probes = counters.probe_evaluations
        self.parts.append(self.trainer.step_share)
        record = self.trainer.after_step(probe=lambda: self.task.probe(self.model))
        self.cost += FORWARD * (counters.probe_evaluations - probes)
        if record is not None and record.accepted:
            self.jumped.append(self.steps)

    def scored(self) -> nn.Module:
        with self.trainer.averaged():
            return copy.deepcopy(self.model)


class Chance(Plain):
    """The optimizer alone, each weight moved once by about a ten-thousandth of itself."""

    at = 12  # steps, where a Koopman run may jump first

    def after_step(self) -> None:
        if self.steps == self.at:
            generator = torch.Generator().manual_seed(self.at)
            with torch.no_grad():
                for p in self.model.parameters():
                    noise = torch.randn(p.shape, dtype=p.dtype, generator=generator)
                    p.mul_(1 + 1e-4 * noise)


class Control(Method):
    """Follows the moments at which the Koopman run of the same seed jumped."""

    def __init__(
        self, task: Task, seed: int, make_optimizer: MakeOptimizer, leader: Method
    ) -> None:
        super().__init__(task, seed, make_optimizer)
        self.leader = leader

    def after_step(self) -> None:
        if self.steps in self.leader.jumped:
            self.jumped.append(self.steps)
            self.instead()

    def instead(self) -> None:
        raise NotImplementedError


class LastWeights(Control):
    """The Koopman run itself, whose last weights are scored whether their mean is better or not."""

    def advance(self) -> None:
        self.cost, self.steps, self.jumped = self.leader.cost, self.leader.steps, self.leader.jumped

    def scored(self) -> nn.Module:
        return self.leader.model


class ResetAlone(Control):
    """Forgets the optimizer's state where the Koopman run jumps, and does not jump."""

    def instead(self) -> None:
        self.optimizer.state.clear()


class AverageAlone(Control):
    """Goes to the mean of the window where the Koopman run jumps."""

    def __init__(
        self, task: Task, seed: int, make_optimizer: MakeOptimizer, leader: Method
    ) -> None:
        super().__init__(task, seed, make_optimizer, leader)
        self.path: deque[Tensor] = deque(maxlen=32)

    def after_step(self) -> None:
        if self.steps % 4 == 0:
            self.path.append(parameters_to_vector(self.model.parameters()).detach().clone())
        super().after_step()

    def instead(self) -> None:
        vector_to_parameters(torch.stack(list(self.path)).mean(dim=0), self.model.parameters())
        self.path.clear()


class ShortenedAlone(Control):
    """Shortens the steps that the Koopman run shortens, by as much, and does not jump."""

    def advance(self) -> None:
        assert isinstance(self.leader, Koopman)
        part = self.leader.parts[self.steps] if self.steps < len(self.leader.parts) else 1.0
        if part == 1:
            super().advance()
            return
        weights = [p.detach().clone() for p in self.model.parameters()]
        super().advance()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.model.parameters()), weights, 1 - part)

    def instead(self) -> None:
        pass


OURS: dict[str, type[Method]] = {"plain": Plain, "koopman": Koopman, "chance alone": Chance}
CONTROLS: dict[str, type[Control]] = {
    "last weights": LastWeights,
    "reset alone": ResetAlone,
    "average alone": AverageAlone,
    "shortened alone": ShortenedAlone,
}
