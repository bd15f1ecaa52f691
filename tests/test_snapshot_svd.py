# SPDX-License-Identifier: BSD-3-Clause
"""The factorisation of each block's snapshots, against torch's SVD of the same columns."""

from __future__ import annotations

import pytest
import torch

import cases
from compare import on_threads
from koopfast import Partition, _blocks, _ops, _reference

METHODS = ("gram", "qr")
# What each method keeps of singular values, relative to the largest.
ACCURACY = {"gram": 3e-8, "qr": 1e-13}


def factor(snapshots, partition, *, rows="increments", method="gram"):
    table = _blocks.BlockTable(partition)
    blocks = torch.arange(partition.n_blocks)
    return _ops.snapshot_svd(snapshots, table, blocks, rows=rows, method=method)


def check_block(snapshots, partition, block, factors, *, rows="increments", method="gram"):
    sigma, coordinates = factors
    states = _reference.gather(snapshots.cpu(), partition.block(block))
    expected, expected_coordinates = _reference.snapshot_svd(
        states, increments=rows == "increments"
    )
    s = len(expected)
    scale = float(expected[0])
    assert (sigma[block, :s] - expected).abs().max() <= ACCURACY[method] * scale
    assert bool((sigma[block, s:] == 0).all())
    n = coordinates[block, :s]
    # N is unique up to a rotation: its inner products are what counts.
    gram, expected_gram = n.T @ n, expected_coordinates.T @ expected_coordinates
    assert (gram - expected_gram).abs().max() <= 1e-13 * scale**2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", ["increments", "states"])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_agrees_with_torch_in_every_dtype(method, rows, dtype, device):
    snapshots = cases.random_walk(9, 700, dtype).to(device)
    partition = cases.mixed(700)
    how = {"rows": rows, "method": method}
    factors = factor(snapshots, partition, **how)
    for block in range(partition.n_blocks):
        check_block(snapshots, partition, block, factors, **how)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("m", "n", "blocks"), [(2, 1, 1), (2, 50, 1), (5, 5, 1), (6, 4, 2), (33, 1000, 3), (70, 90, 7)]
)
def test_any_shape_and_blocks_of_many_segments(method, m, n, blocks, device):
    snapshots = cases.random_walk(m, n).to(device)
    partition = cases.interleaved(n, blocks)
    factors = factor(snapshots, partition, method=method)
    for block in range(blocks):
        check_block(snapshots, partition, block, factors, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_rows_may_lie_apart(method, device):
    wide = cases.random_walk(8, 500).to(device)
    partition = cases.mixed(400)
    inside = wide[:, 50:450]
    sigma, coordinates = factor(inside, partition, method=method)
    again, coordinates_again = factor(inside.contiguous(), partition, method=method)
    assert torch.equal(sigma, again)
    assert torch.equal(coordinates, coordinates_again)


@pytest.mark.parametrize("method", METHODS)
def test_blocks_of_one_weight_by_the_thousand(method, device):
    snapshots = cases.random_walk(6, 5000).to(device)
    partition = Partition.from_segments([[(i, 1)] for i in range(5000)], 5000)
    sigma, _ = factor(snapshots, partition, method=method)
    expected = snapshots.diff(dim=0).norm(dim=0).cpu()
    assert (sigma[:, 0] - expected).abs().max() <= 1e-14 * expected.max()
    assert bool((sigma[:, 1:] == 0).all())


@pytest.mark.parametrize("method", METHODS)
def test_a_large_block_is_summed_over_many_chunks(method, device):
    snapshots = cases.random_walk(5, 200_001).to(device)
    partition = Partition.from_segments([[(0, 200_001)]], 200_001)
    factors = factor(snapshots, partition, method=method)
    check_block(snapshots, partition, 0, factors, method=method)


def test_qr_keeps_what_the_gram_matrix_loses():
    sigma_true = torch.tensor([1.0, 1e-4, 1e-9, 1e-11], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    u = torch.linalg.qr(torch.randn(5, 4, dtype=torch.float64, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(3000, 4, dtype=torch.float64, generator=generator))[0]
    snapshots = u * sigma_true @ v.T
    whole = Partition.from_segments([[(0, 3000)]], 3000)
    by_qr, _ = factor(snapshots, whole, rows="states", method="qr")
    by_gram, _ = factor(snapshots, whole, rows="states", method="gram")
    assert (by_qr[0, :4] - sigma_true).abs().max() <= 1e-12
    assert (by_gram[0, :4] - sigma_true).abs().max() <= ACCURACY["gram"]
    assert abs(float(by_gram[0, 3]) - 1e-11) > 1e-12  # as the docstring warns


def test_motion_of_a_thousandth_survives_single_precision(device):
    # Differences formed in double lose nothing beyond the rounding of the snapshots themselves.
    snapshots = (100 + 0.1 * (cases.random_walk(12, 4000) - 1)).float().to(device)
    whole = Partition.from_segments([[(0, 4000)]], 4000)
    sigma, _ = factor(snapshots, whole)
    expected = torch.linalg.svdvals(snapshots.double().diff(dim=0)).cpu()
    assert (sigma[0, :-1] - expected).abs().max() <= 1e-9 * expected[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_marks_its_block_alone(method, bad, device):
    snapshots = cases.random_walk(6, 60).to(device)
    snapshots[2, 25] = bad
    partition = Partition.from_segments([[(0, 20)], [(20, 20)], [(40, 20)]], 60)
    sigma, coordinates = factor(snapshots, partition, method=method)
    assert bool(sigma[1].isnan().all())
    assert bool(coordinates[1].isnan().all())
    assert bool(sigma[[0, 2]].isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_the_same_to_the_last_bit_for_every_thread_count(method):
    snapshots = cases.random_walk(7, 100_003, torch.float32)
    partition = cases.mixed(100_003)
    results = on_threads((1, 2, 5), lambda: factor(snapshots, partition, method=method))
    for sigma, coordinates in results[1:]:
        assert torch.equal(sigma, results[0][0])
        assert torch.equal(coordinates, results[0][1])


@pytest.mark.parametrize("method", ["gram", "qr"])
@pytest.mark.parametrize("n", [20, 400])
def test_a_last_state_keeps_its_inner_products_with_the_increments(n, method):
    # It is a thousand times larger than they are, and must not take their digits.
    snapshots = 1000 + cases.random_walk(12, n)
    sigma, coordinates = factor(
        snapshots, Partition.from_segments([[(0, n)]], n), rows="increments_and_last", method=method
    )
    steps = snapshots.diff(dim=0)
    assert torch.allclose(sigma[0, :11], torch.linalg.svdvals(steps), rtol=1e-7)
    rows = torch.cat((steps, snapshots[-1:]))
    products = rows @ rows.T
    error = (coordinates[0].T @ coordinates[0] - products).abs()
    assert float((error / (rows.norm(dim=1)[:, None] * rows.norm(dim=1))).max()) < 1e-11
