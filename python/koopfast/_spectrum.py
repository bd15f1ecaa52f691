# SPDX-License-Identifier: BSD-3-Clause
"""An operator's spectrum to look at: modes, amplitudes, time constants."""

from __future__ import annotations

import torch
from torch import Tensor

from koopfast._blocks import FittedBlocks
from koopfast._reference import UNIT_EIGENVALUE_TOLERANCE

# Weights that are expanded at a time: their snapshots are widened to double.
_COLUMNS = 1 << 16


def amplitudes(fitted: FittedBlocks, block: int) -> Tensor:
    """W^-1 z, (k,) complex128; NaN where the block has no well-conditioned eigenbasis."""
    k, start = int(fitted.rank[block]), int(fitted.vector_offsets[block])
    own = fitted.amplitudes[start : start + k]
    return own.clone() if fitted.has_eigenbasis(block) else torch.full_like(own, torch.nan)


def modes(fitted: FittedBlocks, block: int) -> Tensor:
    """Phi W, (rows of the lift, k) complex128; NaN as above."""
    k, rows = int(fitted.rank[block]), int(fitted.rows[block])
    at, lift_at = int(fitted.matrix_offsets[block]), int(fitted.lift_offsets[block])
    vectors = fitted.eigenvectors[at : at + k * k].reshape(k, k)
    if not fitted.has_eigenbasis(block):
        vectors = torch.full_like(vectors, torch.nan)
    lift = fitted.lifts[lift_at : lift_at + rows * k].reshape(rows, k)
    return lift.to(vectors.dtype) @ vectors


def expanded(coefficients: Tensor, snapshots: Tensor, segments: list[tuple[int, int]]) -> Tensor:
    """S_b^T c, (n_b, k) complex128, of coefficients (m, k) of the snapshots (m, n)."""
    # Differences from the last snapshot, as everywhere: weights move by parts in a thousand.
    total, pieces = coefficients.sum(0), []
    for start, length in segments:
        for first in range(start, start + length, _COLUMNS):
            end = min(first + _COLUMNS, start + length)
            rows = snapshots[:, first:end].cpu()
            rows = rows.to(torch.promote_types(rows.dtype, torch.float64))
            moved = (rows - rows[-1]).T.to(coefficients.dtype)
            pieces.append(moved @ coefficients + rows[-1][:, None] * total)
    return torch.cat(pieces)


def time_constants(eigenvalues: Tensor) -> Tensor:
    """-1 / log |lambda|; inf on the unit circle, negative outside."""
    modulus = eigenvalues.abs()
    steady = (modulus - 1).abs() <= UNIT_EIGENVALUE_TOLERANCE
    return torch.where(steady, torch.inf, -1 / modulus.log())
