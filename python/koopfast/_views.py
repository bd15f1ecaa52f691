# SPDX-License-Identifier: BSD-3-Clause
"""Snapshots as native code reads them, and with how many threads."""

from __future__ import annotations

import os
import warnings
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from koopfast.errors import ConfigError

# (address, dtype code, m, n, row stride), as SnapshotView of tensor_view.h
View: TypeAlias = "tuple[int, int, int, int, int]"

# Tables of more bytes are sent without a detour through pinned memory, which torch then keeps.
_MOST_PINNED = 1 << 20
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_COMPLEX = (torch.complex64, torch.complex128)
_PROCESS = os.getpid()


def thread_count() -> int:
    """torch's thread count; one in a forked child, where the parent's OpenMP threads are missing
    and libgomp would wait for them for ever."""
    return torch.get_num_threads() if os.getpid() == _PROCESS else 1


def as_snapshots(snapshots: Tensor | NDArray[np.generic]) -> Tensor:
    """Snapshots as an (m, n) tensor with contiguous rows, without a copy where layout allows.

    Raises:
        ConfigError: not a matrix, not of a floating type, fewer than two snapshots, no weights.
    """
    if isinstance(snapshots, np.ndarray):
        if any(stride < 0 for stride in snapshots.strides) or not snapshots.dtype.isnative:
            snapshots = np.ascontiguousarray(snapshots, snapshots.dtype.newbyteorder("="))
        try:
            with warnings.catch_warnings():
                # koopfast only reads: a read-only array is as good as any.
                warnings.filterwarnings("ignore", message=".*not writable.*")
                tensor = torch.from_numpy(snapshots)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"snapshots: expected float16, float32, float64 or complex, got an array of "
                f"{snapshots.dtype}; convert it with numpy.ascontiguousarray(snapshots, float)"
            ) from error
    elif isinstance(snapshots, Tensor):
        tensor = snapshots.detach().resolve_neg().resolve_conj()
    else:
        raise ConfigError(
            f"snapshots: expected a torch tensor or numpy array (m, n), "
            f"got {type(snapshots).__name__}"
        )
    known = tensor.dtype in DTYPE_CODES or tensor.dtype in _COMPLEX
    if tensor.layout != torch.strided or tensor.is_meta or not known:
        kind = "" if tensor.layout == torch.strided else f"{tensor.layout} "
        raise ConfigError(
            f"snapshots: expected a dense float16, bfloat16, float32, float64, complex64 or "
            f"complex128 tensor, got {kind}{tensor.dtype} on {tensor.device}"
        )
    if tensor.dim() != 2:
        raise ConfigError(
            f"snapshots: expected shape (m, n), one recorded state a row, got {tuple(tensor.shape)}"
        )
    m, n = tensor.shape
    if m < 2 or n < 1:
        raise ConfigError(
            f"snapshots: expected at least 2 rows (recorded states) of at least 1 weight, "
            f"got shape ({m}, {n})"
        )
    usable = (n == 1 or tensor.stride(1) == 1) and tensor.stride(0) >= n
    return tensor if usable else tensor.contiguous()


def view(snapshots: Tensor) -> View:
    """What native code is told of them; the caller keeps them alive."""
    m, n = snapshots.shape
    return snapshots.data_ptr(), DTYPE_CODES[snapshots.dtype], m, n, max(n, snapshots.stride(0))


def sent(table: Tensor, device: torch.device | str) -> Tensor:
    """A table of the host's on a device, in the order of the current stream. The host does not wait
    for what this stream has yet to do, unless the table is large."""
    crosses = table.device.type == "cpu" and torch.device(device).type == "cuda"
    if not crosses or not 0 < table.nbytes <= _MOST_PINNED:
        return table.to(device)
    return table.pin_memory().to(device, non_blocking=True)
