# SPDX-License-Identifier: BSD-3-Clause
"""The mean of the weights of late, where a run is at rest but for the noise of its batches.

The mean over time is what is left of a motion in the eigenspace of the eigenvalue 1, whatever turns
or decays around it (the mean ergodic theorem; DESIGN section 2): of noise that a jump cannot
predict away, it takes the larger part. Its memory is a share of all steps so far, the
polynomial-decay averaging of Shamir & Zhang (ICML 2013, section 3), so that it needs no budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from koopfast.controller import fall
from koopfast.errors import CheckpointError
from koopfast.parameters import ParameterVector

__all__ = ["WeightAverage"]

_SHARE = 20  # the memory is one in so many of all steps
_SAMPLES = 16  # of the weights in that time, if there are so many steps
_FIRST_LOOK = 24  # steps; before that, training falls faster than noise matters
_MOST = 1.0  # that one look says of the logarithm of the loss
_SOONER, _LATER = 1.5, 2.0  # times the steps so far: the next look, after one that it won or lost


class WeightAverage:
    """Follows the weights of a training.

    Args:
        parameters: whose mean; in float32 where they have fewer bits.
    """

    def __init__(self, parameters: ParameterVector) -> None:
        self._parameters = parameters
        wide = parameters.dtype.itemsize > 2
        self._dtype = parameters.dtype if wide else torch.float32
        self._alike = {p.dtype for p in parameters.parameters} == {self._dtype}
        self._mean: Tensor | None = None
        self._views: list[Tensor] = []
        self._samples = 0  # in the mean
        self._next_sample = 0  # steps
        self._last_sample = 0
        self._next_look = 0.0
        self._lead = 0.0
        self._looks = 0

    @property
    def mean(self) -> Tensor | None:
        """Flat (n,); None of fewer than two samples. Written to by the next one."""
        return self._mean if self._samples > 1 else None

    @property
    def lead(self) -> float:
        """By how much the loss's logarithm was lately lower at the mean than at the weights."""
        return self._lead

    @property
    def reserved(self) -> bool:
        """Whether there is room for the mean; until then none is followed."""
        return self._mean is not None

    def reserve(self) -> None:
        """Make room for it.

        Raises:
            MemoryError: there is none.
        """
        parameters = self._parameters
        try:
            self._mean = torch.empty(parameters.n, dtype=self._dtype, device=parameters.device)
        except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
            raise MemoryError(
                f"weight_average: expected room for {parameters.n} weights of {self._dtype} on "
                f"{parameters.device}, which it does not have"
            ) from error
        self._views = parameters.views(self._mean)

    def step(self, count: int) -> None:
        """The optimizer has taken so many steps, and one just now."""
        if count < self._next_sample:
            return
        memory = max(1.0, count / _SHARE)
        weight = 1 / (self._samples + 1)
        if self._samples > 0:
            weight = min(1.0, max(weight, (count - self._last_sample) / memory))
        self._add(weight)
        self._samples += 1
        self._last_sample = count
        self._next_sample = count + max(1, int(memory / _SAMPLES))

    def forget(self) -> None:
        """A jump was made: the next sample begins a new mean, which has the same noise to lose."""
        self._samples = self._next_sample = 0

    def start_over(self) -> None:
        """Nothing that was seen tells of the weights to come."""
        self.forget()
        self._lead, self._looks, self._next_look = 0.0, 0, 0.0

    def wants_look(self, count: int) -> bool:
        """Whether it is to be compared with the weights, after so many steps."""
        return count >= max(self._next_look, _FIRST_LOOK) and self._samples > 1

    def look(self, count: int, loss: float, at_mean: float) -> None:
        """The losses at the weights and at the mean, which loses where its own is not finite."""
        if math.isfinite(loss):
            lead = fall(loss, at_mean) if math.isfinite(at_mean) else -_MOST
            lead = min(_MOST, max(-_MOST, lead))
            self._lead = lead if self._looks == 0 else (self._lead + lead) / 2
            self._looks += 1
        self._next_look = (_SOONER if self._lead > 0 else _LATER) * count

    def state_dict(self) -> dict[str, Any]:
        """The state as numbers and a tensor."""
        return {
            "mean": self._mean.clone() if self._mean is not None and self._samples > 0 else None,
            "samples": self._samples,
            "next_sample": self._next_sample,
            "last_sample": self._last_sample,
            "next_look": self._next_look,
            "lead": self._lead,
            "looks": self._looks,
        }

    def load_state_dict(self, state: Any, *, elsewhere: bool = False) -> None:
        """Go on from :meth:`state_dict`; from None, begin anew.

        Args:
            state: as it was saved.
            elsewhere: of other parts of the parameters, so that its mean is of no use here.

        Raises:
            CheckpointError: it is malformed or of other parameters.
        """
        if state is None:
            return
        known = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(known):
            raise CheckpointError(f"state['average']: expected a dict of {sorted(known)}")
        for name in known:
            value = state[name]
            kind = (int, float) if isinstance(known[name], float) else int
            if name == "mean":
                continue
            number = isinstance(value, kind) and not isinstance(value, bool)
            least = -math.inf if name == "lead" else 0
            if not number or not math.isfinite(value) or value < least:
                raise CheckpointError(f"state['average'][{name!r}]: got {value!r}")
        mean = state["mean"]
        if mean is not None and not elsewhere:
            n = self._parameters.n
            if not isinstance(mean, Tensor) or (mean.shape, mean.dtype) != ((n,), self._dtype):
                raise CheckpointError(
                    f"state['average']['mean']: expected ({n},) of {self._dtype}, or None"
                )
            self.reserve()
            assert self._mean is not None
            self._mean.copy_(mean)
            self._samples, self._next_sample = state["samples"], state["next_sample"]
        self._last_sample = state["last_sample"]
        self._next_look = state["next_look"]
        self._lead, self._looks = state["lead"], state["looks"]

    def _add(self, weight: float) -> None:
        parameters, mean = self._parameters, self._mean
        assert mean is not None
        if self._samples == 0:
            parameters.read_into_views(self._views)
        elif self._alike:
            parameters.lerp_views(self._views, weight)
        else:
            now = torch.empty_like(mean)
            parameters.read_into(now)
            mean.lerp_(now, weight)
