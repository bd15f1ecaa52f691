# SPDX-License-Identifier: BSD-3-Clause
"""Many solver networks trained at once: their weights stacked in one tensor, one graph a step.

Adadelta, Adam and Adagrad work element by element, so an optimizer on the stacked weights does to
each network what it would do to that network alone, as long as the loss is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from koopfast.data import HamiltonianNetwork, Oscillator

__all__ = ["StackedSolvers", "initial_weights"]


def initial_weights(problem: Oscillator, seeds: Iterable[int], width: int = 10) -> Tensor:
    """torch's own initial weights of one :class:`HamiltonianNetwork` a seed: (networks, n)."""
    rows = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            network = HamiltonianNetwork(problem, width=width)
            rows.append(torch.nn.utils.parameters_to_vector(network.parameters()).detach())
    return torch.stack(rows)


class StackedSolvers:
    """The losses of several :class:`HamiltonianNetwork` as one small graph.

    Args:
        problem: the oscillator that all of them solve.
        width: units in each of the two hidden layers.
    """

    def __init__(self, problem: Oscillator, width: int = 10) -> None:
        self.problem = problem
        self.width = width
        self.sizes = [width, width, width * width, width, 2 * width, 2]
        self.times = problem.times().view(1, 1, -1)
        self._start = torch.tensor([problem.x0, problem.p0], dtype=torch.float64).view(1, 2, 1)
        self._at = self._factors(self.times)

    @staticmethod
    def _factors(times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The times, 1 - e^-t, and its derivative."""
        return times, -torch.expm1(-times), torch.exp(-times)

    def losses(self, weights: Tensor, times: Tensor | None = None) -> Tensor:
        """Mean squared residual of each network: weights (networks, n) to (networks,).

        Args:
            weights: one network a row, in the order of its parameters.
            times: (networks, points), the problem's own if None.
        """
        h, count = self.width, len(weights)
        w1, b1, w2, b2, w3, b3 = torch.split(weights, self.sizes, dim=1)
        w1, b1 = w1.unsqueeze(2), b1.unsqueeze(2)
        t, grown, decay = self._at if times is None else self._factors(times.unsqueeze(1))
        # A sine layer takes (a, da/dt) to (sin a, cos a da/dt); shapes (networks, units, points).
        first = torch.addcmul(b1, w1, t)
        value, rate = first.sin(), first.cos() * w1
        w2 = w2.view(count, h, h)
        second, rate = torch.baddbmm(b2.unsqueeze(2), w2, value), w2.bmm(rate)
        value, rate = second.sin(), second.cos() * rate
        w3 = w3.view(count, 2, h)
        value, rate = torch.baddbmm(b3.unsqueeze(2), w3, value), w3.bmm(rate)
        states = torch.addcmul(self._start, grown, value)
        x, p = states.unbind(1)
        dx, dp = (decay * value + grown * rate).unbind(1)
        losses: Tensor = ((dx - p).square() + (dp - self.problem.force(x)).square()).mean(dim=1)
        return losses
