# SPDX-License-Identifier: BSD-3-Clause
"""The Hamiltonian network of the nonlinear oscillator against autograd and a reference solution."""

from __future__ import annotations

import pytest
import torch

from koopfast.data import HamiltonianNetwork, Oscillator
from koopfast.errors import ConfigError


@pytest.fixture
def network() -> HamiltonianNetwork:
    torch.manual_seed(0)
    return HamiltonianNetwork()


def test_time_derivative_equals_autograd(network: HamiltonianNetwork) -> None:
    t = network.times.clone().requires_grad_()
    states, rate = network.with_derivative(t)
    assert torch.equal(states, network(t))
    for column in range(2):
        (expected,) = torch.autograd.grad(states[:, column].sum(), t, retain_graph=True)
        torch.testing.assert_close(rate[:, column], expected, rtol=1e-12, atol=1e-13)


def test_gradient_of_the_loss_equals_double_backward(network: HamiltonianNetwork) -> None:
    t = network.times.clone().requires_grad_()
    x, p = network(t).unbind(-1)
    dx, dp = (torch.autograd.grad(v.sum(), t, create_graph=True)[0] for v in (x, p))
    slow = ((dx - p) ** 2 + (dp + x + network.problem.strength * x**3) ** 2).mean()
    parameters = list(network.parameters())
    expected = torch.autograd.grad(slow, parameters)
    found = torch.autograd.grad(network.loss(), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_initial_state_holds_exactly(dtype: torch.dtype) -> None:
    network = HamiltonianNetwork(dtype=dtype)
    start = network(torch.zeros(1, dtype=dtype))
    assert start.dtype == dtype
    assert torch.equal(start, torch.tensor([[1.3, 1.0]], dtype=dtype))


def test_has_the_size_of_the_papers_network(network: HamiltonianNetwork) -> None:
    assert network.times.shape == (200,)
    assert sum(p.numel() for p in network.parameters()) == 20 + 110 + 22


def test_reference_conserves_energy() -> None:
    problem = Oscillator()
    energy = problem.energy(problem.solve())
    torch.testing.assert_close(energy, energy[:1].expand(200), rtol=1e-10, atol=0)


def test_reference_is_the_cosine_without_the_quartic_term() -> None:
    problem = Oscillator(x0=1.0, p0=0.0, strength=0.0, points=20)
    t = problem.times()
    exact = torch.stack([torch.cos(t), -torch.sin(t)], dim=1)
    torch.testing.assert_close(problem.solve(), exact, rtol=0, atol=1e-7)


def test_training_lowers_the_loss(network: HamiltonianNetwork) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    first = network.loss().item()
    for _ in range(100):
        optimizer.zero_grad()
        network.loss().backward()
        optimizer.step()
    assert network.loss().item() < 0.5 * first


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="points must be at least 2, got 1"):
        Oscillator(points=1)
    with pytest.raises(ConfigError, match="duration must be positive"):
        Oscillator(duration=0.0)
    with pytest.raises(ConfigError, match=r"dtype must be torch\.float32 or"):
        HamiltonianNetwork(dtype=torch.float16)
    with pytest.raises(ConfigError, match="width must be at least 1, got 0"):
        HamiltonianNetwork(width=0)
