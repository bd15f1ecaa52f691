# SPDX-License-Identifier: BSD-3-Clause
"""Ways to do work, timed in turns, so that a noisy machine is noisy to all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Work = Callable[[], Any]

# Longer than OpenBLAS and OpenMP keep idle threads spinning: up to a quarter of a second was seen.
_SETTLE = 0.3
_SHORT = 0.01


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(works: Sequence[Work], *, rounds: int, settle: float = 0) -> np.ndarray:
    """Seconds of each work in each round, (rounds, len(works)), after one round to warm up.

    `settle` seconds pass before each: a library's idle threads go on spinning for a while, and
    would be timed with the next library's work. What takes milliseconds is timed at its second
    call: the first is more one of waking threads and filling caches than of the work.
    """
    for work in works:
        work()

    def settled(work: Work) -> float:
        time.sleep(settle)
        first = seconds(work)
        return first if first > _SHORT else seconds(work)

    return np.array([[settled(work) for work in works] for _ in range(rounds)])


def speed_up(ours: Work, baseline: Work, *, rounds: int = 7, settle: float = _SETTLE) -> float:
    """Median of baseline over median of ours, after one round to warm up."""
    times = in_turns([ours, baseline], rounds=rounds, settle=settle)
    ours_seconds, baseline_seconds = np.median(times, axis=0)
    return float(baseline_seconds / ours_seconds)


def run(
    benchmark: Any, ours: Work, *, baseline: Work | None = None, rounds: int = 7, **info: Any
) -> None:
    """Time `ours` with pytest-benchmark, and note its speed-up over `baseline` and the shapes."""
    benchmark.extra_info.update(info)
    if baseline is not None:
        benchmark.extra_info["speed_up"] = round(speed_up(ours, baseline, rounds=rounds), 2)
    benchmark.pedantic(ours, rounds=rounds, warmup_rounds=1, iterations=1)
    if "bytes" in info:
        rate = info["bytes"] / benchmark.stats.stats.median / 1e9
        benchmark.extra_info["GB/s"] = round(rate, 2)


def against_peers(
    benchmark: Any,
    ours: Work,
    peers: dict[str, Work],
    *,
    target: float,
    rounds: int = 7,
    share: float = 1,
) -> float:
    """Notes how many times faster `ours` is than the fastest of the named peers, and the aim.

    Each round times all of them; the figure is the median over rounds of the ratio within one.
    `share` is how much of the work the peers do, where all of it would take too long.
    """
    times = in_turns([ours, *peers.values()], rounds=rounds, settle=_SETTLE)
    medians = np.median(times[:, 1:], axis=0) / share
    fastest = int(np.argmin(medians))
    low, reached, high = np.quantile(times[:, 1 + fastest] / times[:, 0] / share, [0.25, 0.5, 0.75])
    benchmark.extra_info.update(
        peer=list(peers)[fastest],
        speed_up=round(float(reached), 2),
        quartiles=[round(float(low), 2), round(float(high), 2)],
        target=target,
        reached=bool(reached >= target),
        peer_ms={
            name: round(1e3 * float(median), 2) for name, median in zip(peers, medians, strict=True)
        },
    )
    return float(reached)
