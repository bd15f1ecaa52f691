# SPDX-License-Identifier: BSD-3-Clause
"""What the machine can do at best, measured in the same run as what is held against it."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from interleaved import in_turns


@cache
def bandwidth(footprint: int) -> float:
    """Bytes a second of a STREAM-like triad a = b + 3 c over arrays of `footprint` bytes in all.

    The footprint is the work's own: what fits a cache is held against that cache.
    """
    n = max(1, footprint // 12)
    a, b, c = torch.zeros(n), torch.ones(n), torch.ones(n)
    times = in_turns([lambda: torch.add(b, c, alpha=3, out=a)], rounds=9)
    return 12 * n / float(np.quantile(times, 0.25))


@cache
def peak_flops(dtype: torch.dtype = torch.float64) -> float:
    """Floating-point operations a second of a square matrix product on all of torch's threads."""
    size = 1024
    a, b = torch.rand(size, size, dtype=dtype), torch.rand(size, size, dtype=dtype)
    out = torch.empty_like(a)
    times = in_turns([lambda: torch.mm(a, b, out=out)], rounds=9)
    return 2 * size**3 / float(np.quantile(times, 0.25))
