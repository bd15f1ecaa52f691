# SPDX-License-Identifier: BSD-3-Clause
"""Complex weights get complex operators: known answers, and training with them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import cases
from compare import assert_same_spectrum, relative_error
from koopfast import (
    ConfigError,
    KoopmanOperator,
    KoopmanTrainer,
    MomentBuffer,
    Partition,
    _complex,
    _reference,
    _views,
)

OBSERVABLES = ("state", "increments")
SIZES = (6, 300)
M = 20
# On the circle and inside, at angles that no conjugate mirrors.
EIGENVALUES = torch.polar(
    torch.tensor([1.0, 1.0, 0.97, 0.6], dtype=torch.float64),
    torch.tensor([0.3, -1.1, 2.0, 0.5], dtype=torch.float64),
)


def states(n, times, eigenvalues=EIGENVALUES, seed=0):
    """w_t = Q diag(lambda)^t 1, (len(times), n) complex128, Q with orthonormal columns."""
    generator = torch.Generator().manual_seed(seed)
    shape = n, len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(shape, dtype=torch.complex128, generator=generator))
    t = torch.tensor(list(times), dtype=torch.float64)[:, None]
    return (eigenvalues**t) @ q.T


def walk(m, n, dtype=torch.complex128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(m, n, dtype=torch.complex128, generator=generator)
    return ((1 + 2j) + 0.05 * steps.cumsum(0)).to(dtype)


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("method", ["gram", "qr"])
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_a_known_system_is_predicted_a_thousand_steps_ahead(observables, method, n, device):
    snapshots = states(n, range(M)).to(device)
    operator = KoopmanOperator.fit(
        snapshots, observables=observables, rank=4, method=method, unstable="keep"
    )
    assert_same_spectrum(operator.eigenvalues, EIGENVALUES, tolerance=1e-11)
    predicted = operator.predict([0, 1, 30, 1000])
    assert predicted.dtype == torch.complex128
    assert torch.equal(predicted[0], snapshots[-1])
    known = states(n, [M - 1, M, M + 29, M + 999]).to(device)
    assert float((predicted - known).norm(dim=1).max() / known.norm(dim=1).min()) < 1e-9


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_the_rank_is_found_and_the_limit_is_the_fixed_point(n):
    decaying = EIGENVALUES[2:]
    fixed = states(n, [0], seed=1)
    snapshots = fixed + states(n, range(M), decaying)
    operator = KoopmanOperator.fit(snapshots)
    assert operator.rank.tolist() == [2]
    assert float(operator.hindcast_error[0]) < 1e-6
    assert relative_error_of(operator.predict(math.inf), fixed) < 1e-9


def relative_error_of(actual, expected):
    return relative_error(torch.view_as_real(actual), torch.view_as_real(expected))


@pytest.mark.parametrize(
    "options", [{}, {"delays": 2}, {"ridge": 1e-3}, {"symmetric": True}], ids=str
)
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_both_forms_and_methods_agree(observables, options):
    # The same motion in 12 weights (primal) and spread over 300 by an isometry (dual).
    few = walk(16, 12)
    generator = torch.Generator().manual_seed(2)
    q, _ = torch.linalg.qr(torch.randn(300, 12, dtype=torch.complex128, generator=generator))
    many = few @ q.T
    common = {"observables": observables, "rank": 4, **options}
    expected = KoopmanOperator.fit(few, **common).predict([1, 2.5, 20]) @ q.T
    for method in ("gram", "qr"):
        got = KoopmanOperator.fit(many, method=method, **common).predict([1, 2.5, 20])
        assert relative_error_of(got, expected) < 1e-8


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("estimator", ["least_squares", "forward_backward", "total_least_squares"])
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_real_states_get_the_real_operator(observables, estimator, n):
    real = cases.random_walk(16, n)
    options = {"observables": observables, "rank": 3, "estimator": estimator, "method": "qr"}
    expected = KoopmanOperator.fit(real, **options)
    operator = KoopmanOperator.fit(real.to(torch.complex128), **options)
    assert_same_spectrum(operator.eigenvalues, expected.eigenvalues, tolerance=1e-8)
    got = operator.predict([1, 7])
    assert relative_error(got.real, expected.predict([1, 7])) < 1e-8
    assert float(got.imag.abs().max()) < 1e-8


def test_a_turn_of_all_weights_turns_the_prediction():
    # What a real fit of stacked real and imaginary parts need not do, and a complex one must.
    snapshots = walk(12, 5)
    turn = torch.polar(torch.tensor(1.0), torch.tensor(0.7)).to(torch.complex128)
    one = KoopmanOperator.fit(snapshots, rank=3).predict([1, 9])
    other = KoopmanOperator.fit(snapshots * turn, rank=3).predict([1, 9])
    assert relative_error_of(other, one * turn) < 1e-9


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_a_self_adjoint_fit_has_a_real_spectrum(n):
    operator = KoopmanOperator.fit(walk(12, n), rank=4, symmetric=True)
    assert float(operator.eigenvalues.imag.abs().max()) < 1e-12


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("unstable", ["clip", "damp"])
def test_what_grows_is_bounded(unstable, n):
    growing = torch.polar(torch.tensor([1.02, 0.9]), torch.tensor([0.4, 1.0])).to(torch.complex128)
    operator = KoopmanOperator.fit(
        states(n, range(M), growing), observables="state", rank=2, unstable=unstable
    )
    largest = 1.0 if unstable == "clip" else 1 / 1.02
    assert float(operator.eigenvalues.abs().max()) == pytest.approx(largest, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_blocks_are_fitted_apart_in_any_layout(dtype):
    n, partition = 60, cases.mixed(60)
    snapshots = walk(14, n, dtype)
    operator = KoopmanOperator.fit(snapshots, partition, rank=3)
    assert operator.rank.shape == (partition.n_blocks,)
    predicted = operator.predict([0, 4])
    assert predicted.dtype == dtype
    assert torch.equal(predicted[0], snapshots[-1])
    for b in range(partition.n_blocks):
        own = _reference.gather(snapshots, partition.block(b))
        alone = KoopmanOperator.fit(own, rank=3)
        got = _reference.gather(predicted[1:], partition.block(b))
        assert relative_error_of(got, alone.predict(4)) < (
            1e-6 if dtype == torch.complex64 else 1e-9
        )
        assert_same_spectrum(operator.eigenvalues_of(b), alone.eigenvalues, tolerance=1e-6)
    from_numpy = KoopmanOperator.fit(snapshots.numpy(), partition, rank=3).predict([0, 4])
    assert torch.equal(from_numpy, predicted)


def test_tiles_do_not_show(monkeypatch):
    snapshots = walk(10, 500)
    whole = KoopmanOperator.fit(snapshots, rank=4).predict([3, 50])
    monkeypatch.setattr(_complex, "_TILE", 10 * 7)
    assert relative_error_of(KoopmanOperator.fit(snapshots, rank=4).predict([3, 50]), whole) < 1e-10


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
def test_modes_and_amplitudes_make_up_the_prediction(n):
    operator = KoopmanOperator.fit(states(n, range(M)), observables="state", rank=4)
    modes, amplitudes = operator.modes_of(0, expand=True), operator.amplitudes_of(0)
    assert modes.shape == (n, 4)
    total = modes @ (amplitudes * operator.eigenvalues_of(0) ** 4)
    assert relative_error_of(total[None], operator.predict(5)) < 1e-9
    assert len(operator.singular_values_of(0)) == 4


@pytest.mark.parametrize("n", SIZES, ids=["primal", "dual"])
@pytest.mark.parametrize("method", ["gram", "qr"])
def test_failures_are_statuses(method, n):
    snapshots = walk(10, n)
    snapshots[3, 2] = complex(1.0, math.nan)
    bad = KoopmanOperator.fit(snapshots, method=method)
    assert bad.status.tolist() == [_reference.NON_FINITE]
    assert bool(bad.predict([0, 2]).isnan().all())
    still = KoopmanOperator.fit(torch.full((8, n), 0.5j), method=method)
    assert still.status.tolist() == [_reference.STILL]
    assert torch.equal(still.predict([5])[0], torch.full((n,), 0.5j))


def test_moments_are_of_real_weights():
    with pytest.raises(ConfigError, match="complex64"):
        MomentBuffer(torch.zeros(4, dtype=torch.complex64))


class Spinning(nn.Module):
    """A complex weight and bias and a real scale; the loss pulls them to where they belong."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = {"dtype": torch.complex128, "generator": generator}
        self.weight = nn.Parameter(torch.randn(3, 4, **shape))
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(3, dtype=torch.complex128))
        self.x, self.y = torch.randn(40, 4, **shape), torch.randn(40, 3, **shape)

    def loss(self) -> torch.Tensor:
        error = self.scale * (self.x @ self.weight.T) + self.bias - self.y
        return (error * error.conj()).real.mean()


