# SPDX-License-Identifier: BSD-3-Clause
"""What only a GPU shows: streams, captures, waiting, sizes. Skipped where there is none;
KOOPFAST_REQUIRE_CUDA=1 makes that a failure (conftest.py)."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import cases
from koopfast import (
    ConfigError,
    KoopmanOperator,
    KoopmanTrainer,
    Partition,
    SnapshotBuffer,
    _blocks,
    _device,
    _ops,
    _torch_passes,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CUDA = torch.device("cuda")
# It says, once, that it does not see all that waits.
without_torchs_own_warning = pytest.mark.filterwarnings("ignore:Synchronization debug mode")


def whole(n):
    return Partition.from_segments([[(0, n)]], n)


def test_the_kernels_run_here():
    assert _device.usable(torch.empty(0, device=CUDA).device)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_a_large_block_is_summed_right_and_always_alike(dtype):
    snapshots = cases.random_walk(20, 300_007).to(CUDA, dtype)
    table, blocks = _blocks.BlockTable(whole(300_007)), torch.zeros(1, dtype=torch.int64)
    first, again = (
        _ops.snapshot_gram(snapshots, table, blocks, rows="increments") for _ in range(2)
    )
    expected = _torch_passes.snapshot_gram(snapshots, table, blocks, "increments")
    assert torch.equal(first, again)
    assert float((first - expected).abs().max() / expected.abs().max()) < 1e-12


@pytest.mark.parametrize("size", [1, 9, 200])
def test_operators_are_those_of_the_cpu(size):
    snapshots = cases.random_walk(16, 30 * size)
    partition = Partition.from_segments([[(b * size, size)] for b in range(30)], 30 * size)
    expected = KoopmanOperator.fit(snapshots, partition, rank=2)
    got = KoopmanOperator.fit(snapshots.to(CUDA), partition, rank=2)
    assert torch.equal(got.status, expected.status)
    horizons = [0, 1, 10, 0.5, float("inf")]
    assert torch.allclose(
        got.predict(horizons).cpu(), expected.predict(horizons), rtol=1e-6, equal_nan=True
    )


def test_another_stream_is_honoured():
    snapshots = cases.random_walk(8, 100_000).to(CUDA)
    expected = KoopmanOperator.fit(snapshots, rank=2).predict(3)
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        late = torch.empty_like(snapshots)
        torch.cuda._sleep(10_000_000)
        late.copy_(snapshots)  # what reads elsewhere than on this stream reads too soon
        got = KoopmanOperator.fit(late, rank=2).predict(3)
    other.synchronize()
    assert torch.equal(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_device_than_the_current_one_is_honoured():
    snapshots = cases.random_walk(8, 1000)
    operators = [KoopmanOperator.fit(snapshots.to(f"cuda:{i}"), rank=2) for i in (0, 1)]
    first, other = (operator.predict([3, 5]).cpu() for operator in operators)
    assert torch.cuda.current_device() == 0
    assert torch.equal(first, other)


@without_torchs_own_warning
def test_a_fit_waits_once_and_a_prediction_never():
    partition = Partition.from_segments([[(b * 200, 200)] for b in range(30)], 6000)
    snapshots = cases.random_walk(16, 6000).to(CUDA)
    out = torch.empty(2, 6000, dtype=torch.float64, device=CUDA)

    def fit():
        return KoopmanOperator.fit(snapshots, partition, rank=2)

    fit().predict([1, 4], out=out)  # takes the memory that the second time is there
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            operator = fit()
        assert len(waits) <= 1
        torch.cuda.set_sync_debug_mode("error")
        operator.predict([1, 4], out=out)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@without_torchs_own_warning
@pytest.mark.parametrize("offload", [False, True])
def test_recording_waits_for_nothing(offload):
    model = nn.Linear(50, 50).to(CUDA)
    buffer = SnapshotBuffer(model, capacity=6, stride=2, average=True, offload=offload)
    buffer.reserve()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(12):
            buffer.record()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(buffer.snapshots.to(CUDA), flat.expand(6, -1))


def test_a_captured_window_is_recorded_anew_at_each_replay():
    weight = nn.Parameter(torch.zeros(1000, device=CUDA))
    buffer = SnapshotBuffer([weight], capacity=3)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        weight.data.add_(1)  # (torch warns of an empty graph)
        with pytest.raises(ConfigError, match="reserve"):
            buffer.record()
    buffer = SnapshotBuffer([weight], capacity=3)
    buffer.reserve()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            with torch.no_grad():
                weight.add_(1)
            buffer.record()
    for replay in range(2):
        graph.replay()
        assert buffer.snapshots[:, 0].tolist() == [3.0 * replay + t for t in (1, 2, 3)]


def test_rows_begin_where_vector_loads_are_aligned():
    buffer = SnapshotBuffer([torch.zeros(1001, device=CUDA)], capacity=3)
    buffer.record()
    assert buffer.snapshots.stride(0) == 1024
    assert buffer.nbytes == buffer.nbytes_needed


def test_a_training_run_jumps_on_the_device():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 1)).to(CUDA)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = KoopmanTrainer(model, optimizer, window=8, stride=2, rank=3)
    x, y = torch.randn(256, 20, device=CUDA), torch.randn(256, 1, device=CUDA)

    def loss():
        return (model(x) - y).square().mean()

    begin = float(loss())
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        trainer.after_step(probe=loss)
    assert trainer.history.jumps
    assert float(loss()) < begin
