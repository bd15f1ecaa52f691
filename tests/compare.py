# SPDX-License-Identifier: BSD-3-Clause
"""The one place where tolerances live."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

_Result = TypeVar("_Result")

# Rounding of the result to its dtype, in units of its largest entry.
ROUNDING = {
    torch.float64: 1e-15,
    torch.float32: 1e-7,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}

# Sharded against whole: Gram matrices summed in another order differ in their last bits, which a
# fit of a few directions and hundreds of steps ahead amplify.
SHARDED = 1e-8


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest deviation of a row, relative to the norm of the row expected."""
    difference = (actual.double() - expected.double()).flatten(1).norm(dim=1)
    return float((difference / expected.double().flatten(1).norm(dim=1).clamp(min=1e-300)).max())


def assert_rows_close(
    actual: Tensor, expected: Tensor, *, condition: float = 1.0, steps: float = 1.0
) -> None:
    """Rows agree to what double arithmetic keeps, plus one rounding to the dtype of `actual`.

    `condition` is how much the computation may amplify rounding errors (of the fit: the ratio of
    singular values, squared where a Gram matrix squares it), `steps` the largest horizon.
    """
    bound = 2 * ROUNDING[actual.dtype] + 1e-14 * condition * max(1.0, steps)
    error = relative_error(actual, expected)
    assert error <= bound, f"relative error {error:.2e}, allowed {bound:.2e}"


def exactness(
    snapshots: Tensor, rank: int, *, observables: str, method: str, steps: float
) -> float:
    """How exactly a system without noise is to be predicted from this window: to 1e-9.

    A Gram matrix squares the condition of the window, and each step multiplies by eigenvalues known
    to the unit roundoff times that: more than 1e-9 after a thousand steps on two systems of
    `cases.py`. On the worse one, numpy's eigh of the same matrix is off by 2.9e-9.
    """
    rows = snapshots.double().cpu()
    observed = rows.diff(dim=0)[:-1] if observables == "increments" else rows[:-1]
    singular = torch.linalg.svdvals(observed)
    condition = float(singular[0] / singular[rank - 1])
    roundoff = torch.finfo(torch.float64).eps / 2
    return max(1e-9, roundoff * condition**2 * steps if method == "gram" else 0.0)


def on_threads(counts: Sequence[int], work: Callable[[], _Result]) -> list[_Result]:
    """What ``work`` returns with each of these thread counts."""
    before = torch.get_num_threads()
    try:
        results = []
        for threads in counts:
            torch.set_num_threads(threads)
            results.append(work())
    finally:
        torch.set_num_threads(before)
    return results


def assert_same_spectrum(actual: Tensor, expected: Tensor, *, tolerance: float) -> None:
    """Eigenvalues agree as multisets."""
    assert len(actual) == len(expected), f"{len(actual)} eigenvalues, expected {len(expected)}"
    left = actual.tolist()
    for value in expected.tolist():
        nearest = min(left, key=lambda other: abs(other - value))
        assert abs(nearest - value) <= tolerance, f"no eigenvalue near {value}: {actual}"
        left.remove(nearest)
