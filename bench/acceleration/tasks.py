# SPDX-License-Identifier: BSD-3-Clause
"""What is trained: an experiment is a task, an optimizer and the learning rates it is tried at."""

from __future__ import annotations

import math
import pydoc_data.topics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from koopfast.data import Mnist, mnist
from koopfast.demo.tasks import DigitsTask, FullBatchTask, OscillatorTask, Task, seeded

Optimizers = Callable[..., torch.optim.Optimizer]
Taylor = tuple[Tensor, Tensor, Tensor]  # a value and its first and second derivative


@dataclass(frozen=True)
class Experiment:
    """A row of the table.

    Attributes:
        name: of the row, task and optimizer.
        task: makes the task for a seed and a number of optimizer steps.
        optimizer: makes the optimizer of parameters and a learning rate.
        default_rate: torch's own, or where torch has none the one in common use.
        rates: the sweep of the optimizer alone; it holds the default rate.
        steps: its budget of gradient evaluations.
        every: steps between two scores.
        full_batch: whether the loss is the same function at every step.
        floor: the speed-up asked for at the tuned rate.
    """

    name: str
    task: Callable[[int, int], Task]
    optimizer: Optimizers
    default_rate: float
    rates: tuple[float, ...]
    steps: int
    every: int
    full_batch: bool
    floor: float


