# SPDX-License-Identifier: BSD-3-Clause
"""The global random streams as tensors and primitives, for checkpoints."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from koopfast.errors import CheckpointError

__all__ = ["check_random_state", "random_state", "set_random_state"]


def random_state() -> dict[str, Any]:
    """torch's streams on the CPU and all CUDA devices, Python's and numpy's legacy one."""
    kind, words, *rest = np.random.get_state()  # noqa: NPY002 - the stream that users share
    version, integers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(integers), gauss],
        "numpy": [kind, np.asarray(words).tolist(), *rest],
    }


def check_random_state(state: Any) -> None:
    """Raise CheckpointError unless ``state`` is of the kind that :func:`random_state` returns."""
    if not isinstance(state, Mapping) or set(state) != {"torch", "cuda", "python", "numpy"}:
        raise CheckpointError("checkpoint['random']: expected the streams save_checkpoint wrote")


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on from :func:`random_state`; of CUDA devices, those that there are."""
    torch.set_rng_state(state["torch"].cpu())
    for device, stream in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(stream.cpu(), device)
    version, integers, gauss = state["python"]
    random.setstate((version, tuple(integers), gauss))
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, np.array(words, dtype=np.uint32), *rest))  # noqa: NPY002
