# SPDX-License-Identifier: BSD-3-Clause
"""Recording a snapshot, against one copy of as many bytes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from interleaved import run
from koopfast import SnapshotBuffer


@pytest.mark.benchmark(group="record")
@pytest.mark.parametrize("width", [30, 300, 1000])
def test_record(benchmark, width):
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(3)))
    buffer = SnapshotBuffer(model, capacity=64)
    n = sum(p.numel() for p in model.parameters())
    rows, flat, turn = torch.zeros(64, n), torch.randn(n), iter(range(10**9))

    def ours():
        if buffer.full:
            buffer.clear()
        buffer.record()

    run(
        benchmark,
        ours,
        baseline=lambda: rows[next(turn) % 64].copy_(flat),
        n=n,
        bytes=2 * flat.nbytes,
    )
