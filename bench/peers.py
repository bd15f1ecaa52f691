# SPDX-License-Identifier: BSD-3-Clause
"""The same predictions as others would make them: what `KoopmanOperator` is held against.

All fit states, x_{t+1} = U x_t with U = F' F^+, and return the weights `horizon` steps after the
last snapshot. Each is written to be fast in its own library: small Gram matrices in double, no
inverse where a product will do, powers by squaring.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def by_pydmd(snapshots: np.ndarray, horizon: int, rank: int) -> np.ndarray:
    """PyDMD's DMD, (m, n) -> (n,); rank -1 keeps every direction."""
    from pydmd import DMD

    dmd = DMD(svd_rank=rank, exact=True)
    dmd.fit(snapshots.T)
    dmd.dmd_time["t0"] = dmd.dmd_time["tend"] = len(snapshots) - 1 + horizon
    return dmd.reconstructed_data[:, 0].real


def by_method_of_snapshots(snapshots: np.ndarray, horizon: int, rank: int) -> np.ndarray:
    """numpy's method of snapshots (Sirovich 1987), Gram matrix in double by tiles, (m, n) -> (n,).

    The tiles keep the widened copy in cache; the combination of the snapshots is one product in
    their own precision.
    """
    m, n = snapshots.shape
    gram = np.zeros((m, m))
    for start in range(0, n, 8192):
        tile = snapshots[:, start : start + 8192].astype(np.float64)
        gram += tile @ tile.T
    values, v = np.linalg.eigh(gram[:-1, :-1])
    sigma, v = np.sqrt(values[-rank:]), v[:, -rank:]
    q = v / sigma  # F q has orthonormal columns
    operator = q.T @ gram[:-1, 1:] @ q
    eigenvalues, w = np.linalg.eig(operator)
    amplitudes = np.linalg.solve(w, q.T @ gram[:-1, -1])
    coefficients = q @ (w @ (eigenvalues ** (horizon - 1) * amplitudes)).real
    return coefficients.astype(snapshots.dtype) @ snapshots[1:]


def by_pinv(snapshots: np.ndarray, sizes: list[int], horizon: int) -> np.ndarray:
    """The paper's formula as numpy has it, block by block, (m, n) -> (n,)."""
    out, start = np.empty(snapshots.shape[1]), 0
    for size in sizes:
        x = snapshots[:, start : start + size].T.astype(np.float64)
        u = x[:, 1:] @ np.linalg.pinv(x[:, :-1])
        out[start : start + size] = np.linalg.matrix_power(u, horizon) @ x[:, -1]
        start += size
    return out


def _blocks(snapshots: Tensor, size: int) -> Tensor:
    """(m, n) -> (blocks, m, size) in double."""
    m, n = snapshots.shape
    return snapshots.reshape(m, n // size, size).transpose(0, 1).double()


def by_row_gram(snapshots: Tensor, size: int, horizon: int, rank: int) -> Tensor:
    """Batched torch, blocks smaller than the window: truncated operator of order `rank`."""
    x = _blocks(snapshots, size)
    f, f_next = x[:, :-1], x[:, 1:]
    values, q = torch.linalg.eigh(f.mT @ f)
    values, q = values[:, None, -rank:], q[..., -rank:]
    image = (f_next.mT @ f) @ q / values
    power = torch.linalg.matrix_power(q.mT @ image, horizon - 1)
    return (image @ (power @ (q.mT @ x[:, -1, :, None]))).flatten().to(snapshots.dtype)


def by_normal_equations(snapshots: Tensor, size: int, horizon: int) -> Tensor:
    """Batched torch, blocks smaller than the window and of full rank: no factor but Cholesky's."""
    x = _blocks(snapshots, size)
    f, f_next = x[:, :-1], x[:, 1:]
    factor = torch.linalg.cholesky(f.mT @ f)
    u = torch.cholesky_solve(f.mT @ f_next, factor).mT
    return (torch.linalg.matrix_power(u, horizon) @ x[:, -1, :, None]).flatten().to(snapshots.dtype)


def by_column_gram(snapshots: Tensor, size: int, horizon: int, rank: int) -> Tensor:
    """Batched torch, blocks larger than the window: only coefficients of the snapshots."""
    x = _blocks(snapshots, size)
    gram = x @ x.mT
    values, v = torch.linalg.eigh(gram[:, :-1, :-1])
    q = v[..., -rank:] / values[:, None, -rank:].sqrt()
    power = torch.linalg.matrix_power(q.mT @ gram[:, :-1, 1:] @ q, horizon - 1)
    coefficients = q @ (power @ (q.mT @ gram[:, :-1, -1:]))
    return (coefficients.mT @ x[:, 1:]).flatten().to(snapshots.dtype)


def by_svd(snapshots: Tensor, size: int, horizon: int, rank: int) -> Tensor:
    """Batched torch, as a textbook has it: the thin SVD of F."""
    x = _blocks(snapshots, size).mT
    u, sigma, vh = torch.linalg.svd(x[..., :-1], full_matrices=False)
    u, sigma, vh = u[..., :rank], sigma[:, None, :rank], vh[:, :rank]
    image = x[..., 1:] @ vh.mT / sigma
    power = torch.linalg.matrix_power(u.mT @ image, horizon - 1)
    return (image @ (power @ (u.mT @ x[..., -1:]))).flatten().to(snapshots.dtype)
