# SPDX-License-Identifier: BSD-3-Clause
"""What is chosen for a block from its own snapshots, and means of snapshots as observables."""

from __future__ import annotations

import math

import pytest
import torch

import cases
from compare import assert_rows_close, relative_error
from koopfast import ConfigError, KoopmanConfig, KoopmanOperator, Partition, _native, _reference
from koopfast._reference_choice import last_part
from koopfast.operator import Member

SIZES = (6, 60)
M = 40
AUTO = dict.fromkeys(("observables", "delays", "block_average", "estimator"), "auto")


def noisy(n, seed=0, m=M, level=1e-3):
    return cases.SYSTEMS[0].states(n, range(m), offset=1, seed=seed) + cases.noise(
        m, n, level, seed
    )


def described(twin, m):
    """The members of a twin's fit, as `Choice.members` lists them."""
    fits = twin.mean_of or ((1.0, twin),)
    return tuple(
        Member(
            fit.recipe.delays,
            fit.recipe.block_average,
            last_part(m, fit.recipe.part),
            pytest.approx(weight, rel=1e-5),
        )
        for weight, fit in fits
    )


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("m", [M, 90, 260])
def test_native_chooses_what_the_twin_does(n, seed, m):
    snapshots = noisy(n, seed, m) + 0.1 * seed * cases.random_walk(m, n, seed=seed)
    operator = KoopmanOperator.fit(snapshots, auto=True, method="qr")
    twin = _reference.fit_block(snapshots, rank="auto", unstable="clip", **AUTO)
    own, horizons = operator.chosen(0), [0.0, 0.25, 1.0, 7.5, 10.0, 200.0]
    assert own.members == described(twin, m)
    assert (own.rank == 0) == (twin.rank == 0)
    assert (own.observables, own.estimator) == (twin.recipe.observables, twin.recipe.estimator)
    assert own.hindcast_error == pytest.approx(twin.hindcast_error, rel=1e-5)
    assert own.trusted_horizon == twin.trusted_horizon
    got, expected = operator.predict(horizons), _reference.predict_block(twin, horizons)
    assert relative_error(got, expected) < 1e-9


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_on_a_device_the_same_is_chosen_and_predicted_there(n, device):
    snapshots = noisy(n, 1)
    here = KoopmanOperator.fit(snapshots, auto=True)
    there = KoopmanOperator.fit(snapshots.to(device), auto=True)
    own, expected = there.chosen(0), here.chosen(0)
    assert [m.delays for m in own.members] == [m.delays for m in expected.members]
    assert own.hindcast_error == pytest.approx(expected.hindcast_error, rel=1e-5)
    rows = there.predict([1.0, 7.5, 20.0])
    assert rows.device == snapshots.to(device).device
    assert relative_error(rows.cpu(), here.predict([1.0, 7.5, 20.0])) < 1e-6


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_a_block_predicts_the_mean_of_its_members(n):
    # What every member predicts by itself, with options given, weighs as the choice says.
    snapshots = noisy(n, level=3e-3, m=90)
    operator = KoopmanOperator.fit(snapshots, auto=True)
    members, horizons, mean = operator.chosen(0).members, [0, 0.5, 3, 50, 180], 0.0
    for one in members:
        own = KoopmanOperator.fit(
            snapshots[-one.snapshots :],
            rank=16,
            delays=one.delays,
            block_average=one.block_average,
        )
        mean = mean + one.weight * own.predict(horizons)
    assert len(members) == 4
    assert any(one.block_average > 1 for one in members)
    assert sum(one.weight for one in members) == pytest.approx(1)
    assert relative_error(operator.predict(horizons), mean) < 1e-9
    assert operator.eigenvalues_of(0).abs().max() <= 1 + 1e-9


def test_a_limit_of_a_mean_is_the_mean_of_the_limits():
    operator = KoopmanOperator.fit(noisy(6, level=3e-3, m=90), auto=True, unstable="damp")
    predicted = operator.predict([1e6, math.inf])
    assert float(operator.eigenvalues_of(0).abs().max()) < 1
    assert relative_error(predicted[1:], predicted[:1]) < 1e-6


