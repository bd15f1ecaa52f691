# SPDX-License-Identifier: BSD-3-Clause
"""How cost grows with weights n, snapshots m, horizon T, and the number and size of blocks.

Each study asserts its exponent; docs/complexity.md derives what theory says.
"""

from __future__ import annotations

import pytest
import torch

from growth import study
from koopfast import KoopmanOperator, _blocks, _ops
from trajectories import decaying, equal_blocks

RANK = 8


def fit(snapshots, partition=None):
    return KoopmanOperator.fit(snapshots, partition, rank=RANK)


def fit_and_predict(m, n, size):
    snapshots, partition = decaying(m, n), equal_blocks(n, size)
    return lambda: fit(snapshots, partition).predict(1000)


@pytest.mark.benchmark(group="growth with weights n")
def test_weights(benchmark):
    study(
        benchmark,
        lambda n: fit_and_predict(32, n, n),
        x=[500_000, 1_000_000, 2_000_000, 4_000_000],
        title="Fit and predict, time: one block, m = 32",
        size="n",
        rounds=7,
        theory=(1, 1),
        tolerance=0.2,
        why="every pass over the snapshots touches every weight once",
    ).check()


@pytest.mark.benchmark(group="growth with weights n")
def test_memory_of_weights(benchmark):
    study(
        benchmark,
        lambda n: fit_and_predict(8, n, n),
        # So large that a few huge pages of 2 MiB, which come and go, do not show.
        x=[4_000_000, 8_000_000, 16_000_000],
        title="Fit and predict, memory: one block, m = 8",
        size="n",
        cost="bytes",
        rounds=5,
        theory=(1, 1),
        tolerance=0.2,
        why="the prediction; the workspace has a fixed size",
    ).check()


