# SPDX-License-Identifier: BSD-3-Clause
"""Experiment 1: operators of the differential-equation solver, after Dogra & Redman, section 4."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from koopfast.data import HamiltonianNetwork, Oscillator
from koopfast.partition import Partition
from koopfast.reproduce.methods import Method, forecast
from koopfast.reproduce.stacked import StackedSolvers
from koopfast.reproduce.store import Store
from koopfast.reproduce.trajectories import (
    OPTIMIZERS,
    RunSpec,
    load_losses,
    load_weights,
    train_all,
)

__all__ = ["METHODS", "PARTITIONS", "SolverSettings", "choose_rate", "solver_experiment"]

PARTITIONS = ("weight", "node", "layer", "network")
_PAPER = {"observables": "state", "rank": None, "unstable": "keep", "method": "qr"}
_GROWING = {"auto": True, "unstable": "slow"}
METHODS = (
    Method("paper", "states, least squares by pseudo-inverse, every step (the paper's)", _PAPER),
    Method("increments", "increments of every step, rank by hindcast", {"rank": "auto"}),
    Method("averaged", "increments of means of 20 steps, rank by hindcast", {"rank": "auto"}, 20),
    Method("bounded", "koopfast's auto on means of 20 steps, no mode grows", {"auto": True}, 20),
    # The speed of these trainings falls and rises again: what may not grow cannot follow.
    Method("auto", "the same, modes may grow slowly", _GROWING, 20),
)
_SENSITIVITY = tuple((stride, part) for part in (1, 2) for stride in (10, 20, 50))

# Half decades. Adadelta's default is 1, Adagrad's 0.01, Adam's 0.001.
_RATES = {
    "Adadelta": (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
    "Adam": (0.03, 0.01, 0.003, 0.001),
    "Adagrad": (0.1, 0.03, 0.01, 0.003),
}


@dataclass(frozen=True)
class SolverSettings:
    """The sizes of the experiment; the defaults are the paper's, but for 5 networks of 25.

    Attributes:
        networks: of each optimizer; ``shown`` of them, those of the lowest loss at
            ``fitted_until``, make the paper's selection (it showed 11 of 25).
        sweep: networks with which the learning rates are compared, and whose predictions had been
            seen when the settings of the operators were chosen. As many are trained together.
        noisy: networks of the variant with noise, at most ``networks``.
        keep_from, last: weights are kept from the one step to the other.
        fitted_until: the operator sees the steps keep_from + 1 to this one.
        horizon: steps of the headline figure.
        rates: the grid for each optimizer.
        noise: of the noisy variant, in spacings of the points.
        repeats: turns of the timing.
    """

    networks: int = 5
    sweep: int = 5
    noisy: int = 5
    keep_from: int = 35_000
    last: int = 50_000
    fitted_until: int = 45_000
    horizon: int = 2500
    rates: tuple[tuple[str, tuple[float, ...]], ...] = tuple(_RATES.items())
    noise: float = 0.03 * 4 * math.pi
    repeats: int = 3
    chunk: int = 2500
    points: int = 200
    width: int = 10

    @property
    def shown(self) -> int:
        return math.ceil(self.networks * 11 / 25)

    @property
    def horizons(self) -> list[int]:
        """Steps after the window at which a prediction is looked at, the last one included."""
        beyond = self.last - self.fitted_until
        parts = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
        return [t for t in (round(part * self.horizon) for part in parts) if 0 < t <= beyond]

    def specs(
        self, optimizer: str, rate: float, networks: int, noise: float = 0.0
    ) -> list[RunSpec]:
        """The trainings of this many networks, ``sweep`` in each but perhaps the last."""
        return [
            RunSpec(
                optimizer, rate, min(self.sweep, networks - first), self.keep_from, self.last,
                noise, self.chunk, self.width, self.points, first,
            )
            for first in range(0, networks, self.sweep)
        ]  # fmt: skip


def choose_rate(rates: Sequence[dict[str, Any]]) -> float:
    """The rate with the lowest median loss at the end, of those at which training is smooth.

    Smooth: in the stretch that is kept the loss falls at 19 of 20 steps, in the median over the
    networks. Where it is smooth nowhere, all of them are asked. No prediction enters.
    """
    smooth = [rate for rate in rates if rate["falling"] >= 0.95] or list(rates)
    best: float = min(smooth, key=lambda rate: rate["loss"])["rate"]
    return best


def solver_experiment(
    settings: SolverSettings, folder: Path, *, workers: int = 1, refit: bool = False
) -> dict[str, Any]:
    """Sweep the rates, train, fit and measure; what is already in the folder is not done again."""
    runs = folder / "runs"
    grid = dict(settings.rates)
    sweep = [s for o, rs in grid.items() for r in rs for s in settings.specs(o, r, settings.sweep)]
    train_all(sweep, runs, workers=workers, label="learning rates")
    rates = {
        o: [_rate(spec, runs) for spec in sweep if spec.optimizer == o]
        for o in grid
    }  # fmt: skip
    chosen = {o: choose_rate(entries) for o, entries in rates.items()}
    for sample in sweep:  # gigabytes that nobody will look at again are not kept
        if sample.rate != chosen[sample.optimizer]:
            _drop_weights(sample, runs)
    groups = [
        settings.specs(o, rate, count, noise)
        for noise, count in ((0.0, settings.networks), (settings.noise, settings.noisy))
        for o, rate in chosen.items()
    ]
    # As many networks of each optimizer as there is time for, should the run end early.
    wanted = sorted((spec for group in groups for spec in group), key=lambda spec: spec.first)
    train_all(wanted, runs, workers=workers, label="networks")
    store = Store(folder)
    for spec in tqdm(wanted, desc="operators", unit="run"):
        name = f"fits/{spec.name}.json"
        if refit or not store.has(name):
            store.save_json(name, _measure(settings, spec, runs))
    return {
        "settings": {**dataclasses.asdict(settings), "shown": settings.shown},
        "methods": {m.name: m.says for m in METHODS},
        "rates": rates,
        "chosen": chosen,
        "runs": [
            _joined([store.load_json(f"fits/{spec.name}.json") for spec in group])
            for group in groups
        ],
    }  # fmt: skip


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The networks of all parts as one run; what is not a list is the first part's."""
    whole = dict(parts[0])
    for key, value in whole.items():
        others = [part[key] for part in parts]
        if key in _BY_NETWORK:
            whole[key] = [entry for other in others for entry in other]
        elif isinstance(value, dict) and key != "times":
            whole[key] = _joined(others)
        elif key == "sensitivity":
            whole[key] = [_joined(entries) for entries in zip(*others, strict=True)]
    return whole


