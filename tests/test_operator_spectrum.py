# SPDX-License-Identifier: BSD-3-Clause
"""An operator's spectrum to look at: modes, amplitudes, time constants, the figure."""

from __future__ import annotations

import math
import sys

import pytest
import torch

import cases
from compare import relative_error
from koopfast import KoopfastError, KoopmanOperator, _spectrum

SYSTEM = cases.SYSTEMS[2]
M = 20


@pytest.mark.parametrize("n", [6, 300], ids=["primal", "dual"])
@pytest.mark.parametrize("observables", ["state", "increments"])
def test_modes_and_amplitudes_make_the_prediction(observables, n, monkeypatch):
    monkeypatch.setattr(_spectrum, "_COLUMNS", 64)  # several pieces a segment
    snapshots = SYSTEM.states(2 * n, range(M), offset=10.0 if observables == "increments" else 0.0)
    partition = cases.interleaved(2 * n, 2)
    operator = KoopmanOperator.fit(snapshots, partition, observables=observables, rank=4)
    for b in range(2):
        modes = operator.modes_of(b, expand=True)
        assert modes.shape == (n, 4)
        powers = operator.eigenvalues_of(b) ** torch.arange(5)[:, None]
        factors = powers[4] if observables == "state" else powers.sum(0)
        moved = (modes @ (factors * operator.amplitudes_of(b)))[None]
        if observables == "increments":
            moved = moved + snapshots[-1:, b::2]
        assert relative_error(moved.real, operator.predict(5)[:, b::2]) < 1e-9
        assert float(moved.imag.abs().max()) < 1e-9


def test_modes_are_coefficients_where_weights_outnumber_snapshots():
    snapshots = SYSTEM.states(300, range(M))
    operator = KoopmanOperator.fit(snapshots, rank=4)
    coefficients = operator.modes_of(0)
    assert coefficients.shape == (M, 4)
    assert coefficients.sum(0).abs().max() < 1e-9 * coefficients.abs().max()  # of displacements
    expanded = snapshots.T.to(torch.complex128) @ coefficients
    assert torch.allclose(operator.modes_of(0, expand=True), expanded, atol=1e-10)
    small = KoopmanOperator.fit(snapshots[:, :6], rank=4)
    assert torch.equal(small.modes_of(0), small.modes_of(0, expand=True))


def test_without_an_eigenbasis_there_are_no_modes():
    snapshots = cases.SYSTEMS[6].states(10, range(M))
    operator = KoopmanOperator.fit(snapshots, rank=2, method="qr")
    assert operator.modes_of(0).shape == (10, 2)
    assert bool(operator.modes_of(0).isnan().all())
    assert bool(operator.amplitudes_of(0).isnan().all())


def test_a_still_block_has_an_empty_spectrum():
    operator = KoopmanOperator.fit(torch.ones(5, 30))
    assert operator.modes_of(0, expand=True).shape == (30, 0)
    assert operator.amplitudes_of(0).shape == operator.time_constants_of(0).shape == (0,)


def test_time_constants_count_recorded_intervals():
    system = cases.LinearSystem("some", (cases.real(math.exp(-0.1)), cases.pair(1.0, 0.3)))
    operator = KoopmanOperator.fit(system.states(8, range(M)), rank=3)
    constants = sorted(operator.time_constants_of(0).tolist())
    assert constants == [pytest.approx(10, rel=1e-6), math.inf, math.inf]
    growing = KoopmanOperator.fit(
        2.0 ** torch.arange(6)[:, None].double(), observables="state", rank=1, unstable="keep"
    )
    assert growing.time_constants_of(0).tolist() == [pytest.approx(-1 / math.log(2))]


def test_plot_shows_every_eigenvalue_and_leaves_pyplot_alone():
    pytest.importorskip("matplotlib")
    operator = KoopmanOperator.fit(SYSTEM.states(40, range(M)), cases.mixed(40), rank=2)
    figure = operator.plot()
    (points,) = figure.axes[0].collections
    assert len(points.get_offsets()) == len(operator.eigenvalues)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_plot_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(KoopfastError, match=r"matplotlib.*pip install 'koopfast\[plots\]'"):
        KoopmanOperator.fit(SYSTEM.states(6, range(M))).plot()
