# SPDX-License-Identifier: BSD-3-Clause
"""What the demo trains: the oscillator's Hamiltonian network and a classifier of MNIST digits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from koopfast.data import HamiltonianNetwork, Mnist, Oscillator

__all__ = ["DigitsTask", "FullBatchTask", "OscillatorTask", "Task", "seeded"]

# Mean and standard deviation of the training pixels as fractions of 255.
_PIXEL_MEAN, _PIXEL_SPREAD = 0.1307, 0.3081


class Task(ABC):
    """A network, its loss at every step, and how well it does.

    The loss at step k depends on the weights and on k alone, so that two runs see the same batches
    in the same order.

    Attributes:
        name: short, for keys and titles.
        title, description: for the report.
        steps: optimizer steps of a run.
        stretch: fields of KoopmanConfig for the window of :mod:`koopfast.demo.stretch`, where they
            differ from those of the runs.
        score_label, outcome_label: what `score` and `outcome` are.
    """

    name: str
    title: str
    description: str
    steps: int
    stretch: Mapping[str, Any] = {}
    score_label: str
    outcome_label: str

    @abstractmethod
    def build(self, seed: int) -> nn.Module:
        """The network with the initial weights of this seed."""

    @abstractmethod
    def loss(self, model: nn.Module, step: int) -> Tensor:
        """The scalar that is differentiated at this step."""

    @abstractmethod
    def probe(self, model: nn.Module) -> Tensor:
        """The scalar by which jumps are judged; training data only."""

    @abstractmethod
    def score(self, model: nn.Module) -> float:
        """The loss that the curves show; never timed, never seen by the trainer."""

    @abstractmethod
    def outcome(self, model: nn.Module) -> float:
        """How good the trained network is, on what it was not trained for."""

    @abstractmethod
    def show_outcome(self, outcome: float) -> str:
        """The outcome as text."""


class FullBatchTask(Task):
    """The loss does not depend on the step: it also judges the jumps and scores the runs."""

    def probe(self, model: nn.Module) -> Tensor:
        return self.loss(model, 0)

    def score(self, model: nn.Module) -> float:
        with torch.no_grad():
            return self.loss(model, 0).item()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's random numbers from this seed on; afterwards those that would have come."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class OscillatorTask(FullBatchTask):
    """Solve Hamilton's equations at 200 times; every step sees all of them."""

    name = "oscillator"
    title = "Differential-equation solver"
    score_label = "mean squared residual"
    outcome_label = "mean error of x, p"

    def __init__(self, steps: int = 8000, problem: Oscillator | None = None) -> None:
        self.steps = steps
        self.problem = problem if problem is not None else Oscillator()
        self.reference = self.problem.solve()
        self.description = (
            "A network of two hidden layers with ten sine units each solves the nonlinear "
            "oscillator x′ = p, p′ = −(x + λx³) with x(0) = 1.3, p(0) = 1 and λ = 1 on [0, 4π]. "
            "Its output is x₀ + (1 − e⁻ᵗ) N(t), so the initial state holds exactly, and its loss "
            "is the residual of the equations at 200 times: no solution is shown to it."
        )

    def build(self, seed: int) -> nn.Module:
        with seeded(seed):
            return HamiltonianNetwork(self.problem)

    def loss(self, model: nn.Module, step: int) -> Tensor:
        assert isinstance(model, HamiltonianNetwork)
        return model.loss()

    def outcome(self, model: nn.Module) -> float:
        """Mean distance of x and of p from the Runge-Kutta solution."""
        return float((self.solution(model) - self.reference).abs().mean())

    def show_outcome(self, outcome: float) -> str:
        return f"{outcome:.3f}"

    def solution(self, model: nn.Module) -> Tensor:
        """What the network says about x and p at the 200 times: (200, 2)."""
        with torch.no_grad():
            states: Tensor = model(self.problem.times())
        return states


class DigitsTask(Task):
    """Classify MNIST digits with one hidden layer, in minibatches."""

    name = "mnist"
    title = "MNIST classifier"
    score_label = "cross-entropy"
    outcome_label = "test accuracy"
    # Minibatches make every step noisy, so a snapshot is the mean over 20 of them, and a window of
    # 30 snapshots one pass through the 60,000 digits.
    stretch: Mapping[str, Any] = {"average": True, "stride": 20, "window": 30}

    def __init__(
        self,
        digits: Mnist,
        *,
        steps: int = 3300,
        width: int = 100,
        batch: int = 100,
        probe: int = 1000,
        scored: int = 5000,
        seed: int = 0,
        stretch: Mapping[str, Any] | None = None,
    ) -> None:
        self.steps = steps
        self.stretch = self.stretch if stretch is None else stretch
        self.width = width
        self.images = _normalized(digits.train_images)
        self.labels = digits.train_labels
        self.test_images = _normalized(digits.test_images)
        self.test_labels = digits.test_labels
        self.batches = _batches(len(self.labels), batch, steps, seed)
        # The order of the file is random enough: the first digits are judged by, the last scored.
        self._probe = slice(0, probe)
        self._scored = slice(-scored, None)
        self.description = (
            f"A network with one hidden layer of {width} rectified linear units learns the "
            f"{len(self.labels):,} training digits in minibatches of {batch}. Jumps are judged on "
            f"{min(probe, len(self.labels)):,} training digits; the curves show the loss on "
            f"{min(scored, len(self.labels)):,} others of them; the accuracy is that on the "
            f"{len(self.test_labels):,} test digits."
        )

    def build(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Linear(784, self.width), nn.ReLU(), nn.Linear(self.width, 10))

    def loss(self, model: nn.Module, step: int) -> Tensor:
        chosen = self.batches[step % len(self.batches)]
        return nn.functional.cross_entropy(model(self.images[chosen]), self.labels[chosen])

    def probe(self, model: nn.Module) -> Tensor:
        return self._loss_on(model, self._probe)

    def score(self, model: nn.Module) -> float:
        with torch.no_grad():
            return self._loss_on(model, self._scored).item()

    def outcome(self, model: nn.Module) -> float:
        with torch.no_grad():
            guess = model(self.test_images).argmax(dim=1)
        return float((guess == self.test_labels).double().mean())

    def show_outcome(self, outcome: float) -> str:
        return f"{100 * outcome:.2f} %"

    def _loss_on(self, model: nn.Module, part: slice) -> Tensor:
        return nn.functional.cross_entropy(model(self.images[part]), self.labels[part])


def _normalized(images: Tensor) -> Tensor:
    return (images.flatten(1).float() / 255 - _PIXEL_MEAN) / _PIXEL_SPREAD


def _batches(count: int, batch: int, steps: int, seed: int) -> Tensor:
    """Indices (steps, batch): every pass goes through all digits in a new order."""
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, count)
    a_pass = count // batch
    passes = -(-steps // a_pass)
    orders = [
        torch.randperm(count, generator=generator)[: a_pass * batch].view(a_pass, batch)
        for _ in range(passes)
    ]
    return torch.cat(orders)[:steps]