_BY_NETWORK = ("growth", "loss_now", "loss_true", "error", "loss")


def _rate(spec: RunSpec, runs: Path) -> dict[str, Any]:
    """How well one rate trains: medians over the networks."""
    losses = load_losses(spec, runs)
    late = losses[spec.keep_from :]
    return {
        "rate": spec.rate,
        "loss": float(late[-1].median()),
        "worst": float(late.max(dim=0).values.median()),
        "falling": float((late[1:] < late[:-1]).double().mean(dim=0).median()),
    }


def _drop_weights(spec: RunSpec, runs: Path) -> None:
    store = Store(runs)
    for chunk in range(spec.chunks):
        content = store.load_tensors(spec.file(chunk))
        if content["weights"].numel():
            content["weights"] = content["weights"][:0].clone()
            store.save_tensors(spec.file(chunk), content)


def _measure(settings: SolverSettings, spec: RunSpec, runs: Path) -> dict[str, Any]:
    """Everything about one optimizer: errors, losses and times of every partition and method."""
    weights = load_weights(spec, runs)
    solvers = StackedSolvers(Oscillator(points=spec.points), spec.width)
    model = HamiltonianNetwork(solvers.problem, width=spec.width)
    partitions = {kind: Partition.of(kind, model) for kind in PARTITIONS}
    last = settings.fitted_until - settings.keep_from
    horizons = settings.horizons
    now, windows = weights[:, last], weights[:, 1 : last + 1]
    true = weights[:, [last + t for t in horizons]]  # (networks, horizons, n)
    predictions: dict[str, Any] = {kind: {} for kind in PARTITIONS}
    for kind, partition in partitions.items():
        for method in METHODS:
            made = [forecast(window, partition, method, horizons) for window in windows]
            predicted = torch.stack([f.weights for f in made])
            predictions[kind][method.name] = {
                "error": (predicted - true).norm(dim=2).tolist(),
                "loss": _losses(solvers, predicted),
                "choices": _choices(made[0].operator),
            }
    return {
        "optimizer": spec.optimizer,
        "rate": spec.rate,
        "noise": spec.noise,
        "horizons": horizons,
        "growth": (true - now.unsqueeze(1)).norm(dim=2).tolist(),
        "loss_now": _losses(solvers, now.unsqueeze(1)),
        "loss_true": _losses(solvers, true),
        "predictions": predictions,
        "sensitivity": _sensitivity(settings, windows, true, partitions["network"]),
        "times": None
        if spec.first
        else _times(settings, spec, solvers, weights[:, last], windows[0], partitions),
    }


