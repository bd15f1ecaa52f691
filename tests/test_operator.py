# SPDX-License-Identifier: BSD-3-Clause
"""KoopmanOperator at its door: what it takes, what it refuses, what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cases
from koopfast import ConfigError, KoopmanOperator, Partition, _views

SNAPSHOTS = cases.random_walk(8, 30)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_takes_numpy_arrays(dtype):
    array = SNAPSHOTS.numpy().astype(dtype)
    predicted = KoopmanOperator.fit(array, rank=2).predict([3])
    assert torch.equal(predicted, KoopmanOperator.fit(torch.from_numpy(array), rank=2).predict(3))


def test_read_only_reversed_and_byte_swapped_arrays_are_as_good():
    array = SNAPSHOTS.numpy().copy()
    expected = KoopmanOperator.fit(array, rank=2).predict(3)
    array.flags.writeable = False
    swapped = array.astype(array.dtype.newbyteorder())
    backwards = array[::-1, ::-1].copy()[::-1, ::-1]
    for other in (array, swapped, backwards, np.asfortranarray(array)):
        assert torch.equal(KoopmanOperator.fit(other, rank=2).predict(3), expected)


def test_copies_nothing_where_rows_are_contiguous():
    wide = torch.zeros(8, 40, dtype=torch.float64)
    for view in (SNAPSHOTS, wide[:, 3:33], wide[::2, :30], SNAPSHOTS.numpy()):
        first = torch.as_tensor(view).data_ptr()
        assert _views.as_snapshots(view).data_ptr() == first
    assert _views.as_snapshots(wide.T).data_ptr() != wide.data_ptr()


def test_leaves_the_snapshots_as_they_are():
    before = SNAPSHOTS.clone()
    KoopmanOperator.fit(SNAPSHOTS, cases.mixed(30)).predict([0, 1, 100])
    assert torch.equal(SNAPSHOTS, before)


def test_takes_parameters_that_require_gradients():
    assert not KoopmanOperator.fit(SNAPSHOTS.clone().requires_grad_()).predict(1).requires_grad


@pytest.mark.parametrize(
    ("snapshots", "message"),
    [
        (torch.zeros(5), r"shape \(m, n\)"),
        (torch.zeros(2, 3, 4), r"\(2, 3, 4\)"),
        (torch.zeros(1, 4), "at least 2 rows"),
        (torch.zeros(4, 0), r"\(4, 0\)"),
        (torch.zeros(4, 4, dtype=torch.int64), "torch.int64"),
        (torch.zeros(4, 4).to_sparse(), "sparse"),
        (np.zeros((4, 4), dtype=np.int32), "int32"),
        (np.zeros((4, 4), dtype=object), "object"),
        ([[1.0, 2.0], [3.0, 4.0]], "list"),
        (torch.zeros(2, 4), "at least 3 recorded states"),
    ],
)
def test_refuses_what_is_no_snapshot_matrix(snapshots, message):
    with pytest.raises(ConfigError, match=message):
        KoopmanOperator.fit(snapshots)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observables": "states"}, "state"),
        ({"rank": 0}, "rank"),
        ({"rank": "full"}, "rank"),
        ({"delays": 0}, "delays"),
        ({"delays": 8}, "at least 10 recorded states"),
        ({"method": "svd"}, "method"),
        ({"unstable": "damped"}, "unstable"),
        ({"unstable": "slow"}, "auto=True"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"partition": Partition.from_segments([[(0, 29)]], 29)}, "29 weights"),
        ({"partition": "layer"}, "str"),
    ],
)
def test_refuses_options_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        KoopmanOperator.fit(SNAPSHOTS, **options)


def test_takes_horizons_of_any_kind(device):
    operator = KoopmanOperator.fit(SNAPSHOTS, rank=2)
    expected = operator.predict([3.0])
    for horizons in (3, np.float32(3), np.int64(3), np.array([3]), range(3, 4)):
        assert torch.equal(operator.predict(horizons), expected)
    for tensor in (torch.tensor(3.0, device=device), torch.tensor([3], device=device)):
        assert torch.equal(operator.predict(tensor), expected)


@pytest.mark.parametrize(
    "horizons", [[], [-1], [float("nan")], -0.5, "12", [1e17], [10**400], None]
)
def test_refuses_horizons_that_mean_nothing(horizons):
    with pytest.raises(ConfigError, match="horizons"):
        KoopmanOperator.fit(SNAPSHOTS).predict(horizons)


def test_refuses_to_write_over_the_snapshots():
    snapshots = SNAPSHOTS.clone()
    operator = KoopmanOperator.fit(snapshots, rank=2)
    with pytest.raises(ConfigError, match="shares its memory"):
        operator.predict([1], out=snapshots[-1:])
    with pytest.raises(ConfigError, match="detach"):
        operator.predict([1], out=torch.zeros(1, 30).double().requires_grad_())


def test_reads_views_of_any_kind():
    negated = torch._neg_view(SNAPSHOTS)
    assert torch.equal(KoopmanOperator.fit(negated, rank=2).predict(0)[0], -SNAPSHOTS[-1])
    expanded = SNAPSHOTS[:, :1].expand(-1, 5)
    assert torch.equal(KoopmanOperator.fit(expanded, rank=1).predict(0)[0], expanded[-1])


@pytest.mark.parametrize(
    "out",
    [
        torch.zeros(2, 30, dtype=torch.float64),
        torch.zeros(1, 30),
        torch.zeros(30, 1, dtype=torch.float64),
        torch.zeros(1, 60, dtype=torch.float64)[:, ::2],
    ],
)
def test_refuses_an_output_that_does_not_fit(out):
    with pytest.raises(ConfigError, match="out"):
        KoopmanOperator.fit(SNAPSHOTS).predict(1, out=out)


def test_says_what_it_is():
    operator = KoopmanOperator.fit(SNAPSHOTS, cases.mixed(30), rank=2)
    assert repr(operator) == (
        "KoopmanOperator(8 snapshots of 30 weights, 7 blocks (0 still), increments, ranks 1 to 2)"
    )
    assert (operator.m, operator.n, operator.n_blocks) == (8, 30, 7)
    assert operator.eigenvalues.shape == (int(operator.rank.sum()),)
    assert torch.equal(operator.eigenvalues[-2:], operator.eigenvalues_of(6))
    leading = torch.linalg.svdvals(SNAPSHOTS[1:-1, 15:22] - SNAPSHOTS[:-2, 15:22])[:2]
    assert torch.allclose(operator.singular_values_of(6), leading)
    assert torch.equal(operator.singular_values[-2:], operator.singular_values_of(6))
