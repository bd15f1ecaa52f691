# SPDX-License-Identifier: BSD-3-Clause
"""Fits of one, few and many blocks, against the method of snapshots written in torch."""

from __future__ import annotations

import pytest
import torch

from interleaved import run
from koopfast import KoopmanOperator
from trajectories import decaying, equal_blocks

RANK = 10


def fit_by_torch(snapshots, size, rank=RANK):
    """Increments DMD of equal blocks by batched linear algebra in double: operators only."""
    m, n = snapshots.shape
    states = snapshots.double().reshape(m, n // size, size).transpose(0, 1)
    d = states[:, 1:] - states[:, :-1]
    f, f_next = d[:, :-1], d[:, 1:]
    values, v = torch.linalg.eigh(f @ f.mT)
    keep = min(rank, size, m - 2)
    v, sigma = v[..., -keep:], values[:, None, -keep:].clamp(min=0).sqrt()
    return v.mT @ (f @ f_next.mT) @ v / (sigma.mT * sigma)


@pytest.mark.benchmark(group="operator_fit")
@pytest.mark.parametrize(
    ("blocks", "size"), [(1, 1_000_000), (100, 10_000), (1000, 100), (2000, 20)]
)
def test_fit(benchmark, blocks, size):
    snapshots = decaying(32, blocks * size)
    partition = equal_blocks(blocks * size, size)

    def ours():
        return KoopmanOperator.fit(snapshots, partition, rank=RANK)

    assert ours().ok
    run(
        benchmark,
        ours,
        baseline=lambda: fit_by_torch(snapshots, size),
        blocks=blocks,
        size=size,
        bytes=snapshots.nbytes,
    )
