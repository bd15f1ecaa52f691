# SPDX-License-Identifier: BSD-3-Clause
"""The reduced operator and its hindcast in plain torch float64: the twin of the native files.

Letters as in :mod:`koopfast._reference`: the rows of h are the observables h_1 ... h_{p+1} of a
block of n_b weights, F and F' their pairs as columns, F = Q S V^T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# An eigenbasis worse conditioned than this loses more digits than repeated squaring does.
EIGENBASIS_CONDITION_LIMIT = 1e6
# A backward operator worse conditioned than this is taken for singular.
BACKWARD_CONDITION_LIMIT = 1e6
# Eigenvalues of A_f that are each other's opposite to this share of the largest have one square:
# the sign of their roots is lost in it.
OPPOSITE_EIGENVALUES = 1e-2
# Singular values nearer to each other than this leave the vectors that belong to each open.
SINGULAR_GAP = 1 - 1e-3
# The most error of a predicted displacement, relative to the displacement, that can be trusted.
TRUSTED_ERROR = 0.5


@dataclass(frozen=True)
class Reduction:
    """What decides how the observables of a block are reduced to an operator."""

    n_b: int  # rows of an observable: the block's weights, or their coordinates
    weights: int  # of the block
    observables: str
    rank: int | float | str | None
    tolerance: float
    ridge: float
    estimator: str  # or "symmetric"
    unstable: str


@dataclass(frozen=True)
class Reduced:
    """An operator in its small form."""

    singular_values: Tensor  # (r,) all of F
    operator: Tensor  # (k, k) A
    start: Tensor  # (k,) z
    lift: Tensor  # (n_b, k): the newest o_t of every column of Phi
    basis: Tensor  # (n_b, k): the newest o_t of every column of Q


def as_field(values: Tensor, like: Tensor) -> Tensor:
    """Complex values as numbers of the field that ``like`` is of."""
    return values if like.is_complex() else values.real


def eigenbasis(operator: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Eigenvalues, eigenvectors of A, and whether the eigenvectors are fit to compute with."""
    if operator.is_complex() and torch.equal(operator, operator.mH):
        # Real eigenvalues: rounding must not choose the branch of a negative one's powers.
        real, vectors = torch.linalg.eigh(operator)
        return real.to(operator.dtype), vectors, True
    values, vectors = torch.linalg.eig(operator)
    usable = bool(values.numel() == 0 or torch.linalg.cond(vectors) < EIGENBASIS_CONDITION_LIMIT)
    return values, vectors, usable


def slow_growth(unstable: str, p: int) -> float:
    """The modulus that "slow" allows an operator fitted to p observables: growth by a factor e
    over all of them; 1 for the others."""
    return math.exp(1 / p) if unstable == "slow" else 1.0


def shrinker(operator: Tensor, unstable: str, radius: float = 1.0) -> Tensor:
    """P such that the eigenvalues of A P outside the unit circle are moved radially: onto it
    ("clip", lambda / |lambda|), onto another of this radius ("slow") or to their reflection inside
    ("damp", lambda / |lambda|^2).

    P = W diag(1 / divisor) W^-1 in a well-conditioned eigenbasis W. Elsewhere there is none, and
    all of A is scaled as its largest eigenvalue should be.
    """
    values, vectors, usable = eigenbasis(operator)
    divisor = (values.abs() / radius).clamp(min=1) ** (2 if unstable == "damp" else 1)
    if usable:
        scaled = vectors / divisor.to(vectors.dtype)
        return as_field(scaled @ torch.linalg.inv(vectors), operator)
    return torch.eye(len(values), dtype=operator.dtype, device=operator.device) / divisor.max()


def gavish_donoho_threshold(sigma: Tensor, rows: int, columns: int) -> float:
    """Gavish & Donoho (2014), IEEE Trans. Inf. Theory 60(8), section III.E: omega(beta) times the
    median singular value, with their cubic fit of omega; beta <= 1 is the matrix's aspect ratio."""
    beta = min(rows, columns) / max(rows, columns)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    return omega * float(torch.quantile(sigma, 0.5))


