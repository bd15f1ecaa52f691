# SPDX-License-Identifier: BSD-3-Clause
"""What double accumulation and a bounded spectrum keep, and what others lose on the same arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import peers
from interleaved import run
from koopfast import KoopmanOperator
from trajectories import equal_blocks

M, HORIZON, N = 32, 32, 200_000
RATES = (0.02, 0.1)


def small_motion() -> tuple[Tensor, Tensor]:
    """Float32 snapshots whose motion is a thousandth of their mean, and the true later weights."""
    generator = torch.Generator().manual_seed(0)
    double = {"generator": generator, "dtype": torch.float64}
    weights, modes = torch.randn(N, **double), 1e-3 * torch.randn(len(RATES), N, **double)
    times = torch.tensor([*range(M), M - 1 + HORIZON], dtype=torch.float64)
    rates = torch.tensor(RATES, dtype=torch.float64)
    states = weights + torch.exp(-times[:, None] * rates) @ modes
    return states[:-1].float(), states[-1]


def by_svd(snapshots: Tensor, rank: int) -> Tensor:
    """The textbook's DMD, by an SVD in the snapshots' own precision, (m, n) -> (n,)."""
    f, f_next = snapshots[:-1].T, snapshots[1:].T
    u, sigma, vh = torch.linalg.svd(f, full_matrices=False)
    u, image = u[:, :rank], f_next @ vh[:rank].T / sigma[:rank]
    return image @ (torch.linalg.matrix_power(u.T @ image, HORIZON - 1) @ (u.T @ snapshots[-1]))


def by_gram(snapshots: Tensor, rank: int) -> Tensor:
    """The method of snapshots in the snapshots' own precision, (m, n) -> (n,)."""
    gram = snapshots @ snapshots.T
    values, v = torch.linalg.eigh(gram[:-1, :-1])
    q = v[:, -rank:] / values[-rank:].clamp(min=1e-30).sqrt()
    power = torch.linalg.matrix_power(q.T @ gram[:-1, 1:] @ q, HORIZON - 1)
    return (q @ (power @ (q.T @ gram[:-1, -1]))) @ snapshots[1:]


@pytest.mark.parametrize("observables", ["state", "increments"])
@pytest.mark.benchmark(group="accuracy: motion of a thousandth of the mean, float32 snapshots")
def test_predicted_displacement(benchmark, observables):
    snapshots, truth = small_motion()
    rank = len(RATES)
    own_rank = rank + (observables == "state")  # a state has its mean beside its motion

    def ours():
        fit = KoopmanOperator.fit(snapshots, observables=observables, rank=own_rank)
        return fit.predict(HORIZON)[0]

    exact = by_svd(snapshots.double(), rank + 1)
    moved = (truth - snapshots[-1].double()).norm()

    def error(predicted: Tensor, expected: Tensor = truth) -> float:
        return round(float((predicted.double() - expected).norm() / moved), 6)

    mine = error(ours())
    benchmark.extra_info.update(
        {
            "error of the predicted displacement": {
                "koopfast": mine,
                "SVD in float64": error(exact),
                "SVD in float32": error(by_svd(snapshots, rank + 1)),
                "Gram in float32": error(by_gram(snapshots, rank + 1)),
            },
            "against the SVD in float64": error(ours(), exact),
            "rounding a result to float32, alone": error(exact.float(), exact),
        },
        shape=[M, N],
        horizon=HORIZON,
    )
    # The snapshots' own rounding moves the double SVD by 1.5e-4: no fit can know better. Increments
    # have that rounding twice beside motion only.
    assert mine < 4e-4
    if observables == "state":
        assert error(ours(), exact) < 1.1 * error(exact.float(), exact)
    run(benchmark, ours, bytes=snapshots.nbytes)


@pytest.mark.benchmark(group="accuracy: T = 1000 on noisy blocks")
def test_powers_on_noisy_blocks(benchmark):
    # 200 blocks of 20 weights that decay slowly under noise: least squares takes it for growth.
    blocks, size, horizon = 200, 20, 1000
    generator = torch.Generator().manual_seed(0)
    n = blocks * size
    start, noise = torch.randn(n, generator=generator), torch.randn(M, n, generator=generator)
    snapshots = 0.99 ** torch.arange(M)[:, None] * start + 1e-2 * noise
    partition = equal_blocks(n, size)
    options = {"observables": "state", "rank": None}

    def ours():
        return KoopmanOperator.fit(snapshots, partition, **options).predict(horizon)[0]

    kept = KoopmanOperator.fit(snapshots.double(), partition, unstable="keep", **options)
    largest = {
        "koopfast, as it comes": ours(),
        'koopfast, unstable="keep"': kept.predict(horizon)[0],
        "numpy, F' F^+ to that power": torch.from_numpy(
            np.nan_to_num(peers.by_pinv(snapshots.numpy(), [size] * blocks, horizon), nan=np.inf)
        ),
    }
    growth = {name: float(w.abs().max() / snapshots.abs().max()) for name, w in largest.items()}
    benchmark.extra_info.update(
        {"largest weight predicted, times the largest there was": growth}, shape=[M, n]
    )
    assert growth["koopfast, as it comes"] < 10
    run(benchmark, ours, bytes=snapshots.nbytes)
