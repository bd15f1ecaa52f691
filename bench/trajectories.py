# SPDX-License-Identifier: BSD-3-Clause
"""Snapshots for the benchmarks: smooth ones like training's, and exactly linear ones."""

from __future__ import annotations

import torch
from torch import Tensor

from koopfast import Partition


def decaying(m: int, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A few decaying modes on weights a thousand times larger."""
    generator = torch.Generator().manual_seed(0)
    modes = 1e-3 * torch.randn(6, n, generator=generator)
    rates = torch.tensor([0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
    t = torch.arange(m, dtype=torch.float32)[:, None]
    weights = torch.randn(n, generator=generator)
    return (weights + torch.exp(-t * rates) @ modes).to(dtype)


def rotating(m: int, blocks: int, size: int, order: int) -> Tensor:
    """Every block its own x_{t+1} = U x_t of that order, all eigenvalues on the unit circle.

    The motion neither grows nor dies out, so that a prediction far ahead can be compared; the
    angles are spread evenly, so that every formulation of the fit is well conditioned.
    """
    generator = torch.Generator().manual_seed(0)
    angles = torch.pi * (1 + torch.arange(order // 2)) / (order // 2 + 1.5)
    t = torch.arange(m)[:, None] * angles.double()
    waves = [torch.cos(t), torch.sin(t)]
    if order % 2:
        waves.append(torch.ones(m, 1, dtype=torch.float64))
    random = torch.randn(blocks, size, order, generator=generator, dtype=torch.float64)
    modes = torch.linalg.qr(random)[0] * size**0.5
    return (torch.cat(waves, dim=1) @ modes.flatten(0, 1).T).float()


def equal_blocks(n: int, size: int) -> Partition:
    starts = torch.arange(0, n, size)
    lengths = torch.full_like(starts, size).clamp(max=n - starts)
    return Partition(torch.arange(len(starts) + 1), starts, lengths, n)
