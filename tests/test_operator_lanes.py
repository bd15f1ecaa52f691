# SPDX-License-Identifier: BSD-3-Clause
"""The fast ways to a fit: second moments, blocks eight at a time, single weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
from compare import on_threads, relative_error
from koopfast import KoopmanOperator, Partition, _blocks, _native, _ops, _reference, _views
from koopfast._options import FitOptions

OBSERVABLES = ("state", "increments")
SIZES = (1, 2, 7, 8, 9, 11, 20, 30)


def blocks_of(sizes):
    starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    return Partition.from_segments(
        [[(a, size)] for a, size in zip(starts, sizes, strict=False)], starts[-1]
    )


def moments_of(snapshots, partition, *, increments, delays):
    """K and the latest observables of every block, from native code."""
    table = _blocks.BlockTable(partition)
    own = torch.arange(partition.n_blocks)
    full, stacked = (delays + 1) * table.sizes, delays * table.sizes
    offsets, latest_offsets = (full**2).cumsum(0) - full**2, stacked.cumsum(0) - stacked
    moments = torch.full((int((full**2).sum()),), math.nan, dtype=torch.float64)
    latest = torch.full((int(stacked.sum()),), math.nan, dtype=torch.float64)
    _native.snapshot_moments(
        _views.view(snapshots),
        table.addresses(),
        own.data_ptr(),
        len(own),
        increments,
        delays,
        False,
        offsets.data_ptr(),
        moments.data_ptr(),
        latest_offsets.data_ptr(),
        latest.data_ptr(),
        torch.get_num_threads(),
    )
    matrices = [moments[o : o + d * d].reshape(d, d) for o, d in zip(offsets, full, strict=True)]
    return matrices, [latest[o : o + d] for o, d in zip(latest_offsets, stacked, strict=True)]


@pytest.mark.parametrize("delays", [1, 2, 3])
@pytest.mark.parametrize("observables", OBSERVABLES)
@pytest.mark.parametrize("m", [7, 70, 9000])
def test_moments_are_sums_of_stacked_pairs(m, observables, delays):
    snapshots = cases.random_walk(m, 41)
    partition = blocks_of([1, 7, 8, 9, 16])
    increments = observables == "increments"
    matrices, latest = moments_of(snapshots, partition, increments=increments, delays=delays)
    for b in range(partition.n_blocks):
        observed = _reference.observe(_reference.gather(snapshots, partition.block(b)), observables)
        pairs = _reference.embed(observed, delays + 1)  # [o_{t+q}, ..., o_t]
        assert relative_error(matrices[b], pairs.T @ pairs) < 1e-12
        assert torch.equal(latest[b], _reference.embed(observed, delays)[-1])


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_moments_widen_before_they_sum(dtype):
    snapshots = cases.random_walk(40, 41, dtype)
    partition = blocks_of([1, 7, 8, 9, 16])
    for increments in (False, True):
        narrow, _ = moments_of(snapshots, partition, increments=increments, delays=1)
        wide, _ = moments_of(snapshots.double(), partition, increments=increments, delays=1)
        assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


@st.composite
def problems(draw):
    sizes = draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=20))
    options = {
        "observables": draw(st.sampled_from(OBSERVABLES)),
        "rank": draw(st.sampled_from([None, 1, 3, 0.9, "gavish-donoho"])),
        "delays": draw(st.sampled_from([1, 2])),
        "unstable": draw(st.sampled_from(["keep", "clip", "damp"])),
        **draw(st.sampled_from([{}, {"ridge": 1e-2}, {"symmetric": True}])),
    }
    return draw(st.sampled_from([7, 16, 33])), sizes, draw(st.integers(0, 99)), options


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from(cases.DTYPES))
def test_blocks_of_many_sizes_agree_with_the_twin(problem, dtype):
    m, sizes, seed, options = problem
    partition = blocks_of(sizes)
    snapshots = cases.random_walk(m, partition.n, dtype, seed)
    operator = KoopmanOperator.fit(snapshots, partition, tolerance=1e-4, **options)
    horizons = [0.0, 1.0, 3.0, 1.5]
    predicted = operator.predict(horizons)
    for b in range(partition.n_blocks):
        states = _reference.gather(snapshots, partition.block(b))
        twin = _reference.fit_block(states, tolerance=1e-4, **options)
        assert (int(operator.status[b]), int(operator.rank[b])) == (twin.status, twin.rank)
        expected = _reference.predict_block(twin, horizons)
        got = _reference.gather(predicted, partition.block(b))
        if bool(expected.isfinite().all()) and float(expected.abs().max()) < 1e3:
            limit = {torch.float64: 1e-6, torch.float32: 1e-5}.get(dtype, 1e-2)
            assert relative_error(got, expected) < limit


BAD = {
    "a NaN": lambda s: s[3:4].fill_(math.nan),
    "an infinity": lambda s: s[-1:].fill_(math.inf),
    "an overflow": lambda s: s.mul_(1e200),
    "constant": lambda s: s.copy_(s[:1].clone().expand_as(s)),
    "zero": lambda s: s.zero_(),
    "of rank one": lambda s: s.copy_(s[:, :1].clone().expand_as(s)),
    "badly conditioned": lambda s: s[:, 1:].mul_(1e-9),
    "tiny": lambda s: s.mul_(1e-160),
}


@pytest.mark.parametrize("size", [1, 5, 40], ids=["single", "primal", "dual"])
@pytest.mark.parametrize("observables", OBSERVABLES)
@pytest.mark.parametrize("bad", BAD)
def test_neighbours_of_a_bad_block_do_not_notice(bad, observables, size):
    clean = cases.random_walk(20, 11 * size)
    partition = blocks_of([size] * 11)
    options = {"observables": observables, "rank": None}
    expected = KoopmanOperator.fit(clean, partition, **options).predict([1, 40])
    spoiled = clean.clone()
    BAD[bad](spoiled[:, 3 * size : 4 * size])
    operator = KoopmanOperator.fit(spoiled, partition, **options)
    predicted = operator.predict([1, 40])
    others = torch.cat((torch.arange(3 * size), torch.arange(4 * size, 11 * size)))
    assert torch.equal(predicted[:, others], expected[:, others])
    own = predicted[:, 3 * size : 4 * size]
    assert bool(own.isnan().all()) == (int(operator.status[3]) == _reference.NON_FINITE)
    assert operator.ok == (bad not in ("a NaN", "an infinity", "an overflow"))


def test_where_a_block_stands_among_the_others_does_not_matter():
    sizes = [11, 2, 11, 5, 11, 11, 2] * 5
    snapshots = cases.random_walk(60, sum(sizes))
    blocks = [blocks_of(sizes).block(b) for b in range(len(sizes))]
    plain = KoopmanOperator.fit(snapshots, blocks_of(sizes), rank=None)
    turned = Partition.from_segments(blocks[::-1], sum(sizes))
    backwards = KoopmanOperator.fit(snapshots, turned, rank=None)
    assert torch.equal(plain.predict([7, 300]), backwards.predict([7, 300]))
    assert torch.equal(plain.rank, backwards.rank.flip(0))


@pytest.mark.parametrize(("m", "sizes"), [(32, [20] * 700), (9000, [11, 2, 2]), (12, [1] * 3000)])
def test_the_same_bits_for_every_thread_count(m, sizes):
    snapshots = cases.random_walk(m, sum(sizes), torch.float32)

    def predict():
        operator = KoopmanOperator.fit(snapshots, blocks_of(sizes), rank=None)
        return operator.predict([1.0, 9.0, 2.5])

    first, *others = on_threads((1, 2, 3), predict)
    assert all(torch.equal(first, other) for other in others)


def test_looking_at_the_spectrum_changes_no_prediction():
    snapshots = cases.SYSTEMS[2].states(6, range(20))
    operator = KoopmanOperator.fit(snapshots, rank=None)
    before = operator.predict([3, 100])
    assert len(operator.eigenvalues) == 4
    assert torch.equal(operator.predict([3, 100]), before)
    assert torch.equal(operator.predict([3, 100, 2.5])[:2], before)  # which needs the eigenbasis
    assert torch.equal(operator.predict([100])[0], before[1])


@pytest.mark.parametrize("unstable", ["keep", "clip"])
def test_what_a_well_conditioned_fit_leaves_for_later_is_there(unstable):
    # Most blocks are of rank one, so that memory is packed anew.
    sizes, ranks = [9] * 40, [9 if block % 3 == 0 else 1 for block in range(40)]
    snapshots = cases.random_walk(60, sum(sizes))
    for block, rank in enumerate(ranks):
        if rank == 1:
            snapshots[:, 9 * block : 9 * block + 9] = snapshots[:, 9 * block : 9 * block + 1]
    fits = {
        method: KoopmanOperator.fit(
            snapshots, blocks_of(sizes), rank=None, method=method, unstable=unstable
        )
        for method in ("gram", "qr")
    }
    before = fits["gram"].predict([2, 50])
    for block, rank in enumerate(ranks):
        lazy, eager = (fits[method].singular_values_of(block) for method in ("gram", "qr"))
        assert int(fits["gram"].rank[block]) == rank
        assert relative_error(lazy[None, :rank], eager[None, :rank]) < 1e-10
        lazy, eager = (fits[method].eigenvalues_of(block).abs() for method in ("gram", "qr"))
        assert relative_error(lazy.sort().values[None], eager.sort().values[None]) < 1e-9
    assert torch.equal(fits["gram"].predict([2, 50]), before)
    assert relative_error(before, fits["qr"].predict([2, 50])) < 1e-7


def test_a_condition_that_a_tolerance_cuts_keeps_no_more_than_it():
    # Ten blocks of two weights, the second of which moves a hundredth of the first.
    snapshots = cases.random_walk(30, 20)
    snapshots[:, 1::2] *= 1e-2
    for tolerance, rank in ((1e-4, 2), (0.1, 1)):
        operator = KoopmanOperator.fit(
            snapshots, blocks_of([2] * 10), rank=None, tolerance=tolerance
        )
        assert operator.rank.tolist() == [rank] * 10


@pytest.mark.parametrize("observables", OBSERVABLES)
@pytest.mark.parametrize("unstable", ["keep", "clip", "damp"])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_single_weights_are_blocks_like_any_other(observables, unstable, ridge):
    # In an order of their own; QR takes the general way.
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1)).tolist()
    partition = Partition.from_segments([[(i, 1)] for i in order], 30)
    snapshots = cases.random_walk(12, 30)
    snapshots[:, 4], snapshots[5, 7] = 0, math.nan
    options = {"observables": observables, "rank": None, "unstable": unstable, "ridge": ridge}
    one = KoopmanOperator.fit(snapshots, partition, **options)
    general = KoopmanOperator.fit(snapshots, partition, method="qr", **options)
    horizons = [0, 0.5, 1, 1.5, 7]
    if unstable != "keep":
        horizons.append(math.inf)
    got, expected = one.predict(horizons), general.predict(horizons)
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-12, equal_nan=True)
    assert torch.equal(one.status, general.status)
    assert torch.equal(one.rank, general.rank)
    assert torch.allclose(one.eigenvalues, general.eigenvalues, rtol=1e-10)
    assert torch.allclose(one.singular_values, general.singular_values, rtol=1e-10)
    block = order.index(3)
    contribution = one.modes_of(block) @ one.amplitudes_of(block)
    assert torch.allclose(contribution, general.modes_of(block) @ general.amplitudes_of(block))
    assert repr(one) == repr(general)


def test_a_fit_of_given_moments_is_that_of_the_snapshots():
    sizes = torch.tensor([3, 11, 11, 70])  # the last is beyond what goes eight at a time
    snapshots, delays = cases.random_walk(200, 95), 1
    partition, options = blocks_of(sizes.tolist()), FitOptions(rank=5, observables="state")
    plain = _ops.operator_fit(snapshots, _blocks.BlockTable(partition), options)
    matrices, latest = moments_of(snapshots, partition, increments=False, delays=delays)
    again = _ops.operator_fit(
        cases.random_walk(200, 95, seed=7), _blocks.BlockTable(partition), options
    )
    packed, ends = torch.cat([k.flatten() for k in matrices]), torch.cat(latest)
    areas = (2 * sizes) ** 2
    offsets, latest_offsets = areas.cumsum(0) - areas, sizes.cumsum(0) - sizes
    own, addresses = again.selected(torch.arange(4))
    _native.operator_fit_moments(
        packed.data_ptr(),
        offsets.data_ptr(),
        ends.data_ptr(),
        latest_offsets.data_ptr(),
        sizes.data_ptr(),
        4,
        199,
        _ops.packed_options(options),
        addresses,
        torch.get_num_threads(),
    )
    again.keep(torch.arange(4), own)
    assert torch.equal(again.rank, plain.rank)
    wanted = torch.tensor([2.0, 30.0], dtype=torch.float64)
    results = [_ops.operator_power(f, torch.arange(4), wanted)[0] for f in (plain, again)]
    assert torch.equal(results[0], results[1])
