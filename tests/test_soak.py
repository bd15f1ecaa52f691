# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from soak import growth, soak


@pytest.fixture
def no_collector_callbacks() -> Iterator[None]:
    """Hypothesis leaves one behind, and an interrupt that strikes there is reported as an error."""
    kept = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = kept


@pytest.mark.slow
@pytest.mark.usefixtures("no_collector_callbacks")
def test_twenty_seconds_of_random_faults_lose_nothing() -> None:
    result = soak(20.0, seed=0, kill=False)
    assert result["optimizer steps"] > 100
    assert result["jumps accepted"] > 0


def test_growth_is_that_of_the_late_samples() -> None:
    """What is taken at the start is no leak; what is taken steadily is."""
    start = [(float(t), 10**8 * min(t, 10)) for t in range(100)]
    leak = [(float(t), 10**6 * t) for t in range(100)]
    assert abs(growth(start)) < 1
    assert 70e6 < growth(leak) < 75e6
