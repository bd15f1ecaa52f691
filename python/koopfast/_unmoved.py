# SPDX-License-Identifier: BSD-3-Clause
"""Weights that do not move in a window stay what they are, whatever is predicted of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from koopfast._search import formed
from koopfast.guard import Search
from koopfast.moments import MomentBuffer
from koopfast.parameters import ParameterVector
from koopfast.snapshots import SnapshotBuffer

__all__ = ["Unmoved"]


class Unmoved:
    """Puts the weights that did not move into predictions, to the last bit.

    No gradient reaches such a weight (of a parameter not used, a dead unit, an input that is always
    zero). A linear map of a block of states moves it with the others, and the mean of equal numbers
    need not be that number.

    Args:
        snapshots: the window.
        parameters: the weights of now.
    """

    def __init__(
        self, snapshots: SnapshotBuffer | MomentBuffer, parameters: ParameterVector
    ) -> None:
        places = snapshots.unmoved()
        self._any = len(places) > 0
        self._places = places
        self._values = parameters.read()[places.to(parameters.device)] if self._any else None

    def among(self, candidates: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
        """The candidates, (steps ahead, weights (n,)), written to."""
        return (self._with(candidate) for candidate in candidates)

    def in_search(self, search: Search) -> Search:
        """The same of candidates that are answered with their loss."""
        return formed(search, self._with)

    def _with(self, candidate: tuple[int, Tensor]) -> tuple[int, Tensor]:
        weights = candidate[1]
        if self._values is not None:
            weights[self._places.to(weights.device)] = self._values.to(weights.device)
        return candidate