@pytest.mark.benchmark(group="growth with weights n")
def test_choice_by_hindcast(benchmark):
    chosen = dict.fromkeys(("observables", "delays", "block_average", "estimator"), "auto")
    options, blocks = _ops.FitOptions(rank="auto", **chosen), torch.arange(4)

    def at(n):
        """All that follows a fit's pass over the snapshots of four blocks."""
        snapshots, table = decaying(32, n), _blocks.BlockTable(equal_blocks(n, n // 4))
        grams = _ops.observed_grams(snapshots, table, blocks, options)
        fitted = _ops.all_dual(32, table, options)
        # (A fit overwrites them.)
        return lambda: _ops.fit_grams(grams.clone(), table, blocks, options, fitted)

    study(
        benchmark,
        at,
        x=[10_000, 40_000, 160_000, 640_000],
        title="Everything chosen, after the Gram matrix, time: 4 blocks, m = 32",
        size="n",
        theory=(0, 0),
        tolerance=0.1,
        why="candidates are fitted and judged in coordinates of the snapshots: m x m, whatever n",
    ).check()


@pytest.mark.benchmark(group="growth with snapshots m")
def test_snapshots(benchmark):
    study(
        benchmark,
        lambda m: fit_and_predict(m, 200_000, 200_000),
        x=[8, 16, 32, 64, 128],
        title="Fit and predict, time: one block, n = 200,000",
        size="m",
        theory=(1, 2),
        tolerance=0.2,
        why="reading the snapshots is linear in m, their Gram matrix quadratic",
    ).check()


@pytest.mark.benchmark(group="growth with snapshots m")
def test_memory_of_snapshots(benchmark):
    # A fit alone: it leaves nothing as large as the weights, so what is seen is workspace.
    def fit_at(m):
        snapshots = decaying(m, 300_000)
        return lambda: fit(snapshots)

    study(
        benchmark,
        fit_at,
        x=[48, 96, 192],
        title="Fit, memory: one block, n = 300,000",
        size="m",
        cost="bytes",
        rounds=5,
        theory=(1, 2),
        tolerance=0.3,
        why="a Gram matrix a chunk; the number of chunks is bounded, and shrinks for large ones",
    ).check()


@pytest.mark.benchmark(group="growth with the horizon T")
def test_horizon(benchmark):
    snapshots = decaying(32, 200_000)
    study(
        benchmark,
        lambda horizon: lambda: fit(snapshots).predict(horizon),
        x=[1, 10, 100, 1000, 10_000, 100_000],
        title="Fit and predict, time: one block, n = 200,000, m = 32",
        size="T",
        theory=(0, 0),
        tolerance=0.05,
        why="the fit knows no horizon; eigenvalues are raised to any power by one exponential",
    ).check()


def powers(blocks, defective):
    """Fitted operators of order 8 for many blocks, in their eigenbases or held to have none."""
    size, m = 100, 32
    snapshots = decaying(m, blocks * size)
    table = _blocks.BlockTable(equal_blocks(blocks * size, size))
    fitted = _ops.operator_fit(snapshots, table, _ops.FitOptions(rank=RANK))
    fitted = fitted.with_spectrum
    fitted.spectrum.fill_(0 if defective else 1)  # Spectrum of operator_fit.h
    return fitted, torch.arange(blocks)


@pytest.mark.parametrize("defective", [False, True], ids=["eigenbasis", "squaring"])
@pytest.mark.benchmark(group="growth with the horizon T")
def test_powers_alone(benchmark, defective):
    fitted, blocks = powers(2000, defective)

    def at(horizon):
        wanted = torch.tensor([float(horizon)], dtype=torch.float64)
        return lambda: _ops.operator_power(fitted, blocks, wanted)

    way = "by repeated squaring" if defective else "in the eigenbasis"
    why = (
        "one squaring each time the horizon doubles: logarithmic, so no power of T at all; "
        "log T itself rises as T^0.14 over these sizes"
        if defective
        else "each eigenvalue is raised by one exponential"
    )
    study(
        benchmark,
        at,
        x=[2**i for i in range(4, 21, 4)],
        title=f"Powers alone {way}, time: 2,000 operators of order 8",
        size="T",
        theory=(0, 0.14) if defective else (0, 0),
        tolerance=0.06,
        why=why,
    ).check()


@pytest.mark.benchmark(group="growth with the number of blocks, n fixed")
def test_large_blocks_cost_what_one_does(benchmark):
    n = 1 << 20
    study(
        benchmark,
        lambda blocks: fit_and_predict(16, n, n // blocks),
        x=[1, 4, 16, 64, 256],
        title="Fit and predict, time: n = 2²⁰, m = 16, blocks of 4,096 weights and more",
        size="blocks",
        theory=(0, 0),
        tolerance=0.2,
        why="the passes over the snapshots do not depend on how the weights are divided",
    ).check()


@pytest.mark.benchmark(group="growth with the number of blocks, n fixed")
def test_small_blocks_cost_their_algebra(benchmark):
    n = 1 << 16
    study(
        benchmark,
        lambda blocks: fit_and_predict(16, n, n // blocks),
        x=[256, 512, 1024, 2048],
        title="Fit and predict, time: n = 2¹⁶, m = 16, blocks of 256 to 32 weights",
        size="blocks",
        theory=(0, 1),
        tolerance=0.15,
        why="each block has its m x m eigenproblem; it outweighs its share of the passes here",
    ).check()


@pytest.mark.benchmark(group="growth with the size of blocks, their number fixed")
def test_large_block_sizes(benchmark):
    study(
        benchmark,
        lambda size: fit_and_predict(16, 8 * size, size),
        x=[1 << i for i in range(14, 19)],
        title="Fit and predict, time: 8 blocks, m = 16, more weights than snapshots (dual)",
        size="block size",
        theory=(1, 1),
        tolerance=0.25,
        why="the passes over the snapshots, once they outweigh the fixed m x m algebra",
    ).check()


@pytest.mark.benchmark(group="growth with the size of blocks, their number fixed")
def test_small_block_sizes(benchmark):
    def at(size):
        snapshots, partition = decaying(64, 1000 * size), equal_blocks(1000 * size, size)
        return lambda: KoopmanOperator.fit(snapshots, partition, rank=None).predict(1000)

    study(
        benchmark,
        at,
        x=[4, 8, 16, 32],
        title="Fit and predict, time: 1,000 blocks, m = 64, fewer weights than snapshots (primal)",
        size="block size",
        rounds=5,
        theory=(1, 3),
        tolerance=0.3,
        why="reading is linear, the moments quadratic, the eigenproblem of the operator cubic",
    ).check()
