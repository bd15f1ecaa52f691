# SPDX-License-Identifier: BSD-3-Clause
# Addresses are data_ptr()s; what they must point to is said in cpp/*.h, and `_ops.py` makes it.
from typing import TypeAlias

__all__ = [
    "build_info",
    "combine",
    "cuda_bound_spectra",
    "cuda_bound_spectra_workspace",
    "cuda_combine",
    "cuda_compiled",
    "cuda_failure",
    "cuda_fold_moments",
    "cuda_operator_fit",
    "cuda_operator_fit_workspace",
    "cuda_operator_power",
    "cuda_operator_power_workspace",
    "cuda_single_weight_fit",
    "cuda_single_weight_predict",
    "cuda_snapshot_gram",
    "cuda_snapshot_moments",
    "cuda_use",
    "fold_moments",
    "gram_svd",
    "isa",
    "moment_fit",
    "operator_bound",
    "operator_fit",
    "operator_fit_grams",
    "operator_fit_moments",
    "operator_fit_primal",
    "operator_power",
    "operator_spectrum",
    "single_weight_fit",
    "single_weight_predict",
    "snapshot_gram",
    "snapshot_moments",
    "snapshot_qr",
]

cuda_compiled: bool

# (address, dtype code, m, n, row stride), as SnapshotView of tensor_view.h
_View: TypeAlias = tuple[int, int, int, int, int]
# As FitOptions of operator_fit.h
_Options: TypeAlias = tuple[bool, int, int, int, int, float, float, float, int, int, bool]

# As MomentStream of moment_stream.h: two views, folded, increments, delays, four addresses
_Stream: TypeAlias = tuple[_View, _View, int, bool, int, int, int, int, int]

# As ChunkPlan of chunk_plan.h: five addresses, chunks, blocks of several chunks
_Plan: TypeAlias = tuple[int, int, int, int, int, int, int]

