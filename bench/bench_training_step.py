# SPDX-License-Identifier: BSD-3-Clause
"""A predicted step against a step of backpropagation, by width, batch size and partition.

The network is fully connected: two hidden layers of `width`. docs/complexity.md counts both costs.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from growth import study
from interleaved import run
from koopfast import KoopmanOperator, Partition, SnapshotBuffer

WIDTHS = [64, 128, 256, 512]
BATCHES = [256, 1024, 4096, 16384]
M, HORIZON, RANK = 16, 1000, 8


def network(width):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
    )


def training_step(model, batch):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    inputs = model[0].in_features
    x, y = (torch.randn(batch, k, generator=generator) for k in (inputs, 10))

    def step():
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    return step


@cache
def recorded(width):
    """A network and the snapshots (M, n) of its first steps."""
    model = network(width)
    step, buffer = training_step(model, 64), SnapshotBuffer(model, capacity=M)
    while not buffer.full:
        step()
        buffer.record()
    return model, buffer.snapshots


@pytest.mark.benchmark(group="a step of training")
def test_backpropagation_by_batch(benchmark):
    study(
        benchmark,
        lambda batch: training_step(network(256), batch),
        x=BATCHES,
        title="Backpropagation step, width 256",
        size="batch size",
        theory=(1, 1),
        tolerance=0.3,
        why="6 n flops a sample: 2 n forward, 4 n backward",
    ).check()


@pytest.mark.benchmark(group="a step of training")
def test_backpropagation_by_width(benchmark):
    study(
        benchmark,
        lambda width: training_step(network(width), 1024),
        x=WIDTHS,
        title="Backpropagation step, batch 1024",
        size="width",
        theory=(1, 2),
        tolerance=0.2,
        why="weights grow with the square of the width, activations linearly",
    ).check()


@pytest.mark.benchmark(group="a predicted step: a thousandth of a fit and 1000 steps")
@pytest.mark.parametrize("kind", ["network", "layer", "node", "weight"])
def test_predicted_steps_by_width(benchmark, kind):
    # Single weights cost so little that a short range would show its ends: the fixed cost of a call
    # below, fresh pages and memory beyond the caches above. Over 235 times as many weights neither
    # sets the slope.
    widths = [*WIDTHS, 1024] if kind == "weight" else WIDTHS

    def at(width):
        model, snapshots = recorded(width)
        partition = Partition.of(kind, model)
        return lambda: KoopmanOperator.fit(snapshots, partition, rank=RANK).predict(HORIZON)

    theory, why = {
        "node": (
            (1, 2),
            "a node's m x m algebra for each of O(width) nodes, passes over O(width²)",
        ),
        "weight": ((2, 2), "a fixed cost for each of O(width²) weights"),
    }.get(kind, ((0, 2), "a fixed m x m algebra, and two passes over O(width²) weights"))
    study(
        benchmark,
        at,
        x=widths,
        title=f"Predicted step, partition: {kind}, m = {M}",
        steps=HORIZON,
        size="width",
        rounds=5,
        theory=theory,
        tolerance=0.2,
        why=why,
    ).check()


@pytest.mark.benchmark(group="1000 predicted steps, with their fit, against 1000 of training")
@pytest.mark.parametrize("kind", ["network", "layer", "node"])
def test_a_predicted_step_is_the_cheaper_one(benchmark, kind):
    model, snapshots = recorded(256)
    partition = Partition.of(kind, model)

    def predicted():
        return KoopmanOperator.fit(snapshots, partition, rank=RANK).predict(HORIZON)

    run(benchmark, predicted, baseline=training_step(network(256), 1024), width=256, batch=1024)
    # A window's fit and all its predicted steps, against as many steps of training.
    ratio = HORIZON * benchmark.extra_info.pop("speed_up")
    benchmark.extra_info.update(partition=kind, steps=HORIZON, speed_up=round(ratio))
    assert ratio > 10
