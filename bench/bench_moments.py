# SPDX-License-Identifier: BSD-3-Clause
"""Recording into moments: beside keeping the snapshot, and beside the training step it follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from interleaved import in_turns, run
from koopfast import KoopmanOperator, MomentBuffer, Partition, SnapshotBuffer
from trajectories import equal_blocks

# Snapshots are folded into the moments 32 at a time: a round is a multiple.
TOGETHER = 64


def filled(buffer):
    for _ in range(2 * TOGETHER):
        buffer.record()
    return buffer


def many(work):
    def repeated():
        for _ in range(TOGETHER):
            work()

    return repeated


@pytest.mark.benchmark(group="record into moments")
def test_the_papers_network(benchmark):
    model = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh())
    model.append(nn.Linear(10, 2))
    buffer = filled(MomentBuffer(model, Partition.node(model)))
    kept = SnapshotBuffer(model, 10_000)
    times = in_turns([many(buffer.record), many(kept.record)], rounds=51)
    mine, theirs = 1e6 * np.median(times, axis=0) / TOGETHER
    benchmark.extra_info.update(
        {
            "µs a record": round(float(mine), 1),
            "µs to keep the snapshot": round(float(theirs), 1),
            "bytes after 10,000 records": buffer.nbytes,
        }
    )
    assert np.median(times[:, 0] / times[:, 1]) < 10
    run(benchmark, many(buffer.record), n=buffer.vector.n, blocks=buffer.partition.n_blocks)


@pytest.mark.benchmark(group="record into moments")
def test_a_hundred_thousand_weights_in_blocks_of_20(benchmark):
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU())
    model.append(nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters())
    x, y = torch.randn(128, 256), torch.randint(0, 10, (128,))

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    n = sum(p.numel() for p in model.parameters())
    buffer = filled(MomentBuffer(model, equal_blocks(n, 20)))
    times = in_turns([many(buffer.record), many(step)], rounds=7)
    share = float(np.median(times[:, 0] / times[:, 1]))
    benchmark.extra_info.update(
        {
            "of a training step of 128 samples": round(share, 2),
            "ms a step": round(1e3 * float(np.median(times[:, 1])) / TOGETHER, 3),
            "megabytes": round(buffer.nbytes / 1e6, 1),
        }
    )
    assert share < 0.8
    run(benchmark, many(buffer.record), n=n, blocks=buffer.partition.n_blocks)


@pytest.mark.benchmark(group="fit from moments")
def test_fit_of_the_papers_network(benchmark):
    # 22 nodes of 2 or 11 weights after 10,000 snapshots: the fit no longer sees them.
    snapshots = 0.999 ** torch.arange(10_000.0)[:, None] * torch.randn(152)
    snapshots += 1e-3 * torch.randn(10_000, 152)
    sizes = [2] * 10 + [11] * 12
    ends = np.cumsum(sizes)
    segments = [[(int(e - size), size)] for e, size in zip(ends, sizes, strict=True)]
    partition = Partition.from_segments(segments, 152)
    buffer = MomentBuffer(None, partition)
    for row in snapshots:
        buffer.record(row)

    def ours():
        return buffer.fit(rank=None).predict(2500)

    def whole():
        return KoopmanOperator.fit(snapshots, partition, rank=None).predict(2500)

    torch.testing.assert_close(ours(), whole(), rtol=1e-4, atol=1e-5)
    run(benchmark, ours, baseline=whole, shape=[10_000, 152])
