# SPDX-License-Identifier: BSD-3-Clause
"""accelerate() on classic iterations, with the step evaluations counted outside of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import koopfast
from koopfast import ConfigError, MinimizeCallback, Partition, accelerate

RNG = np.random.default_rng
TOLERANCE = 1e-8


class Counted:
    """A step that counts its calls."""

    def __init__(self, step: Callable[[Any], Any], start: Any) -> None:
        self._step, self.start, self.calls = step, start, 0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        return self._step(x)

    def residual(self, x: Any) -> float:
        return float(np.linalg.norm(self._step(x) - x))

    def plain(self) -> int:
        """Steps that the iteration alone takes to the tolerance."""
        x, calls = self.start, 0
        while True:
            after = self._step(x)
            calls += 1
            if np.linalg.norm(after - x) <= TOLERANCE:
                return calls
            x = after


def jacobi(n: int = 200) -> Counted:
    """For a diagonally dominant tridiagonal system."""
    b = RNG(0).normal(size=n)
    matrix = 2.02 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    return Counted(lambda x: x + (b - matrix @ x) / 2.02, np.zeros(n))


def value_iteration() -> Counted:
    """Of a discounted Markov decision process: 60 states, 4 actions; the maximum has kinks."""
    rng = RNG(0)
    moves = rng.dirichlet(np.full(60, 0.1), size=(4, 60))
    rewards = rng.normal(size=(4, 60))
    return Counted(lambda v: (rewards + 0.99 * moves @ v).max(0), np.zeros(60))


def em() -> Counted:
    """Expectation maximisation for two overlapping normal distributions: logit and two means."""
    rng = RNG(0)
    data = np.concatenate([rng.normal(-1.0, 1.0, 400), rng.normal(1.2, 1.0, 600)])

    def step(theta: Any) -> Any:
        logit, *means = theta
        share = 1 / (1 + math.exp(-logit))
        each = [
            w * np.exp(-((data - m) ** 2) / 2)
            for w, m in zip((share, 1 - share), means, strict=True)
        ]
        p = np.stack(each) / sum(each)
        share = p[0].mean()
        return np.array([math.log(share / (1 - share)), *(p @ data / p.sum(1))])

    return Counted(step, np.array([0.0, -0.2, 0.3]))


PROBLEMS = {"jacobi": (jacobi, 5), "value iteration": (value_iteration, 20), "em": (em, 3)}


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_takes_a_fraction_of_the_plain_iteration_and_counts_every_evaluation(name: str) -> None:
    make, times = PROBLEMS[name]
    problem = make()
    result = accelerate(problem, problem.start, tolerance=TOLERANCE)
    assert result.converged
    assert result.evaluations == problem.calls
    assert result.iterations == len(result.residuals) <= result.evaluations
    assert problem.residual(result.x) <= TOLERANCE
    assert times * problem.calls <= problem.plain()
    assert result.jumps_accepted > 0


@pytest.mark.filterwarnings("ignore::scipy.linalg.LinAlgWarning")
@pytest.mark.parametrize("name", PROBLEMS)
def test_it_is_of_the_class_of_anderson_mixing(name: str) -> None:
    """SciPy's, undamped and with as long a memory; which is ahead depends on the problem."""
    optimize = pytest.importorskip("scipy.optimize")
    make, _ = PROBLEMS[name]
    ours, theirs = make(), make()
    accelerate(ours, ours.start, tolerance=TOLERANCE, window=12)
    optimize.anderson(
        lambda x: theirs(x) - x, theirs.start, M=12, alpha=1.0, line_search=None, f_tol=TOLERANCE,
        tol_norm=np.linalg.norm, maxiter=5000,
    )  # fmt: skip
    assert ours.calls < 2 * theirs.calls


def test_refused_predictions_leave_the_plain_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, and what they cost is counted."""
    problem, x = jacobi(), np.zeros(200)
    monkeypatch.setattr(
        koopfast.KoopmanOperator, "predict", lambda self, h: torch.full((len(h), self.n), 1e6)
    )
    result = accelerate(problem, problem.start, max_evaluations=200)
    for _ in range(result.iterations):
        x = problem._step(x)
    assert result.jumps_accepted == 0
    assert result.evaluations == problem.calls == 200
    assert result.iterations + 3 * result.jumps_refused in range(200, 203)
    assert np.array_equal(result.x, x)


def test_tensors_of_any_shape_and_a_partition() -> None:
    a = torch.tensor([[0.9, 0.1], [0.0, 0.99]])
    start = torch.zeros(2, 3)
    blocks = Partition.from_segments([[(i, 1), (i + 3, 1)] for i in range(3)], 6)
    result = accelerate(
        lambda x: a @ x + 1.0, start, tolerance=1e-4, partition=blocks, rank=2, unstable="keep"
    )
    assert result.converged
    assert result.x.shape == (2, 3)
    assert result.x.dtype == torch.float32
    torch.testing.assert_close(result.x[1], torch.full((3,), 100.0), rtol=1e-3, atol=0)
    assert not start.any()


def test_what_diverges_ends_and_says_so() -> None:
    result = accelerate(lambda x: x * x + 1, torch.tensor([2.0]), max_evaluations=50, window=30)
    assert not result.converged
    assert result.evaluations < 50
    assert not math.isfinite(result.residuals[-1])
    still = accelerate(lambda x: x + 1, np.zeros(3), max_evaluations=40)
    assert (still.converged, still.evaluations) == (False, 40)


def test_an_error_of_the_step_is_passed_on() -> None:
    def step(x: Any) -> Any:
        raise LookupError("its own")

    with pytest.raises(LookupError, match="its own"):
        accelerate(step, np.zeros(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x0": [0.0, 1.0]}, "x0: expected a numpy array or a torch tensor, got list"),
        ({"x0": np.zeros(3, dtype=int)}, "x0: expected float32 or float64 numbers, got .*int64"),
        ({"x0": np.zeros(0)}, "x0: expected float32 or float64 numbers"),
        ({"step": lambda x: x[:1]}, r"step: expected \(3,\) .*float64 as x0, got \(1,\)"),
        ({"step": lambda x: None}, "step: expected what x0 is, got NoneType"),
        ({"window": 2}, "window: expected an integer of 3 or more iterates, got 2"),
        ({"tolerance": -1.0}, "tolerance: expected a number of 0 or more"),
        ({"max_evaluations": 0}, "max_evaluations: expected an integer of 1 or more"),
        ({"rank": 0}, "rank: expected an integer of 1 or more"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        accelerate(**{"step": lambda x: x / 2, "x0": np.ones(3), **arguments})


def test_scipy_minimize_starts_again_from_better_predictions() -> None:
    """SciPy's conjugate gradients in a narrow valley; calls at predictions are counted apart."""
    optimize = pytest.importorskip("scipy.optimize")
    scale = np.logspace(0, -4, 40)
    calls = 0

    def fun(x: Any) -> float:
        nonlocal calls
        calls += 1
        return 0.5 * float(scale @ x**2)

    def minimize(x: Any) -> Any:
        return optimize.minimize(
            fun, x, jac=lambda x: scale * x, method="CG", callback=callback, options={"gtol": 1e-7}
        )

    callback = MinimizeCallback(fun, window=12)
    helped = callback.run(minimize, np.ones(40))
    assert helped.success
    assert calls > helped.nfev + callback.evaluations
    assert callback.jumps_accepted > 0
    assert helped.fun < 1e-8
    assert callback.evaluations >= 2 * callback.jumps_accepted


def test_the_names_are_public() -> None:
    assert {"Acceleration", "MinimizeCallback", "accelerate"} <= set(koopfast.__all__)
