# SPDX-License-Identifier: BSD-3-Clause
"""Part of each optimizer step instead of all of it, where whole steps only swing to and fro.

Along a direction in which a step multiplies the distance from the valley's floor by λ, going the
share β of it multiplies by 1 + β (λ - 1): of the λ near -1 that a large learning rate gives,
nothing is left at β = 1/2, and what remains is the slow motion that an operator can predict. The
under-relaxation of fixed-point iterations, and what damping does in Anderson acceleration (Walker
& Ni 2011, section 2).
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor

from koopfast._attach import inside_another_step, runs_hooks, undisturbed
from koopfast.parameters import ParameterVector

__all__ = ["Relaxation"]

_DTYPES = (torch.float32, torch.float64)


class Relaxation:
    """Shortens steps of an optimizer, and measures whether its steps turn back.

    Args:
        optimizer: whose steps. One without step hooks is left alone.
        parameters: what it moves. Their dtype must be float32 or float64, one for all: shares of a
            step get lost in fewer bits.

    Attributes:
        part: share of each step that is gone, from now on.
        measuring: compare the steps that come with each other.
        increment: the last step that was measured, flat (n,), to be saved; None without one.
    """

    def __init__(self, optimizer: Any, parameters: ParameterVector) -> None:
        self.part = 1.0
        self.measuring = False
        self.increment: Tensor | None = None
        self._cosine = math.nan
        self._parameters = parameters
        self._row: Tensor | None = None  # the weights before the step that is going on
        self._views: list[Tensor] = []
        self._within = False
        alike = {p.dtype for p in parameters.parameters} == {parameters.dtype}
        #: whether steps can be shortened
        self.possible = runs_hooks(optimizer) and alike and parameters.dtype in _DTYPES
        if self.possible:
            me = weakref.ref(self)

            def hook(stepped: Any, *_: Any) -> None:
                relaxation = me()
                if relaxation is None or not relaxation._within:
                    return  # before the question below, which takes longer
                if not inside_another_step(stepped):
                    relaxation._end()

            handle = optimizer.register_step_post_hook(undisturbed(hook))
            weakref.finalize(self, handle.remove).atexit = False

    def turning(self) -> float:
        """Cosine between the last two steps that were measured; NaN without two. Forgets them.

        -1 where they cancel: the weights swing to and fro. Waits for the device.
        """
        cosine, self._cosine, self.increment = self._cosine, math.nan, None
        return cosine

    def begin(self) -> None:
        """The optimizer is about to step: note the weights, if they will be asked for."""
        self._within = self.possible and (self.part < 1 or self.measuring)
        if not self._within:
            return
        if self._row is None:
            vector = self._parameters
            self._row = torch.empty(vector.n, dtype=vector.dtype, device=vector.device)
            self._views = vector.views(self._row)
        self._parameters.read_into_views(self._views)

    @torch.no_grad()
    def _end(self) -> None:
        """It has stepped."""
        self._within = False
        if self.part < 1:
            torch._foreach_lerp_(self._parameters.tensors, self._views, 1 - self.part)
        if self.measuring:
            assert self._row is not None
            increment = self._parameters.read().sub_(self._row)
            if self.increment is not None:
                self._cosine = _cosine(self.increment, increment)
            self.increment = increment


def _cosine(one: Tensor, other: Tensor) -> float:
    lengths = torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other)
    return float(torch.dot(one, other) / lengths)
