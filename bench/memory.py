# SPDX-License-Identifier: BSD-3-Clause
"""Peak memory of a call: resident pages over those resident before it (Linux).

Resident memory, not Python's or torch's own accounts, because most of the workspace is the native
code's. Free pages are given back first, or the call would find its workspace there already.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from interleaved import Work

_STATUS = Path("/proc/self/status")


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def peak_bytes(work: Work) -> int:
    """Most bytes resident at once during the call, beyond those before it; its result included."""
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest mark so far
    result = work()
    peak = _resident("VmHWM:")
    del result
    return max(0, peak - before)