def _losses(solvers: StackedSolvers, weights: Tensor) -> list[list[float]]:
    """Losses of weights (networks, horizons, n) at the unperturbed points."""
    flat = weights.flatten(0, 1).nan_to_num(math.inf)
    losses: list[list[float]] = solvers.losses(flat).view(weights.shape[:2]).tolist()
    return losses


def _choices(operator: Any) -> list[dict[str, Any]]:
    """What was chosen for the first blocks."""
    if not hasattr(operator, "chosen"):
        return []
    return [dataclasses.asdict(operator.chosen(b)) for b in range(min(operator.n_blocks, 24))]


def _sensitivity(
    settings: SolverSettings, windows: Tensor, true: Tensor, partition: Partition
) -> list[dict[str, Any]]:
    """Error of auto at the headline's horizon for other strides and the window's recent half."""
    at = settings.horizons.index(settings.horizon)
    entries = []
    for stride, part in _SENSITIVITY:
        length = windows.shape[1] // part
        method = dataclasses.replace(METHODS[-1], stride=stride)
        error = [
            float((forecast(w[-length:], partition, method, [settings.horizon]).weights[0] - t)
                  .norm())
            for w, t in zip(windows, true[:, at], strict=True)
        ]  # fmt: skip
        entries.append({"stride": stride, "window": length, "error": error})
    return entries


def _times(
    settings: SolverSettings,
    spec: RunSpec,
    solvers: StackedSolvers,
    now: Tensor,
    window: Tensor,
    partitions: dict[str, Partition],
) -> dict[str, Any]:
    """Seconds of the headline's stretch: one network by backpropagation, a stack of them (of which
    each network's share is given), and by operator, fit included. In turns; medians."""
    backprop: list[float] = []
    stacked: list[float] = []
    operator: dict[str, dict[str, list[float]]] = {
        kind: {method.name: [] for method in METHODS} for kind in partitions
    }
    for turn in range(settings.repeats + 1):
        seconds = [_backprop(spec, solvers, now[0], settings.horizon)]
        seconds.append(_stacked(spec, solvers, now, settings.horizon // 10) * 10 / len(now))
        if turn:  # the first one warms up
            backprop.append(seconds[0])
            stacked.append(seconds[1])
        for kind, partition in partitions.items():
            for method in METHODS:
                made = forecast(window, partition, method, [settings.horizon])
                if turn:
                    operator[kind][method.name].append(made.seconds)
    return {
        "backprop": statistics.median(backprop),
        "stacked_share": statistics.median(stacked),
        "operator": {
            kind: {name: statistics.median(values) for name, values in entries.items()}
            for kind, entries in operator.items()
        },
    }


def _backprop(spec: RunSpec, solvers: StackedSolvers, weights: Tensor, steps: int) -> float:
    """Seconds of a plain training loop of one network, as a user of torch writes it."""
    model = HamiltonianNetwork(solvers.problem, width=spec.width)
    torch.nn.utils.vector_to_parameters(weights.clone(), model.parameters())
    optimizer = OPTIMIZERS[spec.optimizer](list(model.parameters()), spec.rate)
    begin = perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return perf_counter() - begin


def _stacked(spec: RunSpec, solvers: StackedSolvers, weights: Tensor, steps: int) -> float:
    """Seconds of as many steps of all networks at once, with gradients written out."""
    stack = weights.clone()
    optimizer = OPTIMIZERS[spec.optimizer]([stack], spec.rate)
    begin = perf_counter()
    for _ in range(steps):
        stack.grad = solvers.gradients(stack)[1]
        optimizer.step()
    return perf_counter() - begin
