# SPDX-License-Identifier: BSD-3-Clause
"""A Hamiltonian network that solves the nonlinear oscillator, the first task of Koopman training.

    H(x, p) = p^2/2 + x^2/2 + lambda x^4/4,     dx/dt = p,     dp/dt = -(x + lambda x^3)

The network is fitted to the equations alone, with no solution given. Source: Mattheakis, Sondak,
Dogra and Protopapas, "Hamiltonian neural networks for solving differential equations",
arXiv 2001.11107, as used by Dogra and Redman, arXiv 2006.02361, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from koopfast.errors import ConfigError

__all__ = ["HamiltonianNetwork", "Oscillator"]


@dataclass(frozen=True)
class Oscillator:
    """The problem: initial state (x0, p0), strength of the x^4 term, span and number of points.

    Raises:
        ConfigError: fewer than two points, or a duration that is not positive.
    """

    x0: float = 1.3
    p0: float = 1.0
    strength: float = 1.0
    duration: float = 4 * math.pi
    points: int = 200

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ConfigError(f"points must be at least 2, got {self.points}")
        if not self.duration > 0:
            raise ConfigError(f"duration must be positive, got {self.duration}")

    def times(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Equally spaced times from 0 to `duration`: (points,)."""
        return torch.linspace(0, self.duration, self.points, dtype=dtype)

    def force(self, x: Tensor) -> Tensor:
        """dp/dt = -(x + lambda x^3), element by element."""
        return -(x + self.strength * x**3)

    def energy(self, states: Tensor) -> Tensor:
        """H of states (..., 2) = (x, p), which the exact solution keeps constant: (...)."""
        x, p = states.unbind(-1)
        return p**2 / 2 + x**2 / 2 + self.strength * x**4 / 4

    def solve(self, substeps: int = 50) -> Tensor:
        """Reference states (points, 2), float64, by the classical fourth-order Runge-Kutta rule.

        `substeps` equal steps are taken between neighbouring times.
        """

        def slope(state: Tensor) -> Tensor:
            return torch.stack([state[1], self.force(state[0])])

        h = self.duration / ((self.points - 1) * substeps)
        state = torch.tensor([self.x0, self.p0], dtype=torch.float64)
        states = [state]
        for _ in range(self.points - 1):
            for _ in range(substeps):
                k1 = slope(state)
                k2 = slope(state + h / 2 * k1)
                k3 = slope(state + h / 2 * k2)
                k4 = slope(state + h * k3)
                state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            states.append(state)
        return torch.stack(states)


class HamiltonianNetwork(nn.Module):
    """z(t) = z0 + (1 - e^-t) N(t), with N: 1 -> width sine -> width sine -> 2.

    The factor makes z(0) = z0 hold exactly, whatever the weights. Time derivatives are carried
    forward through the layers beside the values, so a training step needs one backward pass only.

    Args:
        problem: the oscillator to solve; None is the one of the paper.
        width: units in each of the two hidden layers.
        dtype: torch.float32 or torch.float64.

    Raises:
        ConfigError: another dtype, or a width below 1.

    Example:
        >>> network = HamiltonianNetwork()
        >>> network(torch.zeros(1, dtype=torch.float64)).tolist()
        [[1.3, 1.0]]
        >>> network.loss().requires_grad
        True
    """

    times: Tensor
    initial: Tensor

    def __init__(
        self,
        problem: Oscillator | None = None,
        *,
        width: int = 10,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        if width < 1:
            raise ConfigError(f"width must be at least 1, got {width}")
        self.problem = problem if problem is not None else Oscillator()
        self.first = nn.Linear(1, width, dtype=dtype)
        self.second = nn.Linear(width, width, dtype=dtype)
        self.readout = nn.Linear(width, 2, dtype=dtype)
        self.register_buffer("times", self.problem.times(dtype))
        start = torch.tensor([self.problem.x0, self.problem.p0], dtype=dtype)
        self.register_buffer("initial", start)

    def forward(self, t: Tensor) -> Tensor:
        """States z(t) at times t (k,): (k, 2)."""
        hidden = torch.sin(self.second(torch.sin(self.first(t.unsqueeze(-1)))))
        states: Tensor = self.initial - torch.expm1(-t).unsqueeze(-1) * self.readout(hidden)
        return states

    def with_derivative(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """States and their time derivatives at times t (k,): two tensors (k, 2).

        A sine layer takes (a, da/dt) to (sin a, cos a da/dt); a linear one maps both, the second
        without the bias.
        """
        first = self.first(t.unsqueeze(-1))
        hidden, rate = torch.sin(first), torch.cos(first) * self.first.weight.squeeze(1)
        second, rate = self.second(hidden), rate @ self.second.weight.T
        hidden, rate = torch.sin(second), torch.cos(second) * rate
        value, rate = self.readout(hidden), rate @ self.readout.weight.T
        decay = torch.exp(-t).unsqueeze(-1)
        grown = -torch.expm1(-t).unsqueeze(-1)
        return self.initial + grown * value, decay * value + grown * rate

    def residual(self, t: Tensor) -> Tensor:
        """How far (x' - p, p' + x + lambda x^3) is from 0 at times t (k,): (k, 2)."""
        z, rate = self.with_derivative(t)
        x, p = z.unbind(-1)
        slope = torch.stack([p, self.problem.force(x)], dim=-1)
        return rate - slope

    def loss(self, t: Tensor | None = None) -> Tensor:
        """Mean over the times (the problem's own if None) of the squared residual's length."""
        return self.residual(self.times if t is None else t).square().sum(dim=-1).mean()
