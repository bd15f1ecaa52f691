# SPDX-License-Identifier: BSD-3-Clause
"""What a report was made on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

from koopfast.report._words import counted


def machine() -> list[str]:
    """What ran it: processor, cores, system, Python and torch (no names of hosts or users)."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        processor = found[1] if found else processor
    # Containers and batch systems often give fewer cores than the machine has.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    facts = [
        f"{processor}, {counted(cores, 'core')}",
        f"{platform.system()} {platform.machine()}",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}, {counted(torch.get_num_threads(), 'thread')}",
    ]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        facts.append(f"koopfast {importlib.metadata.version('koopfast')}")
    return facts
