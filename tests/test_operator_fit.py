# SPDX-License-Identifier: BSD-3-Clause
"""Fits against systems of known spectrum, and native against the readable twin."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cases
from compare import assert_rows_close, assert_same_spectrum, relative_error
from koopfast import KoopmanOperator, Partition, _reference, _reference_reduced

OBSERVABLES = ("state", "increments")
METHODS = ("gram", "qr")
ESTIMATORS = (
    {},
    {"ridge": 1e-2},
    {"symmetric": True},
    {"symmetric": True, "ridge": 1e-2},
    {"estimator": "forward_backward"},
    {"estimator": "total_least_squares"},
    {"estimator": "total_least_squares", "ridge": 1e-2},
)
NOISE_AWARE = ("forward_backward", "total_least_squares")
# Weights of a block: fewer than snapshots (primal form) and more (dual form).
SIZES = (6, 300)
M = 20


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("observables", OBSERVABLES)
@pytest.mark.parametrize("system", cases.SYSTEMS, ids=lambda s: s.name)
def test_finds_the_eigenvalues_of_a_known_system(system, observables, method, n, device):
    snapshots = system.states(n, range(M)).to(device)
    operator = KoopmanOperator.fit(
        snapshots, observables=observables, rank=system.order, method=method, unstable="keep"
    )
    # A defective eigenvalue moves by the square root of what disturbs its matrix.
    tolerance = 2e-5 if system.defective else 1e-8
    assert_same_spectrum(operator.eigenvalues, system.eigenvalues(), tolerance=tolerance)


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_repeated_eigenvalues_show_once_in_one_trajectory(n, device):
    # Two equal eigenvalues with two eigenvectors: a single trajectory runs along one line.
    system = cases.LinearSystem("repeated", (cases.real(0.9), cases.real(0.9), cases.real(0.5)))
    operator = KoopmanOperator.fit(system.states(n, range(M)).to(device), rank=None)
    expected = torch.tensor([0.9, 0.5], dtype=torch.complex128)
    assert_same_spectrum(operator.eigenvalues, expected, tolerance=1e-9)


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_automatic_rank_is_the_order_of_a_noiseless_system(observables, n):
    system = cases.SYSTEMS[2]
    operator = KoopmanOperator.fit(system.states(n, range(M)), observables=observables)
    assert operator.rank.tolist() == [system.order]
    assert float(operator.hindcast_error[0]) < 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_an_energy_fraction_keeps_as_few_directions_as_hold_it(n, method):
    snapshots = cases.random_walk(M, n)
    energy = torch.linalg.svdvals(snapshots.diff(dim=0)[:-1]) ** 2
    for fraction in (0.3, 0.6, 0.99):
        rank = int(KoopmanOperator.fit(snapshots, rank=fraction, method=method).rank[0])
        assert energy[:rank].sum() >= fraction * energy.sum() > energy[: rank - 1].sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("estimator", NOISE_AWARE)
def test_noise_biases_least_squares_and_not_the_estimators_against_it(estimator, n, method):
    # Least squares takes noise for decay: its moduli are too small. Mean over draws of the noise.
    system = cases.LinearSystem("circling", (cases.pair(0.999, 0.6), cases.pair(0.995, 1.7)))
    clean = system.states(n, range(60))

    def modulus(estimator: str) -> float:
        options = {"observables": "state", "rank": 4, "unstable": "keep", "method": method}
        fits = [
            KoopmanOperator.fit(
                clean + cases.noise(60, n, 0.1, seed), estimator=estimator, **options
            )
            for seed in range(20)
        ]
        return sum(float(fit.eigenvalues.abs().mean()) for fit in fits) / len(fits)

    assert modulus("least_squares") < 0.997 - 0.01
    assert modulus(estimator) == pytest.approx(0.997, abs=0.002)


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize(
    "system",
    [
        cases.LinearSystem("gone at once", (cases.real(0.0), cases.real(0.5))),
        cases.LinearSystem("opposites", (cases.real(-0.8), cases.real(0.8), cases.real(0.3))),
        cases.LinearSystem("a quarter turn", (cases.pair(0.9, math.pi / 2), cases.real(0.5))),
    ],
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("method", METHODS)
def test_without_a_forward_backward_root_the_fit_is_least_squares(method, system, n):
    snapshots = system.states(n, range(M))
    options = {"observables": "state", "rank": system.order, "unstable": "keep", "method": method}
    plain = KoopmanOperator.fit(snapshots, **options)
    both = KoopmanOperator.fit(snapshots, estimator="forward_backward", **options)
    if method == "qr":  # the same arithmetic
        assert torch.equal(both.predict([1, 30]), plain.predict([1, 30]))
    assert relative_error(both.predict([1, 30]), plain.predict([1, 30])) < 1e-12
    assert_same_spectrum(both.eigenvalues, system.eigenvalues(), tolerance=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_ridge_is_tikhonovs(n, method):
    # w' = w_m + d_last + U d_last, U = F' F^T (F F^T + alpha)^-1, from the normal equations.
    snapshots = cases.random_walk(12, n)
    f, f_next = snapshots.diff(dim=0)[:-1].T, snapshots.diff(dim=0)[1:].T
    alpha = 0.1 * torch.linalg.svdvals(f)[0] ** 2
    gram = f.T @ f + alpha * torch.eye(10, dtype=torch.float64)
    u = f_next @ torch.linalg.solve(gram, f.T)
    operator = KoopmanOperator.fit(snapshots, rank=None, ridge=0.1, method=method, unstable="keep")
    first = u @ f_next[:, -1]
    expected = snapshots[-1] + torch.stack((first, first + u @ first))
    assert relative_error(operator.predict([1, 2]), expected) < 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [12, 400], ids=["primal", "dual"])
def test_the_gavish_donoho_threshold_finds_the_order_under_noise(n, method):
    system = cases.LinearSystem("four", (cases.pair(0.98, 0.7), cases.pair(0.96, 2.0)))
    for seed in range(5):
        snapshots = system.states(n, range(40)) + cases.noise(40, n, 2e-3, seed)
        options = {"observables": "state", "method": method}
        assert KoopmanOperator.fit(snapshots, rank="gavish-donoho", **options).rank == 4
        assert KoopmanOperator.fit(snapshots, rank=None, **options).rank > 10


@pytest.mark.parametrize("columns", [10, 20, 100])
def test_the_gavish_donoho_threshold_is_the_published_one(columns):
    # omega = lambda*(beta) / sqrt(median of the Marchenko-Pastur law), which they fit to 0.02.
    beta = 10 / columns
    low, high = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2
    t = torch.linspace(low, high, 200_001, dtype=torch.float64)[1:]
    law = (((high - t) * (t - low)).clamp(min=0).sqrt() / t).cumsum(0)
    median = float(t[int((law < law[-1] / 2).sum())])
    best = 2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1))
    threshold = _reference_reduced.gavish_donoho_threshold(torch.tensor([3.0, 1.0]), 10, columns)
    assert threshold / 2 == pytest.approx(math.sqrt(best / median), abs=0.02)


def test_a_block_that_nothing_predicts_stands_still():
    walk = cases.random_walk(24, 400)  # where it goes next has nothing to do with where it was
    operator = KoopmanOperator.fit(walk)
    assert operator.status.tolist() == [_reference.STILL]
    assert operator.hindcast_error.tolist() == [1.0]
    assert operator.failure() is not None
    assert torch.equal(operator.predict([5.0])[0], walk[-1])


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_symmetric_fit_has_a_real_spectrum(observables, n):
    snapshots = cases.random_walk(12, n)
    operator = KoopmanOperator.fit(snapshots, observables=observables, rank=4, symmetric=True)
    assert float(operator.eigenvalues.imag.abs().max()) == 0
    system = cases.SYSTEMS[0]  # a symmetric system is found exactly
    exact = KoopmanOperator.fit(system.states(n, range(M)), rank=3, symmetric=True)
    assert_same_spectrum(exact.eigenvalues, system.eigenvalues(), tolerance=1e-6)


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_hindcast_is_the_error_of_the_operator_that_predicts(estimator, n):
    # Refit by hand what the hindcast fits, on the first two thirds, with each rank that it tries.
    m, split = 16, 12  # 14 pairs of increments: 10 of them to fit, 4 to predict
    snapshots = cases.random_walk(m, n) + cases.SYSTEMS[5].states(n, range(m))
    options = {"method": "qr", **estimator}
    operator = KoopmanOperator.fit(snapshots, **options)
    moved = snapshots[split:] - snapshots[split - 1]
    errors = {0: 1.0}
    for rank in _reference_reduced.candidate_ranks(min(split - 2, n)):
        fit = KoopmanOperator.fit(snapshots[:split], rank=rank, **options)
        predicted = fit.predict(range(1, m - split + 1)) - snapshots[split - 1]
        errors[rank] = float((predicted - moved).norm() / moved.norm())
    best = min(errors, key=lambda rank: errors[rank])
    assert int(operator.rank[0]) == best
    assert float(operator.hindcast_error[0]) == pytest.approx(errors[best], rel=1e-6)


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_trusted_horizon_ends_where_the_hindcast_fails(n):
    # A decay that starts anew at snapshot 24: the hindcast, from snapshot 19 on, cannot know.
    t = torch.arange(28, dtype=torch.float64)
    steps = torch.where(t < 24, 0.9**t, 1.0)[:, None] * torch.ones(1, n)
    operator = KoopmanOperator.fit(steps.cumsum(0))
    assert operator.rank.tolist() == [1]
    assert operator.trusted_horizon.tolist() == [4.0]
    assert math.isnan(float(KoopmanOperator.fit(steps, rank=1).trusted_horizon[0]))
    lost = KoopmanOperator.fit(cases.random_walk(24, 400))
    assert lost.trusted_horizon.tolist() == [0.0]
    whole = KoopmanOperator.fit(cases.SYSTEMS[0].states(n, range(M)))  # 18 pairs, 6 predicted
    assert whole.trusted_horizon.tolist() == [6.0]


def test_a_long_drift_does_not_drown_its_steps():
    # Increments are factored as such: a window's whole drift, squared, would be its noise.
    generator = torch.Generator().manual_seed(0)
    start, step = torch.randn(2, 1000, dtype=torch.float64, generator=generator)
    drift = torch.stack([start + t * step for t in range(200)])
    assert KoopmanOperator.fit(drift, rank=None).rank.tolist() == [1]


def test_ranks_below_capacity_take_no_room():
    t = torch.arange(24, dtype=torch.float64)[:, None]
    snapshots = 0.9**t * torch.ones(1, 6000)
    partition = Partition.from_segments([[(i, 30)] for i in range(0, 6000, 30)], 6000)
    operator = KoopmanOperator.fit(snapshots, partition)
    assert operator.rank.tolist() == [1] * 200
    assert operator._fitted.lifts.numel() == 200 * 24
    assert len(operator.singular_values_of(3)) == 22
    assert relative_error(operator.predict([5]), snapshots[-1:] * 0.9**5) < 1e-10


def test_delays_recover_what_one_state_does_not_hold():
    # A position of an oscillator, one number: its next value depends on the last two.
    t = torch.arange(30, dtype=torch.float64)
    position = (0.99**t * torch.cos(0.4 * t))[:, None]
    alone = KoopmanOperator.fit(position, observables="state", rank=None)
    delayed = KoopmanOperator.fit(position, observables="state", rank=None, delays=2)
    truth = 0.99 ** (29 + 25) * math.cos(0.4 * (29 + 25))
    assert abs(float(delayed.predict(25)[0, 0]) - truth) < 1e-11
    assert abs(float(alone.predict(25)[0, 0]) - truth) > 0.05


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_constant_weights_are_still_or_stay(observables, n, device):
    snapshots = torch.full((8, n), 0.25, dtype=torch.float64, device=device)
    operator = KoopmanOperator.fit(snapshots, observables=observables, rank=None)
    assert operator.ok
    assert_rows_close(operator.predict([0, 1, 100]).cpu(), snapshots[:3].cpu(), steps=100)


def test_zero_weights_are_still():
    for observables in OBSERVABLES:
        operator = KoopmanOperator.fit(torch.zeros(5, 3), observables=observables, rank=None)
        assert operator.status.tolist() == [_reference.STILL]
        assert torch.equal(operator.predict([7])[0], torch.zeros(3))


@pytest.mark.parametrize("n_bad", [3, 200], ids=["primal", "dual"])
def test_a_weight_that_is_not_finite_is_a_status_not_an_error(n_bad, device):
    n = n_bad + 10
    snapshots = cases.random_walk(9, n).to(device)
    snapshots[4, 1] = math.nan
    partition = Partition.from_segments([[(0, n_bad)], [(n_bad, 10)]], n)
    operator = KoopmanOperator.fit(snapshots, partition, rank=3)
    assert operator.status.tolist() == [_reference.NON_FINITE, _reference.OK]
    assert "block 0" in str(operator.failure())
    predicted = operator.predict([0.0, 2.0])
    assert bool(predicted[:, :n_bad].isnan().all())
    assert bool(predicted[:, n_bad:].isfinite().all())


@st.composite
def problems(draw):
    m = draw(st.integers(4, 24))
    n = draw(st.integers(1, 60))
    blocks = draw(st.integers(1, min(n, 5)))
    delays = draw(st.integers(1, 2))
    options = {
        "observables": draw(st.sampled_from(OBSERVABLES)),
        "rank": draw(st.sampled_from([None, 1, 3, "auto", 0.9, "gavish-donoho"])),
        "delays": delays if m > 5 else 1,
        **draw(st.sampled_from(ESTIMATORS)),
        "unstable": draw(st.sampled_from(["keep", "clip", "damp"])),
    }
    dtype = draw(st.sampled_from(cases.DTYPES))
    return m, n, blocks, draw(st.integers(0, 99)), dtype, options


_TIE = {"observables": "state", "rank": "auto", "delays": 1, "unstable": "clip"}


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(METHODS))
@example((4, 9, 4, 1, torch.float64, _TIE), "gram")
def test_native_agrees_with_the_twin(problem, method):
    m, n, blocks, seed, dtype, options = problem
    snapshots = cases.random_walk(m, n, dtype, seed)
    partition = cases.interleaved(n, blocks)
    # A cut far from both the noise of 16-bit snapshots and that of the Gram matrix: which
    # directions are kept must not hang on rounding.
    operator = KoopmanOperator.fit(snapshots, partition, method=method, tolerance=1e-4, **options)
    horizons = [0.0, 1.0, 1.5, 4.0]
    predicted = operator.predict(horizons)
    for b in range(blocks):
        segments = partition.block(b)
        states = _reference.gather(snapshots, segments)
        twin = _reference.fit_block(states, tolerance=1e-4, **options)
        error, rank = float(operator.hindcast_error[b]), int(operator.rank[b])
        if rank != twin.rank and 0 in (rank, twin.rank):
            # Only where the hindcast is as good as standing still may rounding decide.
            assert options["rank"] == "auto"
            assert error == pytest.approx(1, abs=1e-12)
            assert twin.hindcast_error == pytest.approx(1, abs=1e-12)
            continue
        assert int(operator.status[b]) == twin.status
        assert rank == twin.rank
        assert str(float(operator.trusted_horizon[b])) == str(twin.trusted_horizon)  # NaN or equal
        assert_same_spectrum(operator.eigenvalues_of(b), twin.eigenvalues, tolerance=1e-4)
        expected = _reference.predict_block(twin, horizons)
        got = _reference.gather(predicted, segments)
        if bool(expected.isfinite().all()) and float(expected.abs().max()) < 1e3:
            limit = {torch.float64: 1e-6, torch.float32: 1e-5}.get(dtype, 1e-2)
            assert relative_error(got, expected) < limit