def chosen_rank(sigma: Tensor, shape: torch.Size, limit: int, wanted: Reduction) -> int:
    """How many of the singular values of F, of this shape, are kept."""
    if not float(sigma[0]) > 0:
        return 0
    above = min(limit, int((sigma > wanted.tolerance * sigma[0]).sum()))
    if isinstance(wanted.rank, float):
        energy = (sigma**2).cumsum(0)
        return min(above, 1 + int((energy < wanted.rank * energy[-1]).sum()))
    if wanted.rank == "gavish-donoho":
        threshold = gavish_donoho_threshold(sigma, *shape)
        return min(above, int((sigma > threshold).sum()))
    return above


def symmetric_procrustes(c: Tensor, sigma: Tensor, alpha: Tensor) -> Tensor:
    """Symmetric Procrustes (Higham 1988): minimise |A F - F'|^2 + alpha |A|^2 over A = A^H, with
    C = Q^H F' V."""
    s2 = sigma**2 + alpha
    return (sigma[:, None] * c.mH + c * sigma) / (s2[:, None] + s2)


def forward_backward(v: Tensor, following: Tensor) -> Tensor | None:
    """Forward-backward DMD (Dawson, Hemati, Williams & Rowley 2016, section 3.2): the root of
    A_f A_b^-1 that is closest to A_f, or None where there is none to be told from the others.

    Of pairs whitened by S: F = V^T (k, p), ``following`` = S^-1 Q^T F' (k, p), and so is A.
    """
    forward = following @ v
    inverse, failed = torch.linalg.inv_ex(forward)
    if failed or not float(inverse.norm() * following.norm()) < BACKWARD_CONDITION_LIMIT:
        return None
    seen = torch.linalg.eigvals(forward)
    sums = (seen[:, None] + seen).abs()[~torch.eye(len(seen), dtype=torch.bool, device="cpu")]
    if not bool((sums > OPPOSITE_EIGENVALUES * seen.abs().max()).all()):
        return None
    squares, vectors, usable = eigenbasis(forward @ following @ following.mH @ inverse.mH)
    unreal = (squares.imag == 0) & (squares.real < 0)
    if not usable or (not forward.is_complex() and bool(unreal.any())):
        return None
    complex_forward = forward.to(vectors.dtype)
    closest = torch.linalg.solve(vectors, complex_forward @ vectors).diagonal()
    roots = squares.sqrt()
    roots = torch.where((roots.conj() * closest).real < 0, -roots, roots)
    result: Tensor = torch.linalg.solve(vectors, vectors * roots, left=False)
    return as_field(result, forward)


