# SPDX-License-Identifier: BSD-3-Clause
"""What an operator fit can be told: one set of fields and checks for operator and trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, SupportsIndex

from koopfast._checks import check_choice, whole
from koopfast.errors import ConfigError

_CHOICES: dict[str, tuple[str, ...]] = {
    "observables": ("state", "increments", "auto"),
    "method": ("gram", "qr"),
    "estimator": ("least_squares", "forward_backward", "total_least_squares", "auto"),
    "unstable": ("clip", "slow", "damp", "keep"),
}


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The options of :meth:`koopfast.KoopmanOperator.fit`, which says what they mean.

    Raises:
        ConfigError: a field has a value that cannot work; the message names it.
    """

    observables: Literal["state", "increments", "auto"] = "increments"
    delays: int | Literal["auto"] = 1
    block_average: int | Literal["auto"] = 1
    rank: int | float | Literal["auto", "gavish-donoho"] | None = "auto"
    tolerance: float | None = None
    method: Literal["gram", "qr"] = "gram"
    ridge: float = 0.0
    symmetric: bool = False
    estimator: Literal["least_squares", "forward_backward", "total_least_squares", "auto"] = (
        "least_squares"
    )
    unstable: Literal["clip", "slow", "damp", "keep"] = "clip"

    def __post_init__(self) -> None:
        for field, known in _CHOICES.items():
            check_choice(field, getattr(self, field), known)
        # Integers of other libraries become Python's own.
        for field in ("delays", "block_average"):
            value = getattr(self, field)
            if value != "auto":
                object.__setattr__(self, field, whole(field, value, 1, ' or "auto"'))
        object.__setattr__(self, "rank", _rank(self.rank))
        if not isinstance(self.symmetric, bool):
            raise ConfigError(f"symmetric: expected True or False, got {self.symmetric!r}")
        object.__setattr__(self, "ridge", _ridge(self.ridge))
        self._check_estimator()
        if self.unstable == "slow" and not self.chosen:
            raise ConfigError(
                'unstable: "slow" is for operators that are chosen by what they predicted; pass '
                'auto=True, or delays="auto", or another of "clip", "damp", "keep"'
            )
        t: Any = self.tolerance
        if t is None:
            return
        if isinstance(t, bool) or not isinstance(t, (int, float)) or not 0 <= t < 1:
            raise ConfigError(
                "tolerance: expected a fraction of the largest singular value, at least 0 and "
                f"below 1, or None, got {t!r}"
            )

    def _check_estimator(self) -> None:
        if self.symmetric and self.estimator != "least_squares":
            raise ConfigError(
                "estimator: a self-adjoint operator (symmetric=True) is fitted by "
                f'"least_squares" only, got {self.estimator!r}; leave out one of the two'
            )
        if self.ridge > 0 and self.estimator == "forward_backward":
            raise ConfigError(
                'ridge: expected 0 with estimator="forward_backward", where what it takes from '
                f"the forward operator the backward one gives back, got {self.ridge!r}"
            )

    @property
    def increments(self) -> bool:
        """Whether the observables are differences between snapshots, or may be."""
        return self.observables != "state"

    @property
    def chosen(self) -> tuple[str, ...]:
        """The fields beside ``rank`` that are to be chosen from the data."""
        fields = ("observables", "delays", "block_average", "estimator")
        return tuple(field for field in fields if getattr(self, field) == "auto")

    def check_given(self, case: str) -> None:
        """Refuse what does not go with ``case``: averages, and any choice beside the rank.

        Raises:
            ConfigError: a field is "auto", or ``block_average`` is not 1.
        """
        for field in self.chosen:
            raise ConfigError(
                f'{field}: {case}, only rank can be "auto", got {field}="auto"; choose a value'
            )
        if self.block_average != 1:
            raise ConfigError(f"block_average: {case}, expected 1, got {self.block_average!r}")

    @property
    def least_snapshots(self) -> int:
        """Snapshots that make one pair of observables: two, one more for a difference, one more
        for each delay beyond the first; as many times that as are averaged."""
        return _least(self.block_average) * (_least(self.delays) + (2 if self.increments else 1))


def _least(value: int | str) -> int:
    return value if isinstance(value, int) else 1


def _ridge(value: Any) -> float:
    is_number = not isinstance(value, bool) and isinstance(value, Real)
    number = float(value) if is_number else math.nan
    if not 0 <= number < math.inf:
        raise ConfigError(
            "ridge: expected a finite multiple of the largest squared singular value, at least 0, "
            f"got {value!r}"
        )
    return number


def _rank(value: Any) -> Any:
    """A rank, or a rule for it, as Python's own number, string or None."""
    if value is None or value in ("auto", "gavish-donoho"):
        return value
    if isinstance(value, Real) and not isinstance(value, SupportsIndex) and 0 < float(value) < 1:
        return float(value)
    hint = ', a fraction of the energy between 0 and 1, "auto", "gavish-donoho" or None'
    return whole("rank", value, 1, hint)
