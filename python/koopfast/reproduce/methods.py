# SPDX-License-Identifier: BSD-3-Clause
"""What is held against each other: the paper's operator, koopfast's steps from it, and auto."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from torch import Tensor

from koopfast.operator import KoopmanOperator
from koopfast.partition import Partition

__all__ = ["Forecast", "Method", "forecast"]


@dataclass(frozen=True)
class Method:
    """A way to fit the operator.

    Attributes:
        name: short, for keys and tables.
        says: what it does, for the legend of a table.
        options: of :meth:`koopfast.KoopmanOperator.fit`.
        stride: steps for one snapshot; 1 records every step.
        average: a snapshot is the mean of its steps, else the last of them.
    """

    name: str
    says: str
    options: Mapping[str, Any]
    stride: int = 1
    average: bool = True


@dataclass(frozen=True)
class Forecast:
    """Predicted weights (horizons, n), and the seconds of fit and prediction together."""

    weights: Tensor
    seconds: float
    operator: KoopmanOperator


def _snapshots(window: Tensor, method: Method) -> Tensor:
    """One row for each ``stride`` rows, counted from the end: (m // stride, n)."""
    if method.stride == 1:
        return window
    count = len(window) // method.stride
    groups = window[len(window) - count * method.stride :].view(count, method.stride, -1)
    return groups.mean(dim=1) if method.average else groups[:, -1]


def forecast(
    window: Tensor, partition: Partition, method: Method, horizons: Sequence[float]
) -> Forecast:
    """Fit to recorded steps (m, n) and predict the weights so many steps after the last row.

    A mean of ``stride`` steps stands (stride - 1) / 2 steps before the last of them.
    """
    snapshots = _snapshots(window, method)  # as a SnapshotBuffer sums them up while training runs
    begin = perf_counter()
    operator = KoopmanOperator.fit(snapshots, partition, **method.options)
    late = (method.stride - 1) / 2 if method.average else 0
    weights = operator.predict([(horizon + late) / method.stride for horizon in horizons])
    return Forecast(weights, perf_counter() - begin, operator)
