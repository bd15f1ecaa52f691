# SPDX-License-Identifier: BSD-3-Clause
"""What an operator fit can be told: one set of fields and checks for operator and trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from koopfast._checks import check_choice, whole
from koopfast.errors import ConfigError

_CHOICES: dict[str, tuple[str, ...]] = {
    "observables": ("state", "increments"),
    "method": ("gram", "qr"),
    "unstable": ("clip", "keep"),
}


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The options of :meth:`koopfast.KoopmanOperator.fit`, which says what they mean.

    Raises:
        ConfigError: a field has a value that cannot work; the message names it.
    """

    observables: Literal["state", "increments"] = "increments"
    delays: int = 1
    rank: int | Literal["auto"] | None = "auto"
    tolerance: float | None = None
    method: Literal["gram", "qr"] = "gram"
    symmetric: bool = False
    unstable: Literal["clip", "keep"] = "clip"

    def __post_init__(self) -> None:
        for field, known in _CHOICES.items():
            check_choice(field, getattr(self, field), known)
        # Integers of other libraries become Python's own.
        object.__setattr__(self, "delays", whole("delays", self.delays, 1))
        if self.rank is not None and self.rank != "auto":
            object.__setattr__(self, "rank", whole("rank", self.rank, 1, ', or "auto" or None'))
        if not isinstance(self.symmetric, bool):
            raise ConfigError(f"symmetric: expected True or False, got {self.symmetric!r}")
        t: Any = self.tolerance
        if t is None:
            return
        if isinstance(t, bool) or not isinstance(t, (int, float)) or not 0 <= t < 1:
            raise ConfigError(
                "tolerance: expected a fraction of the largest singular value, at least 0 and "
                f"below 1, or None, got {t!r}"
            )

    @property
    def increments(self) -> bool:
        """Whether the observables are differences between snapshots."""
        return self.observables == "increments"

    @property
    def least_snapshots(self) -> int:
        """Snapshots that make one pair of observables: two, one more for a difference, one more
        for each delay beyond the first."""
        return self.delays + (2 if self.increments else 1)