def build_info() -> dict[str, str]: ...
def isa() -> str: ...
def snapshot_gram(
    snapshots: _View,
    table: tuple[int, ...],
    blocks: int,
    count: int,
    rows: int,
    grams: int,
    threads: int,
) -> None: ...
def gram_svd(
    grams: int, sizes: int, count: int, m: int, rows: int, sigma: int, threads: int
) -> None: ...
def snapshot_qr(
    snapshots: _View,
    table: tuple[int, ...],
    blocks: int,
    count: int,
    rows: int,
    coordinates: int,
    sigma: int,
    threads: int,
) -> None: ...
def operator_fit(
    snapshots: _View,
    table: tuple[int, ...],
    blocks: int,
    count: int,
    dual: bool,
    coordinates: int,
    options: _Options,
    arrays: tuple[int, ...],
    threads: int,
) -> None: ...
def snapshot_moments(
    snapshots: _View,
    table: tuple[int, ...],
    blocks: int,
    count: int,
    increments: bool,
    delays: int,
    only_pairs: bool,
    moment_offsets: int,
    moments: int,
    latest_offsets: int,
    latest: int,
    threads: int,
) -> None: ...
def operator_fit_moments(
    moments: int,
    moment_offsets: int,
    latest: int,
    latest_offsets: int,
    sizes: int,
    count: int,
    pairs: int,
    options: _Options,
    arrays: tuple[int, ...],
    threads: int,
) -> None: ...
def operator_fit_primal(
    snapshots: _View,
    table: tuple[int, ...],
    blocks: int,
    count: int,
    options: _Options,
    arrays: tuple[int, ...],
    threads: int,
) -> None: ...
def operator_fit_grams(
    grams: int,
    sizes: int,
    count: int,
    m: int,
    options: _Options,
    arrays: tuple[int, ...],
    threads: int,
) -> None: ...
def operator_bound(
    arrays: tuple[int, ...], rows: int, count: int, unstable: int, threads: int
) -> None: ...
def operator_spectrum(arrays: tuple[int, ...], count: int, threads: int) -> None: ...
def single_weight_fit(
    snapshots: _View,
    increments: bool,
    ridge: float,
    unstable: int,
    squares: int,
    factors: int,
    threads: int,
) -> None: ...
def single_weight_predict(
    snapshots: _View,
    increments: bool,
    squares: int,
    factors: int,
    horizons: int,
    n_horizons: int,
    out: int,
    out_stride: int,
    threads: int,
) -> None: ...
def operator_power(
    arrays: tuple[int, ...],
    row_counts: int,
    count: int,
    dual: bool,
    horizons: int,
    n_horizons: int,
    value_offsets: int,
    values: int,
    base: int,
    threads: int,
) -> None: ...
def combine(
    snapshots: _View,
    table: tuple[int, ...],
    blocks: int,
    count: int,
    dual: bool,
    base: int,
    value_offsets: int,
    values: int,
    n_horizons: int,
    out: int,
    out_stride: int,
    threads: int,
) -> None: ...
def fold_moments(
    stream: _Stream, table: tuple[int, ...], n_blocks: int, until: int, threads: int
) -> None: ...
def moment_fit(
    stream: _Stream,
    table: tuple[int, ...],
    n_blocks: int,
    tail: int,
    options: _Options,
    arrays: tuple[int, ...],
    threads: int,
) -> None: ...
def cuda_failure(device: int) -> str: ...
def cuda_use(device: int) -> None: ...
def cuda_snapshot_gram(
    snapshots: _View,
    table: tuple[int, ...],
    blocks: int,
    plan: _Plan,
    rows: int,
    grams: int,
    partials: int,
    stream: int,
) -> None: ...
def cuda_combine(
    snapshots: _View,
    table: tuple[int, ...],
    blocks: int,
    plan: _Plan,
    dual: bool,
    base: int,
    value_offsets: int,
    values: int,
    n_horizons: int,
    out: int,
    out_stride: int,
    stream: int,
) -> None: ...
def cuda_operator_fit_workspace(order: int) -> int: ...
def cuda_operator_fit(
    fits: tuple[bool, int, int, int, int, int, int, int, int, int],
    options: _Options,
    arrays: tuple[int, ...],
    workspace: int,
    teams: int,
    stream: int,
) -> None: ...
def cuda_bound_spectra_workspace(most_rank: int) -> int: ...
def cuda_bound_spectra(
    arrays: tuple[int, ...],
    rows: int,
    count: int,
    unstable: int,
    most_rank: int,
    workspace: int,
    teams: int,
    stream: int,
) -> None: ...
def cuda_operator_power_workspace(rank: int, n_horizons: int) -> int: ...
def cuda_operator_power(
    arrays: tuple[int, ...],
    row_counts: int,
    count: int,
    dual: bool,
    horizons: int,
    n_horizons: int,
    value_offsets: int,
    values: int,
    base: int,
    most_rank: int,
    workspace: int,
    teams: int,
    stream: int,
) -> None: ...
def cuda_snapshot_moments(
    snapshots: _View,
    table: tuple[int, ...],
    blocks: int,
    count: int,
    increments: bool,
    delays: int,
    moment_offsets: int,
    moments: int,
    latest_offsets: int,
    latest: int,
    stream: int,
) -> None: ...
def cuda_fold_moments(
    stream: _Stream, table: tuple[int, ...], n_blocks: int, until: int, on: int
) -> None: ...
def cuda_single_weight_fit(
    snapshots: _View,
    increments: bool,
    ridge: float,
    unstable: int,
    squares: int,
    factors: int,
    stream: int,
) -> None: ...
def cuda_single_weight_predict(
    snapshots: _View,
    increments: bool,
    squares: int,
    factors: int,
    horizons: int,
    n_horizons: int,
    out: int,
    out_stride: int,
    stream: int,
) -> None: ...
