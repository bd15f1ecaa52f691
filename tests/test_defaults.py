# SPDX-License-Identifier: BSD-3-Clause
"""Under torch.set_default_device and set_default_dtype everything is as without.

The meta device stands for any other: what koopfast made there by mistake cannot be computed with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cases
from koopfast import (
    KoopmanConfig,
    KoopmanOperator,
    KoopmanTrainer,
    MomentBuffer,
    Partition,
    accelerate,
    load_checkpoint,
    save_checkpoint,
)
from training_runs import assert_same, smooth_run

N = 40
PARTITIONS: dict[str, Callable[[], Partition]] = {
    "network": lambda: Partition.from_segments([[(0, N)]], N),
    "small": lambda: Partition.from_segments([[(i, 4)] for i in range(0, N, 4)], N),
    "weights": lambda: Partition.from_segments([[(i, 1)] for i in range(N)], N),
}
FITS: list[dict[str, Any]] = [
    {"rank": 2},
    {"rank": "auto"},
    {"rank": 0.99},
    {"auto": True},
    {"rank": 2, "method": "qr"},
    {"rank": 2, "delays": 2, "observables": "state"},
    {"rank": 2, "estimator": "total_least_squares"},
    {"symmetric": True},
]
TRAINERS: list[dict[str, Any]] = [
    {},
    {"window": 6, "stride": 1, "partition": "node"},
    {"window": 6, "stride": 2, "average": True, "partition": "weight"},
    {"window": 20, "streaming": True, "partition": "node", "rank": 2},
    {"window": 6, "stride": 1, "dry_run": True},
]


@pytest.fixture(params=["device", "dtype"])
def defaults(request: pytest.FixtureRequest) -> Any:
    """Sets another default; what undoes it is done in any case."""
    dtype = torch.get_default_dtype()

    def other() -> None:
        if request.param == "device":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(torch.float64)

    def usual() -> None:
        torch.set_default_device(None)
        torch.set_default_dtype(dtype)

    yield other, usual
    usual()


def same_with(defaults: Any, work: Callable[[], Any]) -> None:
    other, usual = defaults
    expected = work()
    other()
    came = work()
    usual()
    assert_same(came, expected)


@pytest.mark.parametrize("options", FITS, ids=str)
@pytest.mark.parametrize("partition", PARTITIONS)
def test_operators(partition: str, options: dict[str, Any], defaults: Any) -> None:
    snapshots = cases.random_walk(12, N)

    def work() -> list[Any]:
        operator = KoopmanOperator.fit(snapshots, PARTITIONS[partition](), **options)
        rows = [operator.predict([1, 2]), operator.predict([0.5, 3])]
        return [*rows, operator.rank, operator.status, operator.eigenvalues, repr(operator)]

    same_with(defaults, work)


def test_complex_operators_and_moments(defaults: Any) -> None:
    snapshots = cases.random_walk(12, N)
    turning = torch.complex(snapshots, snapshots.flip(0))

    def work() -> list[Any]:
        buffer = MomentBuffer(None, PARTITIONS["small"](), dtype=torch.float64)
        for row in snapshots:
            buffer.record(row)
        whole = KoopmanOperator.fit(turning, PARTITIONS["network"](), rank=2)
        return [buffer.fit(rank=1).predict([1, 2]), whole.predict([1, 2]), whole.eigenvalues]

    same_with(defaults, work)


@pytest.mark.parametrize("options", TRAINERS, ids=str)
def test_training(options: dict[str, Any], defaults: Any, tmp_path: Path) -> None:
    other, usual = defaults
    ends = []
    for change in (usual, other):
        run = smooth_run("adam")
        change()
        config = KoopmanConfig(**{"overhead": None, **options})
        trainer = KoopmanTrainer(run.model, run.optimizer, config)
        run.train(trainer, 60)
        load_checkpoint(save_checkpoint(tmp_path / "run.pt", trainer), trainer)
        run.train(trainer, 30)
        trainer.report(tmp_path / "run.html")
        usual()
        jumps = [(jump.step, jump.kind, jump.candidates) for jump in trainer.history.jumps]
        ends.append((run.weights(), jumps, len(trainer.history.forecasts)))
    assert_same(ends[1], ends[0])


def test_other_iterations(defaults: Any) -> None:
    matrix = 0.9 * torch.eye(5, dtype=torch.float64, device="cpu")

    def work() -> list[Any]:
        tensors = accelerate(lambda x: matrix @ x + 1, matrix.new_zeros(5))
        arrays = accelerate(lambda x: 0.9 * x + 1, np.zeros(5))
        return [tensors.x, tensors.evaluations, arrays.x.tolist(), arrays.evaluations]

    same_with(defaults, work)
