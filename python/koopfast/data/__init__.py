# SPDX-License-Identifier: BSD-3-Clause
"""Problems to train on: the MNIST digits and the nonlinear oscillator."""

from __future__ import annotations

from .mnist import DataError, Mnist, mnist
from .oscillator import HamiltonianNetwork, Oscillator

__all__ = ["DataError", "HamiltonianNetwork", "Mnist", "Oscillator", "mnist"]
