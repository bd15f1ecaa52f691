# SPDX-License-Identifier: BSD-3-Clause
"""Predictions: the combine pass over the snapshots, for one horizon and for several."""

from __future__ import annotations

import pytest
import torch

from interleaved import run
from koopfast import KoopmanOperator
from trajectories import decaying, equal_blocks


@pytest.mark.benchmark(group="operator_power, one block")
@pytest.mark.parametrize("horizons", [1, 4, 12])
def test_horizons_share_one_pass(benchmark, horizons):
    n = 1_000_000
    snapshots = decaying(32, n)
    operator = KoopmanOperator.fit(snapshots, rank=10)
    wanted = [2.0**i for i in range(horizons)]
    out = torch.empty(horizons, n)
    coefficients = torch.randn(horizons, 32)

    def by_torch():
        # One product in single precision: the same bytes, fewer digits.
        return torch.matmul(coefficients, snapshots, out=out)

    run(
        benchmark,
        lambda: operator.predict(wanted, out=out),
        baseline=by_torch,
        horizons=horizons,
        bytes=snapshots.nbytes + out.nbytes,
    )


@pytest.mark.benchmark(group="operator_power, far horizons")
@pytest.mark.parametrize("horizon", [1, 1000, 10**6])
def test_cost_does_not_grow_with_the_horizon(benchmark, horizon):
    n = 100_000
    operator = KoopmanOperator.fit(decaying(32, n), equal_blocks(n, 100), rank=10)
    out = torch.empty(1, n)
    run(benchmark, lambda: operator.predict(horizon, out=out), horizon=horizon)
