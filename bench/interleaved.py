# SPDX-License-Identifier: BSD-3-Clause
"""Two ways to do the same work, timed in turns, so that a noisy machine is noisy to both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Work = Callable[[], Any]


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed_up(ours: Work, baseline: Work, *, rounds: int = 7) -> float:
    """Median of baseline over median of ours, after one round to warm up."""
    ours(), baseline()
    pairs = [(seconds(ours), seconds(baseline)) for _ in range(rounds)]
    return statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)


def run(benchmark: Any, ours: Work, *, baseline: Work | None = None, **info: Any) -> None:
    """Time `ours` with pytest-benchmark, and note its speed-up over `baseline` and the shapes."""
    benchmark.extra_info.update(info)
    if baseline is not None:
        benchmark.extra_info["speed_up"] = round(speed_up(ours, baseline), 2)
    benchmark.pedantic(ours, rounds=7, warmup_rounds=1, iterations=1)
    if "bytes" in info:
        rate = info["bytes"] / benchmark.stats.stats.median / 1e9
        benchmark.extra_info["GB/s"] = round(rate, 2)
