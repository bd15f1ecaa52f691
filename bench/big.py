# SPDX-License-Identifier: BSD-3-Clause
"""One fit and prediction at the size of the machine: python bench/big.py [n] [m]

By default 10^8 float32 weights x 32 snapshots, 12.8 GB. Prints time, bytes a second and the peak of
resident memory beyond the snapshots and the prediction: there is no second copy of either.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

import machine
from interleaved import Work
from koopfast import KoopmanOperator
from memory import peak_bytes

HORIZONS = [10, 1000]
TILE = 1 << 20
RATES = torch.tensor([0.01, 0.1, 0.4])


def fill(snapshots: torch.Tensor) -> None:
    """Three decaying modes on weights a thousand times larger, tile by tile."""
    m, n = snapshots.shape
    times = torch.arange(m, dtype=torch.float32)[:, None]
    for first in range(0, n, TILE):
        weights, modes = parts(first, min(TILE, n - first))
        moved = torch.exp(-times * RATES) @ modes
        torch.add(weights, moved, out=snapshots[:, first : first + TILE])


def parts(seed: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    modes = 1e-3 * torch.randn(len(RATES), width, generator=generator)
    return torch.randn(width, generator=generator), modes


def available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def main(n: int = 10**8, m: int = 32) -> None:
    size, out_size = 4 * n * m, 4 * n * len(HORIZONS)
    if available_bytes() < 1.1 * (size + out_size):
        sys.exit(f"big: needs {1.1 * (size + out_size) / 1e9:.1f} GB of free memory")
    snapshots = torch.empty(m, n)
    out = torch.zeros(len(HORIZONS), n)
    fill(snapshots)
    bandwidth = machine.bandwidth(1 << 28)
    print(f"{m} snapshots of {n:,} float32 weights: {size / 1e9:.1f} GB")
    print(f"triad bandwidth {bandwidth / 1e9:.1f} GB/s, {torch.get_num_threads()} threads")
    KoopmanOperator.fit(snapshots[:, :100_000]).predict(HORIZONS)
    fitted: list[KoopmanOperator] = []

    def timed(name: str, work: Work, moved: int) -> None:
        start = time.perf_counter()
        extra = peak_bytes(work)
        seconds = time.perf_counter() - start
        rate = moved / seconds
        share = rate / bandwidth
        print(
            f"{name}: {seconds:.2f} s, {rate / 1e9:.2f} GB/s ({share:.2f} of the triad), "
            f"{extra / 1e6:.1f} MB beyond snapshots and prediction"
        )

    timed("fit", lambda: fitted.append(KoopmanOperator.fit(snapshots)), size)
    timed(
        f"predict {len(HORIZONS)} horizons",
        lambda: fitted[0].predict(HORIZONS, out=out),
        size + out_size,
    )

    first = (n - 1) // TILE * TILE
    weights, modes = (part.double() for part in parts(first, n - first))
    worst = 0.0
    for row, horizon in zip(out, HORIZONS, strict=True):
        now, later = (
            weights + torch.exp(-(m - 1.0 + h) * RATES.double()) @ modes for h in (0, horizon)
        )
        error = (row[first:] - later).norm() / (later - now).norm()
        worst = max(worst, float(error))
    print(f"rank {int(fitted[0].rank[0])}, error of the predicted displacement {worst:.1e}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
