# SPDX-License-Identifier: BSD-3-Clause
"""Devices to run on: the CPU, and CUDA where it is usable.

KOOPFAST_REQUIRE_CUDA=1 makes a run without a usable GPU fail instead of passing on the CPU alone.
KOOPFAST_TEST_DEVICES=elsewhere adds a device of host memory (second_device.py).
The clock by which jumps are held back decides in tests marked "clock" alone: all others must come
out the same on a machine of any speed.
KOOPFAST_TEST_THREADS=3 runs everything on as many threads (tests/sanitize.sh does).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest
import torch

# The networks of the tests are so small that a second thread costs more than it brings; what many
# threads must not change has tests of its own.
torch.set_num_threads(int(os.environ.get("KOOPFAST_TEST_THREADS", "1")))


def _devices() -> list[str]:
    usable = torch.cuda.is_available()
    if os.environ.get("KOOPFAST_REQUIRE_CUDA") == "1" and not usable:
        raise pytest.UsageError("KOOPFAST_REQUIRE_CUDA=1, but torch sees no usable CUDA device")
    others = os.environ.get("KOOPFAST_TEST_DEVICES", "").split()
    return ["cpu", *(["cuda"] if usable else []), *others]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "elsewhere":
        import second_device

        return second_device.device()
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _time_enough(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("clock") is None:
        monkeypatch.setattr("koopfast.controller._GRACE_SECONDS", math.inf)


@pytest.fixture
def on_device(device: torch.device) -> Iterator[torch.device]:
    """What the test makes lies on ``device`` unless it says where."""
    if device.type == "cpu":
        yield device
        return
    torch.set_default_device(device)
    try:
        yield device
    finally:
        torch.set_default_device(None)
