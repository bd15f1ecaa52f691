# SPDX-License-Identifier: BSD-3-Clause
"""What fits of the same blocks share, and what they must not."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import cases
from koopfast import Partition, _ops
from koopfast._blocks import BlockTable, FittedBlocks
from koopfast._options import FitOptions


def two_blocks() -> Partition:
    return Partition.from_segments([[(0, 3)], [(3, 40)]], 43)


def fit(seed: int) -> FittedBlocks:
    return _ops.operator_fit(
        cases.random_walk(12, 43, seed=seed), BlockTable.of(two_blocks()), FitOptions()
    )


def test_a_table_is_made_once_and_goes_with_its_partition() -> None:
    partition = two_blocks()
    table = BlockTable.of(partition)
    assert BlockTable.of(partition) is table
    gone = weakref.ref(table)
    del table, partition
    gc.collect()
    assert gone() is None


def test_a_plan_is_kept_until_another_one_is_asked_for() -> None:
    table = BlockTable(two_blocks())
    made = [table.plan(key, object) for key in (1, 1, 2, 1)]
    assert made[0] is made[1]
    assert len(set(made)) == 3


def test_a_fit_writes_to_nothing_of_the_one_before() -> None:
    partition = two_blocks()  # alive: both fits go by the same plan
    first = fit(1)
    before = {name: getattr(first, name).clone() for name in FittedBlocks.__dataclass_fields__}
    fit(2)
    assert BlockTable.of(partition) is not None
    for name, value in before.items():
        assert torch.equal(getattr(first, name).view(torch.uint8), value.view(torch.uint8)), name


@pytest.mark.parametrize("blocks", [[1, 0], [1], [0, 1]])
def test_results_of_selected_blocks_come_to_their_places(blocks: list[int]) -> None:
    fitted = fit(1)
    own, _ = fitted.selected(torch.tensor(blocks))
    own["rank"].copy_(torch.tensor([10 + block for block in blocks]))
    fitted.keep(torch.tensor(blocks), own)
    assert [int(fitted.rank[block]) for block in blocks] == [10 + block for block in blocks]
