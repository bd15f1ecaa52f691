# SPDX-License-Identifier: BSD-3-Clause
"""Numbers in the words of a report."""

from __future__ import annotations

import math


def counted(count: int, noun: str) -> str:
    """'1 core', '2 cores'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def number(value: float | None) -> str:
    """Four digits; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"
