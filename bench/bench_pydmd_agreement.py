# SPDX-License-Identifier: BSD-3-Clause
"""On its own territory, states of a linear system, koopfast finds what PyDMD finds.

Not among tests/, because only the bench extra brings PyDMD.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydmd import DMD

from koopfast import KoopmanOperator
from trajectories import rotating

# PyDMD's advice on snapshots of lower rank than there are: the rank is given, so it is heeded.
pytestmark = pytest.mark.filterwarnings("ignore:Input data condition number:UserWarning")

LITERAL = {"observables": "state", "unstable": "keep", "method": "qr"}
M = 24


def noisy(n, order, noise):
    """A linear system and noise, so that no two formulations agree by accident."""
    generator = torch.Generator().manual_seed(1)
    states = rotating(M, 1, n, order).double() * 0.97 ** torch.arange(M)[:, None]
    return states + noise * torch.randn(M, n, generator=generator, dtype=torch.float64)


def same_numbers(ours, theirs, tolerance):
    """Equal as multisets: every eigenvalue of one next to one of the other."""
    left = list(theirs)
    assert len(ours) == len(left)
    for value in ours:
        nearest = min(left, key=lambda other: abs(other - value))
        assert abs(nearest - value) < tolerance
        left.remove(nearest)


@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("n", [12, 400], ids=["primal", "dual"])
@pytest.mark.parametrize("rank", [2, 5, 6])
def test_eigenvalues_at_every_rank(rank, n, noise):
    snapshots = noisy(n, 6, noise)
    operator = KoopmanOperator.fit(snapshots, rank=rank, **LITERAL)
    dmd = DMD(svd_rank=rank).fit(snapshots.numpy().T)
    same_numbers(operator.eigenvalues.tolist(), dmd.eigs.tolist(), 1e-9)


@pytest.mark.parametrize("n", [12, 400], ids=["primal", "dual"])
def test_full_rank(n):
    snapshots = noisy(n, 6, 0.1)
    operator = KoopmanOperator.fit(snapshots, rank=None, tolerance=0.0, **LITERAL)
    dmd = DMD(svd_rank=-1).fit(snapshots.numpy().T)
    same_numbers(operator.eigenvalues.tolist(), dmd.eigs.tolist(), 1e-8)


@pytest.mark.parametrize("n", [12, 400], ids=["primal", "dual"])
def test_one_step_prediction_is_that_of_exact_dmd(n):
    snapshots = noisy(n, 6, 1e-3)
    operator = KoopmanOperator.fit(snapshots, rank=6, **LITERAL)
    x = snapshots.numpy().T
    dmd = DMD(svd_rank=6, exact=True).fit(x)
    # Exact DMD's modes are eigenvectors of U = F' F^+ (Tu et al. 2014), so U acts through them on
    # their own span; U x_last lies in it, and a second step is U on that.
    first, second = operator.predict([1, 2]).numpy()
    b = np.linalg.lstsq(dmd.modes, first.astype(complex), rcond=None)[0]
    np.testing.assert_allclose((dmd.modes @ b).real, first, atol=1e-9)
    np.testing.assert_allclose((dmd.modes @ (dmd.eigs * b)).real, second, atol=1e-9)


@pytest.mark.parametrize("horizon", [1, 10, 100])
@pytest.mark.parametrize("n", [12, 400], ids=["primal", "dual"])
def test_forecasts_of_a_linear_system(n, horizon):
    snapshots = noisy(n, 6, 0.0)
    dmd = DMD(svd_rank=6, exact=True).fit(snapshots.numpy().T)
    dmd.dmd_time["t0"] = dmd.dmd_time["tend"] = M - 1 + horizon
    predicted = KoopmanOperator.fit(snapshots, rank=6, **LITERAL).predict(horizon)[0]
    # The states were rounded to float32 once, which is the noise both fits see.
    scale = float(snapshots[-1].abs().max()) * 0.97**horizon
    np.testing.assert_allclose(predicted, dmd.reconstructed_data[:, 0].real, atol=1e-4 * scale)