def test_a_model_with_complex_parameters_is_trained_with_jumps():
    model = Spinning()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    trainer = KoopmanTrainer(model, optimizer, window=20, stride=2, partition="network")
    with torch.no_grad():
        start = float(model.loss())
    for _ in range(120):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
        trainer.after_step(model.loss)
    accepted = [jump for jump in trainer.history.jumps if jump.accepted]
    assert accepted
    assert all(jump.loss_after < jump.loss_before for jump in accepted)
    assert trainer.operator._snapshots.dtype == torch.complex128
    assert float(model.loss().detach()) < start
    assert model.scale.dtype == torch.float64
    assert [p.is_complex() for p in model.parameters()] == [True, False, True]
    trainer.rollback()


def test_a_trainer_of_complex_parameters_resumes_bit_for_bit(tmp_path):
    def run(steps, state=None):
        model = Spinning()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        trainer = KoopmanTrainer(model, optimizer, window=10, stride=2, average=True)
        if state is not None:
            model.load_state_dict(state["model"])
            trainer.load_state_dict(state["trainer"])
        for _ in range(steps):
            optimizer.zero_grad()
            model.loss().backward()
            optimizer.step()
            trainer.after_step(model.loss)
        return model, trainer

    model, trainer = run(13)
    torch.save({"model": model.state_dict(), "trainer": trainer.state_dict()}, tmp_path / "state")
    resumed, _ = run(27, torch.load(tmp_path / "state", weights_only=True))
    through, _ = run(40)
    for one, other in zip(resumed.parameters(), through.parameters(), strict=True):
        assert torch.equal(one, other)


def test_partitions_of_a_complex_layer_are_as_of_a_real_one():
    layer = nn.Linear(3, 2, dtype=torch.complex64)
    assert Partition.node(layer).n_blocks == 2
    assert _views.as_snapshots(torch.zeros(3, 4, dtype=torch.complex64).conj()).is_conj() is False


@pytest.mark.parametrize(
    ("field", "value"), [("observables", "auto"), ("delays", "auto"), ("block_average", 2)]
)
def test_nothing_but_the_rank_is_chosen_for_complex_weights(field, value):
    with pytest.raises(ConfigError, match=f"^{field}: of complex weights"):
        KoopmanOperator.fit(torch.ones(8, 2, dtype=torch.complex64), **{field: value})
