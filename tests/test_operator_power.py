# SPDX-License-Identifier: BSD-3-Clause
"""Predictions against closed forms: any horizon, any form, any partition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import cases
from compare import (
    assert_rows_close,
    assert_same_spectrum,
    exactness,
    on_threads,
    relative_error,
)
from koopfast import KoopmanOperator, Partition, _reference

OBSERVABLES = ("state", "increments")
SIZES = (6, 300)
M = 20
INF = math.inf


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("method", ["gram", "qr"])
@pytest.mark.parametrize("observables", OBSERVABLES)
@pytest.mark.parametrize("system", cases.SYSTEMS, ids=lambda s: s.name)
def test_a_thousand_steps_of_a_known_system(system, observables, method, n, device):
    horizons = [0, 1, 2, 17, 250, 1000]
    snapshots = system.states(n, range(M)).to(device)
    truth = system.states(n, [M - 1 + h for h in horizons])
    operator = KoopmanOperator.fit(
        snapshots, observables=observables, rank=system.order, method=method, unstable="keep"
    )
    predicted = operator.predict(horizons).cpu()
    scale = snapshots[-1].norm().cpu()
    error = (predicted - truth).norm(dim=1) / torch.maximum(scale, truth.norm(dim=1))
    bound = exactness(
        snapshots, system.order, observables=observables, method=method, steps=horizons[-1]
    )
    assert float(error.max()) < bound


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("method", ["gram", "qr"])
@pytest.mark.parametrize("observables", OBSERVABLES)
@pytest.mark.parametrize("estimator", ["forward_backward", "total_least_squares"])
@pytest.mark.parametrize("system", cases.SYSTEMS, ids=lambda s: s.name)
def test_without_noise_every_estimator_is_exact(system, estimator, observables, method, n):
    horizons = [0, 1, 2, 17, 250, 1000]
    snapshots = system.states(n, range(M))
    truth = system.states(n, [M - 1 + h for h in horizons])
    operator = KoopmanOperator.fit(
        snapshots,
        observables=observables,
        rank=system.order,
        estimator=estimator,
        method=method,
        unstable="keep",
    )
    scale = torch.maximum(snapshots[-1].norm(), truth.norm(dim=1))
    bound = exactness(
        snapshots, system.order, observables=observables, method=method, steps=horizons[-1]
    )
    assert float(((operator.predict(horizons) - truth).norm(dim=1) / scale).max()) < bound


# Rates of decay, and the method whose digits they take: the second set's slowest modes move a
# ten-thousandth of the fastest, and only their square is left of that in a Gram matrix.
RATES = {"gram": (0.9, 0.6, 0.99, 0.3), "qr": (0.9, 0.99, 0.999, 0.6)}


@pytest.mark.parametrize("method", ["gram", "qr"])
@pytest.mark.parametrize("kind", ["network", "layer", "node", "quasi_node", "weight"])
def test_exact_recovery_a_thousand_steps_ahead_at_every_partition(kind, method, device):
    model = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    partition = Partition.of(kind, model, size=3 if kind == "quasi_node" else None)
    n = partition.n
    index = torch.arange(n)
    rates = torch.tensor(RATES[method], dtype=torch.float64)[index % 4]
    generator = torch.Generator().manual_seed(1)
    limit, swing = torch.randn(2, n, dtype=torch.float64, generator=generator)

    def weights(t: float) -> torch.Tensor:
        return limit + swing * rates**t

    m = 24
    snapshots = torch.stack([weights(t) for t in range(m)]).to(device)
    operator = KoopmanOperator.fit(snapshots, partition, method=method)
    predicted = operator.predict([1, 1000, INF]).cpu()
    truth = torch.stack([weights(m), weights(m + 999), limit])
    assert relative_error(predicted, truth) < 1e-9


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_state_prediction_is_the_papers_formula(n, device):
    # U = F' F^+, w(T) = U^T w_m, formed literally from the (n, n) matrix.
    snapshots = cases.random_walk(9, n).to(device)
    f, f_next = snapshots[:-1].T.cpu(), snapshots[1:].T.cpu()
    u = f_next @ torch.linalg.pinv(f)
    last = snapshots[-1].cpu()
    truth = torch.stack([torch.linalg.matrix_power(u, h) @ last for h in (1, 2, 5)])
    operator = KoopmanOperator.fit(
        snapshots, observables="state", rank=None, method="qr", unstable="keep"
    )
    assert relative_error(operator.predict([1, 2, 5]).cpu(), truth) < 1e-9


@pytest.mark.parametrize("observables", OBSERVABLES)
@pytest.mark.parametrize("system", cases.STABLE, ids=lambda s: s.name)
def test_fractional_horizons(system, observables):
    horizons = [0.25, 1.5, 7.75]
    linear = [system.defective or observables == "state", system.defective, system.defective]
    operator = KoopmanOperator.fit(
        system.states(12, range(M)), observables=observables, rank=system.order, method="qr"
    )
    predicted = operator.predict(horizons)
    truth = system.states(12, [M - 1 + h for h in horizons])
    for row, horizon in enumerate(horizons):
        if linear[row]:  # as the docstring says
            before, after = operator.predict([math.floor(horizon), math.ceil(horizon)])
            truth[row] = torch.lerp(before, after, horizon % 1)
    error = (predicted - truth).norm(dim=1).max() / system.states(12, [M - 1]).norm()
    assert float(error) < 1e-9


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("system", cases.STABLE, ids=lambda s: s.name)
def test_the_limit_of_a_stable_system(system, n, device):
    snapshots = system.states(n, range(M), offset=1.0).to(device)
    limit = system.states(n, [100_000], offset=1.0)
    operator = KoopmanOperator.fit(snapshots, rank=system.order)
    assert relative_error(operator.predict([INF]).cpu(), limit) < 1e-8
    vanishing = KoopmanOperator.fit(
        system.states(n, range(M)), observables="state", rank=system.order
    )
    assert float(vanishing.predict([INF]).abs().max()) < 1e-12


@pytest.mark.parametrize("unstable", ["keep", "clip"])
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_limits_that_do_not_exist_are_nan_and_nothing_else_is(observables, unstable):
    # Rounding puts the eigenvalues now inside, now outside the circle: it must not matter.
    for angle in torch.linspace(0.1, 3.0, 40).tolist():
        circling = cases.LinearSystem("", (cases.pair(1.0, angle), cases.real(0.5)))
        operator = KoopmanOperator.fit(
            circling.states(8, range(M)), observables=observables, rank=3, unstable=unstable
        )
        predicted = operator.predict([3.0, INF])
        assert bool(predicted[0].isfinite().all())
        assert bool(predicted[1].isnan().all())


def test_the_limit_of_what_does_not_move_is_itself():
    constant = KoopmanOperator.fit(torch.ones(5, 4).double(), observables="state", rank=None)
    assert torch.allclose(constant.predict([INF]), torch.ones(1, 4).double())


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_clipping_bounds_the_growth_and_spares_the_rest(observables, n):
    system = cases.LinearSystem("unstable", (cases.real(1.2), cases.pair(0.9, 1.0)))
    snapshots = system.states(n, range(M))
    kept = KoopmanOperator.fit(snapshots, observables=observables, rank=3, unstable="keep")
    clipped = KoopmanOperator.fit(snapshots, observables=observables, rank=3, unstable="clip")
    assert float(kept.eigenvalues.abs().max()) == pytest.approx(1.2)
    assert float(clipped.eigenvalues.abs().max()) <= 1 + 1e-12
    stable = sorted(abs(v) for v in clipped.eigenvalues.tolist())
    assert stable == pytest.approx([0.9, 0.9, 1.0])
    # One step of a clipped increment is the last one again: growth is linear, not exponential.
    far = clipped.predict([1000]) - snapshots[-1]
    assert float(far.norm()) <= 1001 * float(snapshots[-1].norm())
    assert float(kept.predict([1000]).norm()) > 1e50


@pytest.mark.parametrize("observables", OBSERVABLES)
def test_a_clipped_operator_stays_bounded_at_the_farthest_horizon(observables):
    system = cases.LinearSystem("growing", (cases.pair(1.05, 0.7), cases.pair(1.2, 2.0)))
    snapshots = system.states(30, range(M))
    operator = KoopmanOperator.fit(snapshots, observables=observables, rank=4)
    predicted = operator.predict([1e6, 2.0**53])
    assert float(predicted.norm(dim=1).max()) < 100 * float(snapshots[-1].norm())


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_damping_reflects_the_growth_and_spares_the_rest(observables, n):
    system = cases.LinearSystem("unstable", (cases.pair(1.25, 0.4), cases.real(-0.7)))
    mirrored = cases.LinearSystem("stable", (cases.pair(0.8, 0.4), cases.real(-0.7)))
    snapshots = system.states(n, range(M))
    damped = KoopmanOperator.fit(snapshots, observables=observables, rank=3, unstable="damp")
    assert_same_spectrum(damped.eigenvalues, mirrored.eigenvalues(), tolerance=1e-6)
    near, far, limit = damped.predict([10, 1000, INF])
    assert float((far - limit).norm()) < 1e-9 * float((near - limit).norm())


def test_without_an_eigenbasis_the_whole_operator_is_damped():
    snapshots = cases.LinearSystem("growing", (cases.Mode("jordan", 1.25),)).states(8, range(M))
    damped = KoopmanOperator.fit(snapshots, rank=2, method="qr", unstable="damp")
    expected = torch.full((2,), 0.8, dtype=torch.complex128)
    assert_same_spectrum(damped.eigenvalues, expected, tolerance=1e-4)


def test_defective_operators_are_powered_by_squaring():
    jordan = cases.SYSTEMS[6]
    snapshots = jordan.states(10, range(M))
    operator = KoopmanOperator.fit(snapshots, rank=2, method="qr")
    _, _, usable = _reference.eigenbasis(torch.tensor([[0.9, 1.0], [0.0, 0.9]]).double())
    assert not usable
    truth = jordan.states(10, [M - 1 + 64])
    assert float((operator.predict([64]) - truth).norm() / snapshots[-1].norm()) < 1e-11


def test_far_horizons_of_a_slow_system_keep_their_digits():
    # 1 + lambda + ... with lambda = 1 - 1e-7: the textbook formula loses seven digits.
    rate = 1 - 1e-7
    t = torch.arange(8, dtype=torch.float64)
    snapshots = torch.expm1(t * math.log1p(-1e-7))[:, None] * torch.ones(1, 3)
    operator = KoopmanOperator.fit(snapshots.double(), rank=1)
    value = float(operator.eigenvalues.real[0])
    assert value == pytest.approx(rate, abs=1e-9)
    truth = math.expm1((7 + 1e4) * math.log1p(-1e-7))
    assert float(operator.predict([1e4])[0, 0]) == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_every_dtype_is_rounded_once(dtype, observables, device):
    snapshots = cases.random_walk(10, 200, dtype).to(device)
    partition = cases.mixed(200)
    options = {"observables": observables, "rank": 2}
    predicted = KoopmanOperator.fit(snapshots, partition, **options).predict([0, 1, 3])
    assert predicted.dtype == dtype
    assert torch.equal(predicted[0], snapshots[-1])
    exact = KoopmanOperator.fit(snapshots.double(), partition, **options).predict([0, 1, 3])
    assert torch.equal(predicted, exact.to(dtype))


def test_the_present_is_copied_bit_for_bit():
    tiny = torch.tensor([6e-8, -0.0, 3.8e-6, -1e-7, 1.0]).to(torch.float16)
    snapshots = torch.stack([tiny * scale for scale in (4, 3, 2, 1)])
    try:
        torch.set_flush_denormal(True)
        now = KoopmanOperator.fit(snapshots, rank=1).predict([0])[0]
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(now.view(torch.int16), snapshots[-1].view(torch.int16))


def test_every_entry_of_the_output_is_written(device):
    snapshots = cases.random_walk(10, 5000, torch.float32).to(device)
    operator = KoopmanOperator.fit(snapshots, cases.mixed(5000), rank=2)
    poisoned = torch.full((3, 6000), math.nan, device=device)
    out = poisoned[:, 500:5500]
    assert operator.predict([0, 1, 2.5], out=out) is out
    assert bool(out.isfinite().all())
    assert bool(poisoned[:, :500].isnan().all())
    assert bool(poisoned[:, 5500:].isnan().all())
    assert torch.equal(out, operator.predict([0, 1, 2.5]))


def test_a_partition_of_one_block_equals_none():
    snapshots = cases.random_walk(10, 50)
    one = Partition.from_segments([[(0, 50)]], 50)
    assert torch.equal(
        KoopmanOperator.fit(snapshots, one).predict([4]),
        KoopmanOperator.fit(snapshots).predict([4]),
    )


def test_permuting_the_parameters_permutes_the_prediction():
    snapshots = cases.random_walk(10, 90)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(2))
    plain = KoopmanOperator.fit(snapshots, rank=4).predict([5])
    permuted = KoopmanOperator.fit(snapshots[:, order], rank=4).predict([5])
    assert_rows_close(permuted, plain[:, order], condition=1e3, steps=5)


def test_jumps_compose():
    system = cases.SYSTEMS[0]
    snapshots = system.states(40, range(M), offset=1.0)
    operator = KoopmanOperator.fit(snapshots, rank=3)
    window = operator.predict(range(11, 21))
    onwards = KoopmanOperator.fit(window, rank=3).predict([10])
    assert relative_error(onwards, operator.predict([30])) < 1e-10


def test_the_same_to_the_last_bit_for_every_thread_count():
    snapshots = cases.random_walk(12, 60_000, torch.float32)
    partition = cases.mixed(60_000)
    results = on_threads(
        (1, 2, 3), lambda: KoopmanOperator.fit(snapshots, partition, rank=3).predict([2.0, 9.0])
    )
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
