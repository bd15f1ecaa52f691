# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels, run on the host thread by thread, against the CPU's results.

What a GPU alone can show (memory order, alignment, speed) is left to the runs that have one.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
import cuda_on_host
from cases import LinearSystem, Mode, pair, real
from compare import assert_same_spectrum
from koopfast import (
    KoopmanOperator,
    KoopmanWarning,
    MomentBuffer,
    Partition,
    _blocks,
    _device,
    _device_fit,
    _native,
    _ops,
    _torch_passes,
)

ROWS = ("states", "increments", "increments_and_last")


@pytest.fixture(params=["forwards", "backwards"])
def kernels(request, monkeypatch):
    """What lies on the CPU counts as being on a device; threads run in either order."""
    module = cuda_on_host.module()
    module.run_backwards(request.param == "backwards")
    monkeypatch.setattr(_device, "native", module)
    monkeypatch.setattr(_device, "usable", lambda device: True)
    monkeypatch.setattr(_device, "stream", lambda device: 0)
    monkeypatch.setattr(_device, "current", lambda device: nullcontext())
    return module


def on_cpu(monkeypatch, work):
    with monkeypatch.context() as patch:
        patch.setattr(_device, "usable", lambda device: False)
        return work()


def gram(snapshots, partition, rows):
    table = _blocks.BlockTable(partition)
    return _ops.snapshot_gram(snapshots, table, torch.arange(partition.n_blocks), rows=rows)


def assert_same_grams(monkeypatch, snapshots, partition, rows):
    got = gram(snapshots, partition, rows)
    expected = on_cpu(monkeypatch, lambda: gram(snapshots, partition, rows))
    scale = expected.diagonal(dim1=1, dim2=2).amax(1)[:, None, None].clamp(min=1e-300)
    assert float(((got - expected).abs() / scale).max()) <= 1e-14
    assert torch.equal(got, got.mT)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("m", [2, 16, 17, 33, 70])
def test_gram_matrices_are_those_of_the_cpu(m, rows, kernels, monkeypatch):
    assert_same_grams(monkeypatch, cases.random_walk(m, 100), cases.mixed(100), rows)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("m", [9, 32])
def test_gram_matrices_of_every_dtype(m, dtype, kernels, monkeypatch):
    snapshots = cases.random_walk(m, 100, dtype)
    assert_same_grams(monkeypatch, snapshots, cases.mixed(100), "increments")


def test_blocks_of_many_segments_and_of_many_chunks(kernels, monkeypatch):
    snapshots = cases.random_walk(3, 4003)
    large = Partition.from_segments([[(0, 3)], [(3, 4000)]], 4003)
    for partition in (cases.interleaved(4003, 3), large):
        assert_same_grams(monkeypatch, snapshots, partition, "increments")


def test_rows_that_are_not_aligned_are_read_one_by_one(kernels, monkeypatch):
    wide = cases.random_walk(8, 203, torch.float32)
    assert_same_grams(monkeypatch, wide[:, 1:180], cases.mixed(179), "increments")


@pytest.mark.parametrize("segments", ["runs", "scattered"])
def test_places_beyond_two_to_the_31_are_read_and_written(segments, kernels, monkeypatch):
    # (Memory that nobody touches is never taken.)
    far, size = 2**31, 150
    snapshots = torch.empty(3, far + size, dtype=torch.bfloat16)
    own = [(far, size)] if segments == "runs" else [(far + i, 1) for i in range(size)]
    table = _blocks.BlockTable(Partition.from_segments([[(0, far)], own], far + size))
    snapshots[:, far:] = cases.random_walk(3, size, torch.bfloat16)
    block, out = torch.tensor([1]), torch.empty(1, far + size, dtype=torch.bfloat16)
    powers = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    base = torch.ones(1, 1, dtype=torch.float64)

    def both():
        _ops._combine(snapshots, table, block, True, (powers, torch.zeros_like(block), base), out)
        return _ops.snapshot_gram(snapshots, table, block, rows="increments"), out[0, far:].clone()

    (got, combined), (expected, wanted) = both(), on_cpu(monkeypatch, both)
    assert torch.allclose(got, expected, rtol=1e-12, atol=0)
    assert torch.equal(combined, wanted)


