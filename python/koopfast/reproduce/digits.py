# SPDX-License-Identifier: BSD-3-Clause
"""Experiment 2: a classifier of MNIST digits in minibatches, after Dogra & Redman, section 4."""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from koopfast.data import Mnist
from koopfast.demo.tasks import DigitsTask
from koopfast.parameters import ParameterVector, trainable_parameters
from koopfast.partition import Partition
from koopfast.reproduce.methods import Method, forecast
from koopfast.reproduce.store import Store

__all__ = ["METHODS", "PARTITIONS", "DigitsSettings", "digits_experiment"]

PARTITIONS = ("weight", "quasi_node", "node", "layer", "network")
_PAPER = {"observables": "state", "rank": None, "unstable": "keep"}
METHODS = (
    Method("paper", "states of every step, least squares (the paper's)", _PAPER),
    Method("state", "the same of every 20th step", _PAPER, 20, average=False),
    Method(
        "increments", "increments of every 20th step, rank by hindcast", {"rank": "auto"}, 20,
        average=False,
    ),
    Method("averaged", "increments of means of 20 steps, rank by hindcast", {"rank": "auto"}, 20),
    Method("auto", "koopfast's auto on means of 20 steps", {"auto": True}, 20),
    # Nothing is chosen here, which is what a block of a few weights can afford.
    Method(
        "fixed", "increments of means of 30 steps, self-adjoint, rank 2",
        {"rank": 2, "symmetric": True}, 30,
    ),
)  # fmt: skip
# With a snapshot a step a block has as many directions as there are steps, and its algebra is the
# cube of that: hours for the larger blocks. These are the ones that the paper's pieces allow.
_EVERY_STEP = ("weight", "quasi_node")
_SMOOTH = 20  # steps of the means that true training is also shown by


@dataclass(frozen=True)
class DigitsSettings:
    """The sizes of the experiment: 784 -> width rectified linear units -> 10, Adadelta at its
    default rate of 1.

    Attributes:
        seeds: runs, of seeds 0, 1, ....
        epochs: passes before the window; the window is one pass more.
        horizons: steps after the window at which a prediction is looked at.
        headline: the one of the headline figures.
        piece: most weights of a quasi-node.
        evaluated: training digits on which loss and accuracy are taken (all test digits are).
        repeats: turns of the timing.
    """

    seeds: int = 5
    epochs: int = 4
    width: int = 100
    batch: int = 100
    horizons: tuple[int, ...] = (20, 50, 100, 200, 300, 600)
    headline: int = 300
    piece: int = 50
    evaluated: int = 10_000
    repeats: int = 3


def digits_experiment(
    digits: Mnist, settings: DigitsSettings, folder: Path, *, refit: bool = False
) -> dict[str, Any]:
    """Train, fit and measure each seed; a seed that is already in the folder is not done again."""
    store = Store(folder)
    sizes = dataclasses.replace(settings, seeds=0)  # a seed more changes nothing for the others
    digest = hashlib.sha256(repr((sizes, METHODS)).encode()).hexdigest()[:8]
    runs = []
    for seed in tqdm(range(settings.seeds), desc="digits", unit="seed"):
        name = f"digits/{digest}-seed{seed}.json"
        if refit or not store.has(name):
            store.save_json(name, _Seed(digits, settings, seed).measure())
        runs.append(store.load_json(name))
    return {
        "settings": dataclasses.asdict(settings),
        "methods": {method.name: method.says for method in METHODS},
        "runs": runs,
    }


