# SPDX-License-Identifier: BSD-3-Clause
"""Which of several processes speaks."""

from __future__ import annotations

import os

import torch.distributed as dist

__all__ = ["is_first_rank"]


def is_first_rank() -> bool:
    """True in the process of rank 0, and where there is only one process.

    Before the process group is there, the launcher's ``RANK`` says it.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") in ("", "0")
