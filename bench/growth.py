# SPDX-License-Identifier: BSD-3-Clause
"""How a cost grows: a study of one size, its exponent, and what theory says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from interleaved import Work, in_turns
from memory import peak_bytes

_RESAMPLES = 2000


@dataclass(frozen=True)
class Study:
    """A cost at several sizes; medians and quartiles over rounds that took turns.

    Attributes:
        title: what is measured, at which fixed sizes.
        size: what varies, as the axis is labelled.
        cost: the unit of the cost, "seconds" or "bytes".
        x: the sizes.
        median, low, high: the cost at each, with its quartiles.
        exponent: p of cost ~ size^p, by least squares through the logarithms of the medians.
        interval: where 95% of the exponents lie when the rounds are drawn again (bootstrap).
        theory: the least and largest exponent theory allows.
        tolerance: how far outside of them the measured one may lie.
        why: where theory has them from.
    """

    title: str
    size: str
    cost: str
    x: list[float]
    median: list[float]
    low: list[float]
    high: list[float]
    exponent: float
    interval: tuple[float, float]
    theory: tuple[float, float]
    tolerance: float
    why: str

    def check(self) -> None:
        least, most = self.theory
        assert least - self.tolerance <= self.exponent <= most + self.tolerance, (
            f"{self.title}: {self.cost} grow as {self.size}^{self.exponent:.2f} "
            f"(95% {self.interval[0]:.2f} to {self.interval[1]:.2f}), theory says "
            f"{least:g} to {most:g}, give or take {self.tolerance:g}"
        )


def exponent(x: Sequence[float], medians: np.ndarray) -> np.ndarray:
    """Slopes of log cost over log size; medians (..., len(x))."""
    t = np.log(np.asarray(x, dtype=float))
    t = t - t.mean()
    slopes: np.ndarray = np.log(medians) @ t / (t @ t)
    return slopes


def interval(x: Sequence[float], samples: np.ndarray) -> tuple[float, float]:
    """95% of the exponents of resampled rounds; samples (rounds, len(x))."""
    draw = np.random.default_rng(0).integers(len(samples), size=(_RESAMPLES, len(samples)))
    slopes = exponent(x, np.median(samples[draw], axis=1))
    low, high = np.quantile(slopes, [0.025, 0.975])
    return float(low), float(high)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def study(
    benchmark: Any,
    work_at: Callable[[Any], Work],
    *,
    x: Sequence[float],
    title: str,
    size: str,
    theory: tuple[float, float],
    tolerance: float,
    why: str,
    cost: str = "seconds",
    rounds: int = 9,
    steps: int = 1,
) -> Study:
    """Measure `work_at(size)` at every size, note the study in the benchmark's extra_info.

    Work that makes several `steps` counts with its share a step.

    pytest-benchmark itself times the largest size. Check the result with :meth:`Study.check`.

    On one thread: handing work to a second has a cost of its own, which grows with nothing and on
    a busy machine hides what does.
    """
    works = [work_at(value) for value in x]
    with _one_thread():
        if cost == "bytes":
            samples = np.array([[peak_bytes(work) for work in works] for _ in range(rounds)], float)
        else:
            samples = in_turns(works, rounds=rounds)
        benchmark.pedantic(works[-1], rounds=3, iterations=1)
    samples = samples / steps
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75], axis=0)
    done = Study(
        title=title,
        size=size,
        cost=cost,
        x=[float(value) for value in x],
        median=median.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        exponent=float(exponent(x, median)),
        interval=interval(x, samples),
        theory=theory,
        tolerance=tolerance,
        why=why,
    )
    benchmark.extra_info["study"] = asdict(done)
    return done