@pytest.mark.parametrize("m", [2, 32, 100])
@pytest.mark.parametrize("size", [0, 1, 1024, 10**6, 10**8, 2**40])
def test_chunks_hold_each_column_once_and_keep_a_device_busy(size, m):
    plan = _device.ChunkPlan.of(torch.tensor([size]), torch.tensor([0]), m, torch.device("cpu"))
    step, chunks = int(plan.steps[0]), len(plan.owners)
    assert (chunks - 1) * step < max(size, 1) <= chunks * step
    assert step < 2**31  # windows.cuh counts a chunk's columns in 32 bits
    assert chunks <= 2**14 + 1  # (m, m) sums each
    if size >= 10**6 and m <= 32:
        assert chunks >= 900


def test_the_tensor_cores_layout_gives_the_same(monkeypatch, kernels):
    snapshots = cases.random_walk(34, 100, torch.float32)
    plain = gram(snapshots, cases.mixed(100), "increments")
    cores = cuda_on_host.module("-DKOOPFAST_EMULATED_TENSOR_CORES")
    monkeypatch.setattr(_device, "native", cores)
    assert torch.allclose(
        gram(snapshots, cases.mixed(100), "increments"), plain, rtol=1e-13, atol=0
    )


@st.composite
def partitions(draw):
    """Blocks of random segments over n weights, in any order."""
    cuts = draw(st.lists(st.integers(1, 40), min_size=2, max_size=12))
    n, pieces, start = sum(cuts), [], 0
    for length in cuts:
        pieces.append((start, length))
        start += length
    owners = [draw(st.integers(0, 3)) for _ in pieces]
    blocks = [[p for p, o in zip(pieces, owners, strict=True) if o == b] for b in range(4)]
    return Partition.from_segments([b for b in blocks if b], n)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(partition=partitions(), m=st.integers(2, 20), horizons=st.integers(1, 10), data=st.data())
def test_random_shapes(partition, m, horizons, data):
    patch = pytest.MonkeyPatch()
    try:
        patch.setattr(_device, "native", cuda_on_host.module())
        patch.setattr(_device, "usable", lambda device: True)
        patch.setattr(_device, "stream", lambda device: 0)
        patch.setattr(_device, "current", lambda device: nullcontext())
        dtype = data.draw(st.sampled_from(cases.DTYPES))
        snapshots = cases.random_walk(m, partition.n, dtype)
        assert_same_grams(patch, snapshots, partition, data.draw(st.sampled_from(ROWS)))
        assert_same_combination(patch, snapshots, partition, horizons)
    finally:
        patch.undo()


def combination(snapshots, partition, dual, powers, base, fill):
    table = _blocks.BlockTable(partition)
    blocks = torch.arange(partition.n_blocks)
    m, k = snapshots.shape[0], base.shape[1]
    rows = torch.where(torch.tensor(dual), m, table.sizes)
    offsets = (rows * k).cumsum(0) - rows * k
    out = torch.full((k, partition.n), fill, dtype=snapshots.dtype)
    own = powers[: int((rows * k).sum())]
    _ops._combine(snapshots, table, blocks, dual, (own, offsets, base), out)
    return out


def assert_same_combination(monkeypatch, snapshots, partition, k):
    generator = torch.Generator().manual_seed(k)
    most = k * max(snapshots.shape[0] * partition.n_blocks, partition.n)
    powers = torch.randn(most, dtype=torch.float64, generator=generator)
    base = torch.randn(partition.n_blocks, k, dtype=torch.float64, generator=generator)
    base[0] = 0
    for dual in (True, False):
        args = (snapshots, partition, dual, powers, base)
        got = combination(*args, float("nan"))  # what is not written shows
        expected = on_cpu(monkeypatch, lambda: combination(*args, 0.0))  # noqa: B023
        tolerance = 1e-13 if snapshots.dtype == torch.float64 else 1e-6
        if snapshots.dtype in (torch.float16, torch.bfloat16):
            tolerance = 1e-2
        difference = (got - expected).double().abs()
        assert float(difference.max()) <= tolerance * float(expected.double().abs().max())


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 4, 5, 9])
def test_combinations_are_those_of_the_cpu(k, dtype, kernels, monkeypatch):
    snapshots = cases.random_walk(7, 200, dtype)
    assert_same_combination(monkeypatch, snapshots, cases.mixed(200), k)


def test_what_does_not_move_keeps_its_bits(kernels):
    snapshots = torch.zeros(3, 40)
    snapshots[:, ::2] = -0.0
    partition = Partition.from_segments([[(0, 40)]], 40)
    base = torch.ones(1, 2, dtype=torch.float64)
    out = combination(snapshots, partition, True, torch.zeros(6, dtype=torch.float64), base, 1.0)
    assert torch.equal(out.view(torch.int32), snapshots[-1:].view(torch.int32).expand(2, -1))