def project_pairs(
    f: Tensor, f_next: Tensor, k: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Total least squares (Hemati, Rowley, Deem & Cattafesta 2017, section 3): the factors Q, S, V
    of F projected on the k leading right singular vectors of [F; F'], or None where these cannot
    be told from the rest."""

    _, sigma, vt = torch.linalg.svd(torch.cat((f, f_next)), full_matrices=False)
    if k < len(sigma) and float(sigma[k]) > SINGULAR_GAP * float(sigma[k - 1]):
        return None
    basis = vt[: int((sigma[:k] > tolerance * sigma[0]).sum())].mH
    q, sigma, vt = torch.linalg.svd(f @ basis, full_matrices=False)
    r = int((sigma > tolerance * sigma[0]).sum())
    return q[:, :r], sigma[:r], basis @ vt[:r].mH


def reduce(h: Tensor, limit: int, wanted: Reduction) -> Reduced:
    """Fit h_{t+1} = U h_t over the rows of h and express it in the leading left singular basis."""
    f, f_next = h[:-1].T, h[1:].T
    q, all_sigma, vt = torch.linalg.svd(f, full_matrices=False)
    whole = torch.Size((wanted.weights * (f.shape[0] // wanted.n_b), f.shape[1]))
    k = chosen_rank(all_sigma, whole, limit, wanted)
    q, sigma, v = q[:, :k], all_sigma[:k], vt[:k].mH
    if wanted.estimator == "total_least_squares" and k > 0:
        q, sigma, v = project_pairs(f, f_next, k, wanted.tolerance) or (q, sigma, v)
    alpha = wanted.ridge * sigma[:1] ** 2
    operator: Tensor | None = None
    if wanted.estimator == "symmetric":
        operator = symmetric_procrustes(q.mH @ f_next @ v, sigma, alpha)
    elif wanted.estimator == "forward_backward" and k > 0:
        root = forward_backward(v, (q.mH @ f_next) / sigma[:, None])
        operator = None if root is None else sigma[:, None] * root / sigma
    if operator is None:
        image = f_next @ v / (sigma + alpha / sigma)  # U Q
        operator = q.mH @ image
    else:
        image = q @ operator
    return Reduced(all_sigma, operator, q.mH @ h[-1], image[: wanted.n_b], q[: wanted.n_b])


def candidate_ranks(limit: int) -> list[int]:
    """The ranks that a hindcast tries: 1, 2, 3, 4, 6, 8, 12, 16, ... and the limit itself."""
    ranks = [r for e in range(limit.bit_length() + 1) for r in (2**e, 3 * 2**e // 2) if r <= limit]
    return sorted({*ranks, limit} - {0})


def trusted_intervals(predicted: Tensor, truth: Tensor) -> float:
    """How many recorded intervals (rows) are predicted to TRUSTED_ERROR of their displacement."""
    good = (predicted - truth).norm(dim=1) <= TRUSTED_ERROR * truth.norm(dim=1)
    return float(good.long().cumprod(0).sum())


def hindcast(h: Tensor, limit: int, wanted: Reduction) -> tuple[int, float, float]:
    """The rank that predicts the last third of the window best from the first two, its error, and
    the horizon up to which that prediction can be trusted.

    The error is that of the predicted displacement, relative to the displacement itself, over all
    predicted snapshots (root of the summed squares). Rank 0 (stand still, error 1) wins where no
    operator does better. Windows of fewer than 3 pairs cannot be split: (limit, NaN, NaN).
    """
    pairs = h.shape[0] - 1
    if pairs < 3:
        return limit, math.nan, math.nan
    split = pairs - max(1, pairs // 3)
    n_b, state = wanted.n_b, wanted.observables == "state"
    fitted = reduce(h[: split + 1], limit, wanted)
    truth = h[split + 1 :, :n_b]
    truth = truth - h[split, :n_b] if state else truth.cumsum(0)
    scale = float(truth.norm() ** 2)
    best_rank, best_error, trusted = 0, 1.0, 0.0
    if scale == 0:
        return best_rank, best_error, trusted
    nested = wanted.estimator in ("least_squares", "symmetric")
    for candidate in candidate_ranks(fitted.operator.shape[0]):
        if not nested:
            fitted = reduce(h[: split + 1], candidate, wanted)
        rank = min(candidate, fitted.operator.shape[0])
        a, y = fitted.operator[:rank, :rank], fitted.start[:rank]
        lift = fitted.lift[:, :rank]
        if wanted.estimator == "symmetric":
            # A self-adjoint image mixes all columns of A: cut to the rank, it is built again.
            lift = fitted.basis[:, :rank] @ a
        if wanted.unstable != "keep":  # what is judged is what will predict
            p = shrinker(a, wanted.unstable)
            a, lift = a @ p, lift @ p
        rows = []
        for _ in range(truth.shape[0]):
            rows.append(lift @ y)
            y = a @ y
        predicted = torch.stack(rows)
        predicted = predicted - h[split, :n_b] if state else predicted.cumsum(0)
        error = math.sqrt(float((predicted - truth).norm() ** 2) / scale)
        if error < best_error:  # NaN compares false: a diverging rank is never the best
            best_rank, best_error = candidate, error
            trusted = trusted_intervals(predicted, truth)
    return best_rank, best_error, trusted