class PoissonTask(FullBatchTask):
    """-u'' = f on [0, 1] with u(0) = u(1) = 0, by a network that sees the residual only.

    u(x) = x (1 - x) N(x), so the boundary holds exactly; f is that of two sine waves. Derivatives
    are carried forward through the layers beside the values.
    """

    name = "poisson"
    title = "Poisson equation"
    description = "A physics-informed network of two hidden layers solves -u'' = f on [0, 1]."
    score_label = "mean squared residual"
    outcome_label = "root mean squared error of u"

    def __init__(self, steps: int, points: int = 64, width: int = 16) -> None:
        self.steps = steps
        self.width = width
        self.x = torch.linspace(0, 1, points, dtype=torch.float64)[:, None]
        waves = [torch.sin(k * math.pi * self.x) for k in (1, 4)]
        self.solution = waves[0] + 0.2 * waves[1]
        self.force = math.pi**2 * (waves[0] + 16 * 0.2 * waves[1])

    def build(self, seed: int) -> nn.Module:
        with seeded(seed):
            w = self.width
            layers = nn.Sequential(nn.Linear(1, w), nn.Linear(w, w), nn.Linear(w, 1))
            return layers.double()

    def loss(self, model: nn.Module, step: int) -> Tensor:
        curvature = self._solve(model)[1]
        return (curvature + self.force).square().mean()

    def outcome(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float((self._solve(model)[0] - self.solution).square().mean().sqrt())

    def show_outcome(self, outcome: float) -> str:
        return f"{outcome:.2g}"

    def _solve(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """u and u''."""
        assert isinstance(model, nn.Sequential)
        x = self.x
        here: Taylor = (x, torch.ones_like(x), torch.zeros_like(x))
        *hidden, last = model
        for layer in hidden:
            here = _tanh(_linear(layer, here))
        value, slope, curvature = _linear(last, here)
        frame, frame_slope = x * (1 - x), 1 - 2 * x
        return frame * value, frame * curvature + 2 * frame_slope * slope - 2 * value


def _linear(layer: nn.Module, at: Taylor) -> Taylor:
    assert isinstance(layer, nn.Linear)
    return layer(at[0]), at[1] @ layer.weight.T, at[2] @ layer.weight.T


def _tanh(at: Taylor) -> Taylor:
    value = torch.tanh(at[0])
    slope = 1 - value**2
    return value, slope * at[1], slope * at[2] - 2 * value * slope * at[1] ** 2


class LogisticTask(DigitsTask):
    """Multinomial logistic regression on digits."""

    name = "logistic"
    title = "Logistic regression"

    def build(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Linear(784, 10))


class ConvolutionTask(DigitsTask):
    """A small network after LeNet-5 (LeCun et al. 1998) on digits."""

    name = "lenet"
    title = "LeNet-like classifier"

    def build(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(
                nn.Unflatten(1, (1, 28, 28)),
                nn.Conv2d(1, 6, 5, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(6, 16, 5),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(400, 84),
                nn.ReLU(),
                nn.Linear(84, 10),
            )


class CharacterTransformer(nn.Module):
    """Next-character model: (batch, length) integers to (batch, length, symbols) logits."""

    def __init__(self, symbols: int, length: int, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                4,
                4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, symbols)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, symbols: Tensor) -> Tensor:
        hidden = self.embedding(symbols) + self.position
        for layer in self.layers:
            hidden = layer(hidden, src_mask=self.mask, is_causal=True)
        logits: Tensor = self.readout(self.norm(hidden))
        return logits


@cache
def _corpus() -> tuple[Tensor, int]:
    """The reference texts that come with Python (`help("topics")`) as integers, and how many
    symbols there are."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    symbols = {symbol: i for i, symbol in enumerate(sorted(set(text)))}
    return torch.tensor([symbols[symbol] for symbol in text]), len(symbols)


class TextTask(Task):
    """Predict the next character of Python's own reference texts."""

    name = "transformer"
    title = "Character transformer"
    description = "A small causal transformer reads the texts that Python's help() shows."
    score_label = "cross-entropy"
    outcome_label = "accuracy on held-out text"

    def __init__(self, steps: int, seed: int, batch: int = 16, length: int = 48) -> None:
        self.steps = steps
        self.length = length
        text, self.symbols = _corpus()
        held_out = len(text) // 10
        self.text, self._test = text[:-held_out], text[-held_out:]
        generator = torch.Generator().manual_seed(seed)
        shape = (steps, batch)
        self.starts = torch.randint(len(self.text) - length - 1, shape, generator=generator)
        fixed = torch.Generator().manual_seed(1)
        probed, scored, tested = (
            torch.randint(len(part) - length - 1, (count,), generator=fixed)
            for part, count in ((self.text, batch), (self.text, 96), (self._test, 96))
        )
        self._probed, self._scored, self._tested = probed, scored, tested

    def build(self, seed: int) -> nn.Module:
        with seeded(seed):
            return CharacterTransformer(self.symbols, self.length)

    def loss(self, model: nn.Module, step: int) -> Tensor:
        return self._loss_at(model, self.starts[step % len(self.starts)])

    def probe(self, model: nn.Module) -> Tensor:
        return self._loss_at(model, self._probed)

    def score(self, model: nn.Module) -> float:
        with torch.no_grad():
            return self._loss_at(model, self._scored).item()

    def outcome(self, model: nn.Module) -> float:
        rows = self._rows(self._test, self._tested)
        with torch.no_grad():
            guess = model(rows[:, :-1]).argmax(dim=-1)
        return float((guess == rows[:, 1:]).double().mean())

    def show_outcome(self, outcome: float) -> str:
        return f"{100 * outcome:.1f} %"

    def _rows(self, text: Tensor, starts: Tensor) -> Tensor:
        return text[starts[:, None] + torch.arange(self.length + 1)]

    def _loss_at(self, model: nn.Module, starts: Tensor) -> Tensor:
        rows = self._rows(self.text, starts)
        return nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


@cache
def _digits(count: int) -> Mnist:
    digits = mnist()
    return replace(
        digits,
        train_images=digits.train_images[:count],
        train_labels=digits.train_labels[:count],
    )


def _on_digits(
    kind: type[DigitsTask], count: int, batch: int, seed: int, steps: int, *, scored: int = 1500
) -> Task:
    """Judged and scored on all digits where the batch is all of them.

    Otherwise judged on a fixed part as large as a batch, so that a probe costs a third of a
    gradient, and scored on others.
    """
    part = batch
    return kind(
        _digits(count),
        steps=steps,
        width=64,
        batch=batch,
        probe=part,
        scored=count if batch == count else scored,
        seed=seed,
    )


SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
_MOMENTUM = partial(SGD, momentum=0.9)
_SGD_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
_ADAM_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def _row(
    name: str,
    task: Callable[[int, int], Task],
    optimizer: Optimizers,
    rates: tuple[float, ...],
    steps: int,
    floor: float,
    *,
    default: float | None = None,
    full_batch: bool = True,
) -> Experiment:
    rate = default if default is not None else (0.01 if rates[0] >= 0.01 else 1e-3)
    every = max(1, steps // 100)
    return Experiment(name, task, optimizer, rate, rates, steps, every, full_batch, floor)


def _solver(seed: int, steps: int) -> Task:
    return OscillatorTask(steps)


def _poisson(seed: int, steps: int) -> Task:
    return PoissonTask(steps)


def _text(seed: int, steps: int) -> Task:
    return TextTask(steps, seed)


def experiments() -> dict[str, Experiment]:
    """All rows, by name; the floors are those the project set itself.

    Budgets are such that a seed of each row takes minutes, so that five of all take hours.
    """
    logistic = partial(_on_digits, LogisticTask, 2000, 2000)
    whole = partial(_on_digits, DigitsTask, 2000, 2000)
    mini = partial(_on_digits, DigitsTask, 60000, 128)
    conv = partial(_on_digits, ConvolutionTask, 60000, 64, scored=500)
    some = partial(_row, full_batch=False)
    rows = [
        _row("solver, gradient descent", _solver, SGD, (0.001, 0.003, 0.01, 0.03), 6000, 10),
        _row("solver, Adam", _solver, Adam, _ADAM_RATES, 6000, 3),
        _row("Poisson, Adam", _poisson, Adam, _ADAM_RATES, 6000, 1),
        _row("logistic, gradient descent", logistic, SGD, _SGD_RATES, 600, 1),
        _row("logistic, momentum", logistic, _MOMENTUM, _SGD_RATES, 600, 1),
        _row("logistic, Adam", logistic, Adam, _ADAM_RATES, 600, 1),
        _row("MLP, gradient descent", whole, SGD, _SGD_RATES, 600, 6),
        _row("MLP, momentum", whole, _MOMENTUM, _SGD_RATES, 600, 1),
        _row("MLP, Adam", whole, Adam, _ADAM_RATES, 600, 1.5),
        some("MLP minibatch, SGD", mini, SGD, _SGD_RATES, 3000, 1.3),
        some("MLP minibatch, Adam", mini, Adam, _ADAM_RATES, 3000, 1.3),
        some(
            "MLP minibatch, Adadelta",
            mini,
            torch.optim.Adadelta,
            (0.1, 0.3, 1.0, 3.0),
            3000,
            1.3,
            default=1.0,
        ),
        some("LeNet minibatch, SGD", conv, SGD, _SGD_RATES, 680, 1.3),
        some("LeNet minibatch, AdamW", conv, AdamW, _ADAM_RATES, 680, 1.3),
        some("transformer minibatch, AdamW", _text, AdamW, _ADAM_RATES, 510, 1.3),
    ]
    return {row.name: row for row in rows}
