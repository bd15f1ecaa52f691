# SPDX-License-Identifier: BSD-3-Clause
"""Many solver networks trained at once: their weights stacked in one tensor.

Adadelta, Adam and Adagrad work element by element, so an optimizer on the stacked weights does to
each network what it would do to that network alone, as long as the loss is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

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
    """The losses of several :class:`HamiltonianNetwork`, and their gradients, as one computation.

    The gradients are written out: each sine and cosine is computed once, and nothing is built to
    be walked back. That takes little more than half the time of autograd's, and it is what training
    spends here.

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

    @torch.no_grad()
    def losses(self, weights: Tensor, times: Tensor | None = None) -> Tensor:
        """Mean squared residual of each network: weights (networks, n) to (networks,).

        Args:
            weights: one network a row, in the order of its parameters.
            times: (networks, points), the problem's own if None.
        """
        return self._forward(weights, times).losses

    @torch.no_grad()
    def gradients(self, weights: Tensor, times: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same losses, and the gradient of each in its own network's weights (networks, n)."""
        run = self._forward(weights, times)
        t, grown, decay = run.factors
        points = t.shape[-1]
        # Residuals r = x' - p and s = p' - force(x), where (x, p) = start + grown N and the rates
        # (x', p') = decay N + grown N'; loss = mean(r^2 + s^2).
        x, residuals = run.states[:, 0], run.residuals * (2 / points)
        stiffness = 1 + 3 * self.problem.strength * x.square()
        states = torch.stack((residuals[:, 1] * stiffness, -residuals[:, 0]), dim=1)
        outputs = torch.stack((decay * residuals + grown * states, grown * residuals), dim=2)
        third = _weight_gradients(run.second, outputs)
        hidden = _sine_backward(run.w3, outputs, run.second, run.cosine2, run.rate2)
        second = _weight_gradients(run.first, hidden)
        inner = _sine_backward(run.w2, hidden, run.first, run.cosine1, run.w1)
        angle, rate = inner.unbind(2)
        # The first layer's rate of change is its weight, so that the weight is met twice.
        w1 = (angle * t + rate).sum(dim=2)
        parts = (w1, angle.sum(dim=2), *second, *third)
        return run.losses, torch.cat([part.flatten(1) for part in parts], dim=1)

    def _forward(self, weights: Tensor, times: Tensor | None) -> _Forward:
        h, count = self.width, len(weights)
        w1, b1, w2, b2, w3, b3 = torch.split(weights, self.sizes, dim=1)
        w1, w2, w3 = w1.unsqueeze(2), w2.view(count, h, h), w3.view(count, 2, h)
        factors = self._at if times is None else self._factors(times.unsqueeze(1))
        t, grown, decay = factors
        # A value and its derivative in time side by side: (networks, units, 2, points). A sine
        # layer takes (a, a') to (sin a, cos a a').
        first, cosine1 = _sine(torch.addcmul(b1.unsqueeze(2), w1, t), w1)
        angle, rate2 = _linear(w2, b2, first)
        second, cosine2 = _sine(angle, rate2)
        value, rate = _linear(w3, b3, second)
        states = torch.addcmul(self._start, grown, value)
        rates = torch.addcmul(decay * value, grown, rate)
        force = torch.stack((states[:, 1], self.problem.force(states[:, 0])), dim=1)
        residuals = rates - force
        losses = residuals.square().sum(dim=1).mean(dim=1)
        return _Forward(
            losses, factors, states, residuals,
            w1, w2, w3, first, second, cosine1, cosine2, rate2,
        )  # fmt: skip


class _Forward(NamedTuple):
    """What the gradients need of a forward pass."""

    losses: Tensor
    factors: tuple[Tensor, Tensor, Tensor]
    states: Tensor
    residuals: Tensor
    w1: Tensor
    w2: Tensor
    w3: Tensor
    first: Tensor
    second: Tensor
    cosine1: Tensor
    cosine2: Tensor
    rate2: Tensor


def _sine(angle: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """(sin a, cos a a') as (networks, units, 2, points), and cos a."""
    count, units, points = angle.shape
    both = angle.new_empty(count, units, 2, points)
    torch.sin(angle, out=both[:, :, 0])
    cosine = torch.cos(angle)
    torch.mul(cosine, rate, out=both[:, :, 1])
    return both, cosine


def _side_by_side(both: Tensor) -> Tensor:
    """(networks, units, 2 points) as (networks, units, 2, points)."""
    return both.view(len(both), both.shape[1], 2, -1)


def _linear(weight: Tensor, bias: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative of a layer's output, each (networks, outputs, points)."""
    value, rate = _side_by_side(weight.bmm(inputs.flatten(2))).unbind(2)
    return value.add_(bias.unsqueeze(2)), rate


def _weight_gradients(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients in a layer's weight and bias, from those in its output."""
    return outputs.flatten(2).bmm(inputs.flatten(2).mT), outputs[:, :, 0].sum(dim=2)


def _sine_backward(
    weight: Tensor, outputs: Tensor, sine: Tensor, cosine: Tensor, rate: Tensor
) -> Tensor:
    """Gradients in the angles of a sine layer and in their derivatives, side by side, from those
    in the output of the linear layer (``weight``) after it."""
    both = _side_by_side(weight.mT.bmm(outputs.flatten(2)))
    value, slope = both.unbind(2)
    angle = (value * cosine).addcmul_(slope * sine[:, :, 0], rate, value=-1)
    slope *= cosine
    value.copy_(angle)
    return both
