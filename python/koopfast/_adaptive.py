# SPDX-License-Identifier: BSD-3-Clause
"""The weights that a controller's search asks for, formed a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from koopfast._horizon_search import RECENT_MEAN, Candidate, Damped, Secant
from koopfast._search import formed
from koopfast.operator import KoopmanOperator
from koopfast.partition import Partition
from koopfast.snapshots import SnapshotBuffer

__all__ = ["Predictions", "is_uneven", "trust"]

_UNEVEN = 0.9  # of the way of the block that goes furthest, for another to be damped


def trust(operator: KoopmanOperator) -> Tensor:
    """(n_blocks,), float64: the share of its way that each block is to go, 1 for the best of them.

    Where a prediction misses by the share e of the true motion, in a direction of its own, going
    1 / (1 + e^2) of the way comes nearest to the truth. e is that of the hindcast.
    """
    error = np.nan_to_num(operator.hindcast_error.cpu().numpy(), nan=0.0, posinf=1e6)
    share = 1 / (1 + error**2)
    return torch.from_numpy(share / share.max())


def is_uneven(operator: KoopmanOperator) -> bool:
    """Whether some blocks are predicted much worse than others."""
    return bool(trust(operator).numpy().min() < _UNEVEN)


class Predictions:
    """Weights at horizons in windows, for :meth:`koopfast.guard.Guard.judge_search`.

    A search goes on to a neighbour of the horizon it has just tried, half as long or twice, so one
    pass over the snapshots forms all three where there is room for them.

    Args:
        snapshots: the full window; its mean is a candidate too.
        predict: weights (k, n) at k horizons in recorded intervals.
        operator: what predicts.
        lag: optimizer steps since the last snapshot.
        room: bytes that predictions may take beside the first.

    Attributes:
        seconds: spent so far.
    """

    def __init__(
        self,
        snapshots: SnapshotBuffer,
        predict: Callable[[list[float]], Tensor],
        operator: KoopmanOperator,
        lag: int,
        room: int,
    ) -> None:
        self._snapshots = snapshots
        self._operator = operator
        self._predict = predict
        self._lag = lag
        row = snapshots.vector.n * snapshots.vector.dtype.itemsize
        self._together = 3 * row <= room
        self._formed: dict[int, Tensor] = {}
        self.seconds = 0.0

    def search(
        self, asked: Generator[Candidate, float, None]
    ) -> Generator[tuple[int, Tensor], float, None]:
        """What is ``asked`` for, as (optimizer steps ahead, weights (n,)); 0 steps for the mean."""
        return formed(asked, self._weights)

    def _weights(self, candidate: Candidate) -> tuple[int, Tensor]:
        started = perf_counter()
        if candidate == RECENT_MEAN:
            steps, weights = 0, self._recent_mean()
        elif isinstance(candidate, Damped):
            steps = self._steps(candidate.windows)
            weights = self._damped(self._formed[steps])
        elif isinstance(candidate, Secant):
            steps = self._steps(candidate.windows)
            rows = self._snapshots.snapshots
            weights = torch.lerp(rows[0], rows[-1], 1 + candidate.windows)
        else:
            steps = self._steps(float(candidate))
            if steps not in self._formed:
                factors = (0.5, 1.0, 2.0) if self._together else (1.0,)
                wanted = sorted({self._steps(factor * float(candidate)) for factor in factors})
                stride = self._snapshots.stride
                # Horizons count from now, the operator's powers from the last snapshot.
                rows = self._predict([(h + self._lag) / stride for h in wanted])
                self._formed.update(zip(wanted, rows, strict=True))
            weights = self._formed[steps]
        self.seconds += perf_counter() - started
        return steps, weights

    def _steps(self, windows: float) -> int:
        span = (self._snapshots.count - 1) * self._snapshots.stride
        return max(1, round(windows * span))

    def _damped(self, weights: Tensor) -> Tensor:
        share = _spread(trust(self._operator), self._operator.partition)
        last = self._snapshots.snapshots[-1]
        return torch.lerp(last, weights, share.to(last))

    def _recent_mean(self) -> Tensor:
        rows = self._snapshots.snapshots[self._snapshots.count // 2 :]
        wide = torch.promote_types(rows.dtype, torch.float32)
        return rows.mean(dim=0, dtype=wide).to(rows.dtype)


def _spread(values: Tensor, partition: Partition) -> Tensor:
    """(n_blocks,) to (n,): to each weight what its block has."""
    segments = partition.block_offsets.diff()
    order = torch.argsort(partition.segment_starts)
    of_segment = torch.repeat_interleave(values, segments)[order]
    return torch.repeat_interleave(of_segment, partition.segment_lengths[order])