def test_a_bad_weight_marks_its_block_alone(kernels):
    snapshots = cases.random_walk(6, 60)
    snapshots[2, 25] = float("nan")
    partition = Partition.from_segments([[(0, 20)], [(20, 20)], [(40, 20)]], 60)
    grams = gram(snapshots, partition, "increments")
    assert grams.isfinite().all(dim=2).all(dim=1).tolist() == [True, False, True]


def known(m, blocks, size):
    """Blocks of different decaying modes, (m, blocks * size), and their partition."""
    segments = [[(b * size, size)] for b in range(blocks)]
    partition = Partition.from_segments(segments, blocks * size)
    if size == 1:
        return cases.random_walk(m, blocks), partition
    rows = [cases.SYSTEMS[b % 6].states(size, range(m), offset=1.0, seed=b) for b in range(blocks)]
    return torch.cat(rows, dim=1), partition


FITS = (
    {"rank": 3},
    {"rank": 3, "observables": "state", "unstable": "damp"},
    {"rank": None, "tolerance": 1e-5, "ridge": 1e-3},
    {"rank": 0.999, "symmetric": True},
    {"rank": 3, "delays": 2, "unstable": "keep"},
    {"rank": "gavish-donoho", "observables": "state", "symmetric": True, "ridge": 0.1},
)


@pytest.mark.parametrize("size", [1, 4, 40], ids=["single", "primal", "dual"])
@pytest.mark.parametrize("options", FITS, ids=str)
def test_fit_and_prediction_are_those_of_the_cpu(options, size, kernels, monkeypatch):
    snapshots, partition = known(14, 7, size)
    snapshots[3, -1] = float("nan")

    def fit():
        operator = KoopmanOperator.fit(snapshots, partition, **options)
        return operator, operator.predict([0, 1, 7, 40, 2.5, math.inf])

    (got, predicted), (expected, wanted) = fit(), on_cpu(monkeypatch, fit)
    assert type(got._fit) is not type(expected._fit) or size == 1
    assert torch.equal(got.status, expected.status)
    assert torch.equal(got.rank, expected.rank)
    scale = expected.singular_values.nan_to_num().max()
    assert torch.allclose(
        got.singular_values, expected.singular_values, rtol=0, atol=1e-7 * scale, equal_nan=True
    )
    assert torch.equal(predicted.isnan(), wanted.isnan())
    assert torch.allclose(predicted, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("unstable", ["clip", "damp"])
@pytest.mark.parametrize("size", [12, 40], ids=["primal", "dual"])
def test_growing_blocks_are_bounded_like_the_cpus(size, unstable, kernels, monkeypatch):
    # Modes that grow, a defective pair of them, rotations, and a random walk, of rank 8.
    growing = LinearSystem("", (pair(1.05, 0.4), real(1.2), real(0.5), pair(0.9, 2.0)))
    defective = LinearSystem("", (Mode("jordan", 1.1), real(0.3)), defective=True)
    rows = [s.states(size, range(14), seed=1) for s in (growing, defective)]
    rows.append(cases.random_walk(14, size, seed=2))
    snapshots = torch.cat(rows, dim=1)
    partition = Partition.from_segments([[(b * size, size)] for b in range(3)], 3 * size)
    for ranks in (None, 5):
        options = {"rank": ranks, "unstable": unstable, "observables": "state", "tolerance": 1e-6}

        def fit(options=options):
            return KoopmanOperator.fit(snapshots, partition, **options)

        got, expected = fit(), on_cpu(monkeypatch, fit)
        assert torch.equal(got.rank, expected.rank)
        for block in range(3):
            assert_same_spectrum(
                got.eigenvalues_of(block), expected.eigenvalues_of(block), tolerance=1e-4
            )
        assert torch.allclose(got.predict([1, 5, 30]), expected.predict([1, 5, 30]), rtol=1e-4)


def test_what_the_qr_algorithm_leaves_goes_to_the_host(kernels, monkeypatch):
    snapshots, partition = known(14, 6, 40)
    monkeypatch.setattr(_device_fit, "_bound_spectra", lambda *arguments: None)

    def predict():
        return KoopmanOperator.fit(snapshots, partition, rank=3).predict([1, 20])

    assert torch.allclose(predict(), on_cpu(monkeypatch, predict), rtol=1e-8)


def test_a_moment_buffer_folds_on_the_device(kernels, monkeypatch):
    snapshots, partition = known(60, 3, 4)

    def recorded(observables):
        buffer = MomentBuffer(
            None, partition, observables=observables, delays=2, held_out=4, dtype=torch.float64
        )
        for row in snapshots:
            buffer.record(row)
        return buffer

    for observables in ("increments", "state"):
        got = recorded(observables)
        expected = on_cpu(monkeypatch, lambda: recorded(observables))  # noqa: B023
        assert torch.allclose(got._moments.lags, expected._moments.lags, rtol=1e-12, atol=1e-13)
        assert torch.allclose(got._moments.sums, expected._moments.sums, rtol=1e-12, atol=1e-13)


def test_an_error_says_where_and_what_and_is_over(kernels):
    snapshots, partition = cases.random_walk(5, 20), cases.mixed(20)
    kernels.fail_next()
    said = r"snapshot_svd\.cu:\d+: CUDA error cudaErrorInvalidConfiguration: invalid config"
    with pytest.raises(RuntimeError, match=said):
        gram(snapshots, partition, "states")
    assert gram(snapshots, partition, "states").isfinite().all()


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["75-real", "80-real", "90-real", "120"], (9, 0), True),
        (["75-real", "80-real", "90-real", "120"], (8, 9), True),
        (["75-real", "80-real", "90-real", "120"], (7, 0), False),
        (["75", "80-real", "90-real", "120"], (11, 0), True),
        (["80-real"], (9, 0), False),
        (["80"], (9, 0), True),
        (["80-virtual"], (8, 6), True),
        (["80-virtual"], (7, 5), False),
        (["90a"], (9, 0), True),
        (["90a"], (10, 0), False),
        (["100f"], (10, 3), True),
        (["100f"], (12, 0), False),
        ([], (9, 0), False),
    ],
)
def test_which_devices_a_build_runs_on(built, capability, runs):
    assert _device.runs_on(built, capability) == runs