def test_of_a_long_window_the_last_quarter_is_among_the_choices():
    def chirp(m):
        x, ramp = torch.arange(m).double()[:, None] / m, torch.linspace(0.2, 1, 6).double()
        angle = 6 * x + 14 * x**3
        return torch.cos(angle) * ramp + torch.sin(angle) * ramp.flip(0) + cases.noise(m, 6, 1e-5)

    fits = {m: KoopmanOperator.fit(chirp(m), auto=True, method="qr") for m in (240, 260)}
    fitted = {m: {one.snapshots for one in fit.chosen(0).members} for m, fit in fits.items()}
    assert min(fitted[240]) == 120
    assert fitted[260] == {65}
    twin = _reference.fit_block(chirp(260), rank="auto", unstable="clip", **AUTO)
    assert fits[260].chosen(0).members == described(twin, 260)


def growing(n, m=90, rate=0.5):
    """Motion that grows by exp(rate) over a window, beside one that circles, and noise."""
    t = torch.arange(m).double()[:, None]
    grown, circling = torch.exp(rate * t / m), torch.cos(t / 9)
    ramp = torch.linspace(0.2, 1, n).double()
    return grown * ramp + circling * ramp.flip(0) + cases.noise(m, n, 1e-4, 1)


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize(
    "how", [AUTO, {"delays": 2, "block_average": "auto"}], ids=["mean", "alone"]
)
def test_slow_growth_is_followed_as_the_twin_does(n, how):
    ahead = 60
    whole = growing(n, 90 + ahead)
    snapshots, horizons = whole[:90], [1.0, 7.5, float(ahead)]
    options = {**how, "rank": "auto", "method": "qr"}
    slow = KoopmanOperator.fit(snapshots, unstable="slow", **options)
    twin = _reference.fit_block(snapshots, rank="auto", unstable="slow", **how)
    got = slow.predict(horizons)
    assert relative_error(got, _reference.predict_block(twin, horizons)) < 1e-9
    clipped = KoopmanOperator.fit(snapshots, unstable="clip", **options).predict(horizons)
    wrong, bounded = ((p[-1] - whole[-1]).norm() for p in (got, clipped))
    assert wrong < bounded


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("unstable", ["clip", "damp", "slow"])
def test_a_member_counts_less_the_more_its_bound_changes(n, unstable):
    # What grows faster than modes may: the hindcast alone does not see what that does to the fit.
    snapshots = growing(n, rate=5)
    operator = KoopmanOperator.fit(snapshots, auto=True, unstable=unstable, method="qr")
    twin = _reference.fit_block(snapshots, rank="auto", unstable=unstable, **AUTO)
    members, added = operator.chosen(0).members, [fit.error_of_bound for _, fit in twin.mean_of]
    assert members == described(twin, len(snapshots))
    assert [one.weight for one in members] == sorted((m.weight for m in members), reverse=True)
    assert max(added) > 0


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_no_slow_mode_grows_by_more_than_a_factor_e_over_what_it_is_fitted_to(n):
    operator = KoopmanOperator.fit(growing(n, rate=5), auto=True, unstable="slow")
    fitted = [one.snapshots - 9 * one.block_average for one in operator.chosen(0).members]
    assert 1 < operator.eigenvalues_of(0).abs().max() <= math.exp(1 / min(fitted)) + 1e-9


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("observables", ["state", "increments"])
@pytest.mark.parametrize(("average", "delays"), [(2, 1), (3, 2), (8, 1)])
def test_means_are_predicted_as_the_twin_does(n, observables, average, delays):
    snapshots = cases.random_walk(M, n)
    how = {"observables": observables, "block_average": average, "delays": delays, "rank": 2}
    operator = KoopmanOperator.fit(snapshots, method="qr", unstable="keep", **how)
    twin = _reference.fit_block(snapshots, unstable="keep", **how)
    horizons = [0.0, 0.25, 1.0, 7.5, 20.0]
    assert (
        relative_error(operator.predict(horizons), _reference.predict_block(twin, horizons)) < 1e-8
    )


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("observables", ["state", "increments"])
@pytest.mark.parametrize("average", [2, 3, 5])
def test_means_of_a_linear_system_tell_its_future(n, observables, average):
    # Means of a decay decay alike: seen at their group's middle, with a slightly larger amplitude.
    rates, m = torch.tensor([0.999, 0.99]), 41
    system = cases.LinearSystem("slow", tuple(cases.real(float(r)) for r in rates))
    snapshots = system.states(n, range(m))
    operator = KoopmanOperator.fit(
        snapshots, observables=observables, block_average=average, rank=2, method="qr"
    )
    later = system.states(n, [m - 1 + 10, m - 1 + 40])
    amplitude = float((torch.log(rates).abs() * average).max()) ** 2
    moved = (later - snapshots[-1]).norm()
    assert float((operator.predict([10, 40]) - later).norm() / moved) < amplitude
    assert operator.chosen(0).block_average == average


