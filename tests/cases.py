# SPDX-License-Identifier: BSD-3-Clause
"""Linear systems whose every power is known in closed form, and partitions to fit them by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from koopfast import Partition

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Mode:
    """A real block of a system's matrix J: (size, size), with J^t for every real t."""

    kind: str  # "real", "pair" (a rotation times a modulus) or "jordan" (2 x 2, defective)
    value: float
    angle: float = 0.0

    def power(self, t: float) -> Tensor:
        modulus = self.value**t
        if self.kind == "real":
            rows = [[modulus]]
        elif self.kind == "pair":
            c, s = math.cos(self.angle * t), math.sin(self.angle * t)
            rows = [[modulus * c, -modulus * s], [modulus * s, modulus * c]]
        else:
            rows = [[modulus, t * self.value ** (t - 1)], [0.0, modulus]]
        return torch.tensor(rows, dtype=torch.float64)

    def eigenvalues(self) -> list[complex]:
        if self.kind == "real":
            return [complex(self.value)]
        if self.kind == "pair":
            c, s = math.cos(self.angle), math.sin(self.angle)
            return [self.value * complex(c, s), self.value * complex(c, -s)]
        return [complex(self.value)] * 2


@dataclass(frozen=True)
class LinearSystem:
    """w_t = offset + Q J^t z_0 in n dimensions, Q with orthonormal columns."""

    name: str
    modes: tuple[Mode, ...]
    defective: bool = False

    @property
    def order(self) -> int:
        return sum(len(mode.power(0)) for mode in self.modes)

    def eigenvalues(self) -> Tensor:
        values = [value for mode in self.modes for value in mode.eigenvalues()]
        return torch.tensor(values, dtype=torch.complex128)

    def states(self, n: int, times: Any, *, offset: float = 0.0, seed: int = 0) -> Tensor:
        """Rows w_t for the given real times, (len(times), n) float64."""
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(n, self.order, dtype=torch.float64, generator=generator)
        q, _ = torch.linalg.qr(random)
        start = torch.ones(self.order, dtype=torch.float64)
        shift = offset * torch.randn(n, dtype=torch.float64, generator=generator)
        rows = [
            q @ torch.block_diag(*(mode.power(float(t)) for mode in self.modes)) @ start + shift
            for t in times
        ]
        return torch.stack(rows)


def real(value: float) -> Mode:
    return Mode("real", value)


def pair(value: float, angle: float) -> Mode:
    return Mode("pair", value, angle)


SYSTEMS = (
    LinearSystem("decaying", (real(0.95), real(0.7), real(0.4))),
    LinearSystem("slow and fast", (real(0.999), real(0.3))),
    LinearSystem("complex pairs", (pair(0.98, 0.7), pair(0.8, 2.0))),
    LinearSystem("alternating", (pair(0.9, math.pi * 0.999), real(0.6))),
    LinearSystem("on the unit circle", (pair(1.0, 0.3), real(0.5))),
    LinearSystem("outside the unit circle", (real(1.002), pair(0.9, 1.0))),
    LinearSystem("defective", (Mode("jordan", 0.9),), defective=True),
    LinearSystem("defective and more", (Mode("jordan", 0.8), pair(0.95, 0.5)), defective=True),
)
STABLE = tuple(s for s in SYSTEMS if float(s.eigenvalues().abs().max()) < 1)


def random_walk(m: int, n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Snapshots of nothing in particular: increments in general position, (m, n)."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(m, n, dtype=torch.float64, generator=generator)
    return (1 + 0.05 * steps.cumsum(0)).to(dtype)


def noise(m: int, n: int, level: float, seed: int = 0) -> Tensor:
    """Independent normal errors of snapshots, (m, n) float64."""
    generator = torch.Generator().manual_seed(seed)
    return level * torch.randn(m, n, dtype=torch.float64, generator=generator)


def interleaved(n: int, blocks: int) -> Partition:
    """Blocks of many segments: index i belongs to block i mod `blocks`."""
    return Partition.from_segments(
        [[(i, 1) for i in range(b, n, blocks)] for b in range(blocks)], n
    )


def mixed(n: int) -> Partition:
    """One large block of two segments around small ones: both forms in one partition."""
    third = n // 3
    small = [[(third + i, 1)] for i in range(5)] + [[(third + 5, 7)]]
    return Partition.from_segments([[(0, third), (third + 12, n - third - 12)], *small], n)
