# SPDX-License-Identifier: BSD-3-Clause
"""How fit and prediction grow with weights n, snapshots m and the number of blocks.

One group a study: pytest-benchmark's table (or its JSON, --benchmark-json) is the report.
"""

from __future__ import annotations

import pytest

from interleaved import run
from koopfast import KoopmanOperator
from trajectories import decaying, equal_blocks


def fit_and_predict(snapshots, partition, rank=8):
    return KoopmanOperator.fit(snapshots, partition, rank=rank).predict(1000)


@pytest.mark.benchmark(group="scaling in n (m = 32, one block)")
@pytest.mark.parametrize("n", [30_000, 100_000, 300_000, 1_000_000])
def test_weights(benchmark, n):
    snapshots, partition = decaying(32, n), equal_blocks(n, n)
    run(benchmark, lambda: fit_and_predict(snapshots, partition), n=n, bytes=snapshots.nbytes)


@pytest.mark.benchmark(group="scaling in m (n = 200,000, one block)")
@pytest.mark.parametrize("m", [8, 16, 32, 64, 128])
def test_snapshots(benchmark, m):
    snapshots, partition = decaying(m, 200_000), equal_blocks(200_000, 200_000)
    run(benchmark, lambda: fit_and_predict(snapshots, partition), m=m, bytes=snapshots.nbytes)


@pytest.mark.benchmark(group="scaling in blocks (n = 100,000, m = 32)")
@pytest.mark.parametrize("size", [100_000, 10_000, 1000, 100, 10])
def test_blocks(benchmark, size):
    snapshots, partition = decaying(32, 100_000), equal_blocks(100_000, size)
    run(benchmark, lambda: fit_and_predict(snapshots, partition), blocks=partition.n_blocks)
