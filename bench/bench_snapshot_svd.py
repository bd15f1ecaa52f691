# SPDX-License-Identifier: BSD-3-Clause
"""The Gram matrix of differences in double, against torch's way to the same digits."""

from __future__ import annotations

import pytest
import torch

from interleaved import run
from koopfast import _blocks, _ops
from trajectories import decaying, equal_blocks


@pytest.mark.benchmark(group="snapshot_gram")
@pytest.mark.parametrize("n", [10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("m", [32])
def test_gram_of_one_block(benchmark, m, n):
    snapshots = decaying(m, n)
    table, blocks = _blocks.BlockTable(equal_blocks(n, n)), torch.zeros(1, dtype=torch.int64)

    def ours():
        return _ops.snapshot_gram(snapshots, table, blocks, rows="increments")[0]

    def by_torch():
        wide = snapshots.double()
        differences = wide.diff(dim=0, append=wide[-1:])
        return differences @ differences.T

    expected = by_torch()
    assert float((ours() - expected).abs().max() / expected.max()) < 1e-12
    run(benchmark, ours, baseline=by_torch, m=m, n=n, bytes=snapshots.nbytes)


@pytest.mark.benchmark(group="snapshot_svd by method")
@pytest.mark.parametrize("method", ["gram", "qr"])
def test_methods(benchmark, method):
    n = 200_000
    snapshots = decaying(32, n)
    table, blocks = _blocks.BlockTable(equal_blocks(n, n)), torch.zeros(1, dtype=torch.int64)

    def ours():
        return _ops.snapshot_svd(snapshots, table, blocks, rows="increments", method=method)

    exact = torch.linalg.svdvals(snapshots.double().diff(dim=0, append=snapshots[-1:].double()))
    assert float((ours()[0][0] - exact).abs().max() / exact[0]) < 1e-7
    run(benchmark, ours, m=32, n=n, bytes=snapshots.nbytes)