class _Seed:
    """One training run, its window and its stretch."""

    def __init__(self, digits: Mnist, settings: DigitsSettings, seed: int) -> None:
        self.settings = settings
        self.window = len(digits.train_labels) // settings.batch
        self.first = settings.epochs * self.window
        steps = self.first + self.window + max(settings.horizons)
        self.task = DigitsTask(
            digits, steps=steps, width=settings.width, batch=settings.batch, seed=seed
        )
        self.seed = seed
        self.model = self.task.build(seed)
        self.optimizer = torch.optim.Adadelta(self.model.parameters())
        self.vector = ParameterVector(trainable_parameters(self.model))
        self.step = 0

    def measure(self) -> dict[str, Any]:
        settings = self.settings
        self._train(self.first)
        window = torch.empty(self.window, self.vector.n)
        for row in window:
            self._train(1)
            self.vector.read_into(row)
        now = window[-1].clone()
        start = {k: v.clone() for k, v in self.model.state_dict().items()}
        state = _copied(self.optimizer.state_dict())
        self._restore(start, state)
        true, means = self._stretch()
        backprop = [self._timed(start, state) for _ in range(settings.repeats)]
        predictions = self._predict(window, torch.stack(true), backprop, start, state)
        return {
            "seed": self.seed,
            "growth": [float((w - now).norm()) for w in true],
            "now": self._score(now),
            "mean": self._score(window[-_SMOOTH:].mean(dim=0)),
            "true": [self._score(w) for w in true],
            "true_mean": [self._score(w) for w in means],
            "predictions": predictions,
            "backprop": statistics.median(backprop),
        }

    def _stretch(self) -> tuple[list[Tensor], list[Tensor]]:
        """True weights at the horizons, and their means over the steps just before."""
        recent: deque[Tensor] = deque(maxlen=_SMOOTH)
        true, means = [], []
        for step in range(1, max(self.settings.horizons) + 1):
            self._train(1)
            recent.append(self.vector.read())
            if step in self.settings.horizons:
                true.append(recent[-1])
                means.append(torch.stack(list(recent)).mean(dim=0))
        return true, means

    def _timed(self, start: dict[str, Tensor], state: dict[str, Any]) -> float:
        """Seconds of the headline's steps by backpropagation."""
        self._restore(start, state)
        begin = perf_counter()
        self._train(self.settings.headline)
        return perf_counter() - begin

    def _predict(
        self,
        window: Tensor,
        true: Tensor,
        backprop: list[float],
        start: dict[str, Tensor],
        state: dict[str, Any],
    ) -> dict[str, Any]:
        """Errors, scores and times of every partition and method, timed in turns with training."""
        settings = self.settings
        found: dict[str, Any] = {}
        for kind in PARTITIONS:
            size = settings.piece if kind == "quasi_node" else None
            partition = Partition.of(kind, self.model, size=size)
            found[kind] = {}
            for method in METHODS:
                if method.stride == 1 and kind not in _EVERY_STEP:
                    continue
                made = forecast(window, partition, method, settings.horizons)
                seconds = [made.seconds]
                if made.seconds < 1:  # what takes longer than training itself is timed once
                    seconds = [
                        forecast(window, partition, method, [settings.headline]).seconds
                        for _ in range(settings.repeats)
                    ]
                found[kind][method.name] = {
                    "error": (made.weights - true).norm(dim=1).tolist(),
                    "scores": [self._score(w) for w in made.weights],
                    "seconds": statistics.median(seconds),
                }
            backprop.append(self._timed(start, state))
        return found

    def _train(self, count: int) -> None:
        for step in range(self.step, self.step + count):
            self.optimizer.zero_grad()
            self.task.loss(self.model, step).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self.step += count

    def _restore(self, start: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.model.load_state_dict(start)
        self.optimizer.load_state_dict(_copied(state))
        self.step = self.first + self.window

    def _score(self, weights: Tensor) -> dict[str, float]:
        """Loss and accuracy on training and test digits."""
        task, count = self.task, self.settings.evaluated
        model = task.build(0)
        nn.utils.vector_to_parameters(weights.clone(), model.parameters())
        parts = {
            "train": (task.images[:count], task.labels[:count]),
            "test": (task.test_images, task.test_labels),
        }
        found = {}
        with torch.no_grad():
            for part, (images, labels) in parts.items():
                outputs = model(images)
                found[f"{part}_loss"] = float(nn.functional.cross_entropy(outputs, labels))
                found[f"{part}_accuracy"] = float((outputs.argmax(1) == labels).double().mean())
        return found


def _copied(value: Any) -> Any:
    """Optimizer state whose tensors are nobody else's."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