def test_averages_are_chosen_against_noise_and_not_without():
    system = cases.LinearSystem("slow", (cases.real(0.98),))

    def median_error(level, **how):
        errors = []
        for seed in range(5):
            snapshots = system.states(60, range(M), seed=seed) + cases.noise(M, 60, level, seed)
            now, later = system.states(60, [M - 1, M + 19], seed=seed)
            predicted = KoopmanOperator.fit(snapshots, **how).predict(20)[0]
            errors.append(float((predicted - later).norm() / (now - later).norm()))
        return sorted(errors)[2]

    assert median_error(0.01, auto=True) < 0.7 * median_error(0.01, rank=None)
    assert median_error(0.0, auto=True) < 1e-6


@pytest.mark.parametrize("method", ["gram", "qr"])
def test_a_choice_reads_the_snapshots_once(monkeypatch, method):
    # All candidates come from one factorisation: the cost of choosing knows no weights.
    name = {"gram": "snapshot_gram", "qr": "snapshot_qr"}[method]
    native, calls = getattr(_native, name), []

    def counted(*arguments):
        calls.append(name)
        return native(*arguments)

    monkeypatch.setattr(_native, name, counted)
    KoopmanOperator.fit(noisy(300), auto=True, method=method)
    assert calls == [name]


@pytest.mark.parametrize("method", ["gram", "qr"])
def test_the_dual_form_chooses_as_the_primal_does(method):
    # The same motion in few weights and in many: an orthonormal map changes no inner product.
    few = noisy(6, level=1e-2)
    q, _ = torch.linalg.qr(
        torch.randn(60, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    )
    a, b = (KoopmanOperator.fit(s, auto=True, method=method) for s in (few, few @ q.T))
    assert a.chosen(0).hindcast_error == pytest.approx(b.chosen(0).hindcast_error, rel=1e-4)
    assert_rows_close(b.predict([20]), a.predict([20]) @ q.T, condition=1e6)


@pytest.mark.parametrize("method", ["gram", "qr"])
@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_states_are_found_where_they_are_asked_for(method, n):
    # With the increments and the last state, states are known as well as by themselves.
    snapshots = noisy(n)
    chosen = KoopmanOperator.fit(snapshots, observables="state", delays="auto", method=method)
    direct = KoopmanOperator.fit(
        snapshots,
        observables="state",
        delays=chosen.chosen(0).delays,
        method=method,
        rank=max(1, chosen.chosen(0).rank),
    )
    assert relative_error(chosen.predict([3]), direct.predict([3])) < 1e-9


def test_auto_fills_what_is_left_at_its_default():
    operator = KoopmanOperator.fit(noisy(60), auto=True, delays=2, block_average=4)
    own = operator.chosen(0)
    assert (own.delays, own.block_average) == (2, 4)
    assert own.rank == int(operator.rank[0])
    plain = KoopmanOperator.fit(noisy(60), rank=3).chosen(0)
    assert (plain.observables, plain.delays, plain.block_average) == ("increments", 1, 1)
    assert (plain.estimator, plain.rank) == ("least_squares", 3)
    assert math.isnan(plain.hindcast_error)
    symmetric = KoopmanOperator.fit(noisy(60), auto=True, symmetric=True)
    assert symmetric.chosen(0).estimator == "symmetric"


def test_a_window_too_short_to_split_gets_increments():
    operator = KoopmanOperator.fit(noisy(60, m=4), auto=True)
    assert operator.chosen(0).observables == "increments"
    assert math.isnan(operator.chosen(0).hindcast_error)
    still = KoopmanOperator.fit(torch.ones(20, 60), auto=True)
    assert still.status.tolist() == [_reference.STILL]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_every_dtype_and_mixed_blocks(dtype):
    snapshots = noisy(60).to(dtype)
    snapshots[3, 20] = math.nan
    operator = KoopmanOperator.fit(snapshots, cases.mixed(60), auto=True)
    assert (operator.status == _reference.NON_FINITE).sum() == 1
    assert bool(operator.predict([5.0])[:, :20].isfinite().all())


@pytest.mark.parametrize(
    ("argument", "value"),
    [("delays", "some"), ("block_average", 0), ("block_average", 1.5), ("observables", "all")],
)
def test_refuses_what_it_does_not_know(argument, value):
    with pytest.raises(ConfigError, match=argument):
        KoopmanOperator.fit(noisy(6), **{argument: value})
    with pytest.raises(ConfigError, match=argument):
        KoopmanConfig(**{argument: value})


def test_refuses_averages_longer_than_the_window():
    with pytest.raises(ConfigError, match=r"block_average=20.*60"):
        KoopmanOperator.fit(noisy(6), block_average=20)
    with pytest.raises(ConfigError, match="auto"):
        KoopmanOperator.fit(noisy(6), auto=1)


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_what_a_block_chooses_depends_on_no_other(n):
    # Blocks are tried side by side, however many there are, and of whatever sizes.
    sizes = [n, n, 3, n, 45, 1, *[n] * 20]
    snapshots = noisy(sum(sizes), level=1e-2) + 0.1 * cases.random_walk(M, sum(sizes))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    cuts = list(zip(starts, sizes, strict=True))
    partition = Partition.from_segments([[cut] for cut in cuts], sum(sizes))
    together = KoopmanOperator.fit(snapshots, partition, auto=True)
    predicted = together.predict([0.5, 30])
    for block, (start, size) in enumerate(cuts):
        own = slice(start, start + size)
        alone = KoopmanOperator.fit(snapshots[:, own].contiguous(), auto=True)
        assert together.chosen(block) == alone.chosen(0)
        assert torch.equal(predicted[:, own], alone.predict([0.5, 30]))


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("m", [M, 90])
@pytest.mark.parametrize("seed", range(3))
def test_moments_choose_what_orthogonal_factors_do(n, m, seed):
    # "gram" fits all candidates from second moments, "qr" each from the observables themselves.
    snapshots = noisy(n, seed, m, level=1e-2) + 0.1 * cases.random_walk(m, n, seed=seed)
    gram, qr = (KoopmanOperator.fit(snapshots, auto=True, method=how) for how in ("gram", "qr"))
    own, other = gram.chosen(0), qr.chosen(0)
    assert (own.observables, own.estimator, own.rank) == (
        other.observables,
        other.estimator,
        other.rank,
    )
    assert own.hindcast_error == pytest.approx(other.hindcast_error, rel=1e-6)
    for a, b in zip(own.members, other.members, strict=True):
        assert (a.delays, a.block_average, a.snapshots) == (b.delays, b.block_average, b.snapshots)
        assert a.weight == pytest.approx(b.weight, rel=1e-6)
    assert relative_error(gram.predict([0.5, 7, 60]), qr.predict([0.5, 7, 60])) < 1e-7


def test_results_do_not_depend_on_the_number_of_threads():
    from compare import on_threads

    partition = cases.interleaved(60, 4)
    one, two = on_threads(
        (1, 2), lambda: KoopmanOperator.fit(noisy(60), partition, auto=True).predict([30])
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("average", [1, 2, 4])
def test_time_constants_are_in_recorded_intervals(average):
    system = cases.LinearSystem("slow", (cases.real(0.9),))
    operator = KoopmanOperator.fit(system.states(60, range(M)), block_average=average, rank=1)
    assert float(operator.time_constants_of(0)[0]) == pytest.approx(-1 / math.log(0.9), rel=1e-6)


def test_the_spectrum_of_chosen_blocks_is_computed_when_it_is_looked_at():
    snapshots = cases.random_walk(60, 40)
    partition = Partition.from_segments([[(0, 3)], [(3, 30)], [(33, 7)]], 40)
    chosen = KoopmanOperator.fit(snapshots, partition, auto=True, unstable="keep")
    horizons = [1, 2.5, 20]
    before = chosen.predict(horizons)
    for block in range(3):
        k = int(chosen.rank[block])
        assert chosen.eigenvalues_of(block).shape == chosen.amplitudes_of(block).shape == (k,)
        assert chosen.modes_of(block).isfinite().all()
    assert torch.equal(chosen.predict(horizons), before)