def test_plain_torch_stands_in_for_the_kernels(monkeypatch):
    snapshots = cases.random_walk(7, 120, torch.float32)
    partition = cases.mixed(120)
    table, blocks = _blocks.BlockTable(partition), torch.arange(partition.n_blocks)
    monkeypatch.setattr(_torch_passes, "_TILE", 7 * 50)
    for rows in ROWS:
        got = _torch_passes.snapshot_gram(snapshots, table, blocks, rows)
        assert torch.allclose(got, gram(snapshots, partition, rows), rtol=1e-12, atol=1e-12)
    operator = KoopmanOperator.fit(snapshots, partition, rank=2)
    expected = operator.predict([0, 1, 9])
    out = torch.empty_like(expected)
    for form in (True, False):
        chosen = torch.nonzero(operator._fitted.dual == form).flatten()
        powers = _ops.operator_power(
            operator._fitted, chosen, torch.tensor([0.0, 1.0, 9.0]).double()
        )
        _torch_passes.combine(snapshots, table, chosen, form, powers, out)
    assert torch.allclose(out, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(out[0], snapshots[-1])


def test_where_there_is_no_driver_the_runtime_that_is_linked_in_says_so():
    if not _native.cuda_compiled or not (reason := _native.cuda_failure(0)):
        pytest.skip("built without CUDA, or a device is there")
    assert reason.startswith("cudaError")
    with pytest.raises(RuntimeError, match=r"device\.cu:\d+: CUDA error cudaError\w+: .+"):
        _native.cuda_use(0)


def test_the_runtime_that_is_linked_in_is_told_of_the_current_device(monkeypatch):
    told = []
    monkeypatch.setattr(_device, "native", SimpleNamespace(cuda_use=told.append))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    with _device.current(torch.device("cuda:3")):
        assert told == [3]


@pytest.mark.parametrize(
    ("capability", "failure", "said"),
    [
        ((6, 1), "", "compute capability 6.1"),
        ((9, 0), "cudaErrorInsufficientDriver", "Insufficient"),
    ],
)
def test_a_device_that_the_kernels_do_not_run_on_is_warned_of_once(
    capability, failure, said, monkeypatch
):
    native = SimpleNamespace(
        cuda_compiled=True,
        build_info=lambda: {"cuda_architectures": "75-real 80-real 90-real 120"},
        cuda_failure=lambda index: failure,
    )
    monkeypatch.setattr(_device, "native", native)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    _device._usable.cache_clear()
    try:
        with pytest.warns(KoopmanWarning, match=said):
            assert not _device.usable(torch.device("cuda:0"))
        assert not _device.usable(torch.device("cuda:0"))  # a second warning would be an error
    finally:
        _device._usable.cache_clear()
