# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the integrations share: a network, one batch, and the examples to run."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

# Snapshots at steps 2, 4, … : jumps after 12 and 24 steps, and mid-window at 9 or 20.
FAST: dict[str, Any] = {"window": 6, "stride": 2, "partition": "network", "rank": 3}


def network() -> nn.Sequential:
    """The same every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))


def data() -> tuple[Tensor, Tensor]:
    """One batch."""
    x = torch.linspace(-3, 3, 32).unsqueeze(1)
    return x, x.sin()


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def example(name: str) -> dict[str, Any]:
    """Run a file of examples/ and return what it defined."""
    torch.manual_seed(0)
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")
