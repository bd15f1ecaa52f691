# SPDX-License-Identifier: BSD-3-Clause
"""Smooth snapshots for the benchmarks: a few decaying modes on weights a thousand times larger."""

from __future__ import annotations

import torch
from torch import Tensor

from koopfast import Partition


def decaying(m: int, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    modes = 1e-3 * torch.randn(6, n, generator=generator)
    rates = torch.tensor([0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
    t = torch.arange(m, dtype=torch.float32)[:, None]
    weights = torch.randn(n, generator=generator)
    return (weights + torch.exp(-t * rates) @ modes).to(dtype)


def equal_blocks(n: int, size: int) -> Partition:
    starts = torch.arange(0, n, size)
    lengths = torch.full_like(starts, size).clamp(max=n - starts)
    return Partition(torch.arange(len(starts) + 1), starts, lengths, n)
