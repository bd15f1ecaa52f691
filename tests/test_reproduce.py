# SPDX-License-Identifier: BSD-3-Clause
"""The reproduction on tiny settings: that stacking changes nothing, that a killed run goes on,
that the rate is chosen by losses, and both experiments from training to the document."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from koopfast import reproduce
from koopfast.data import HamiltonianNetwork, Mnist, Oscillator
from koopfast.reproduce.digits import DigitsSettings, digits_experiment
from koopfast.reproduce.document import update
from koopfast.reproduce.solver import SolverSettings, choose_rate, solver_experiment
from koopfast.reproduce.stacked import StackedSolvers, initial_weights
from koopfast.reproduce.tables import ratio
from koopfast.reproduce.trajectories import (
    OPTIMIZERS,
    RunSpec,
    load_losses,
    load_weights,
    perturbed,
    train_all,
)
from test_demo import digits  # noqa: F401  # the fixture: made-up digits

TINY = SolverSettings(
    networks=2, sweep=2, keep_from=100, last=500, fitted_until=400, horizon=50,
    rates=(("Adam", (0.01, 0.003)), ("Adagrad", (0.01,))),
    repeats=1, chunk=150, points=20, width=3,
)  # fmt: skip
SPEC = RunSpec("Adam", 0.01, networks=2, keep_from=10, last=40, chunk=15, points=20, width=3)


@pytest.fixture(autouse=True)
def keep_threads() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_stack_trains_as_each_network_alone(name: str) -> None:
    problem = Oscillator(points=20)
    stack = initial_weights(problem, range(3), 4).requires_grad_()
    together = OPTIMIZERS[name]([stack], 0.01)
    solvers = StackedSolvers(problem, 4)
    alone = [HamiltonianNetwork(problem, width=4) for _ in range(3)]
    apart = []
    for row, network in zip(stack.detach().clone(), alone, strict=True):
        torch.nn.utils.vector_to_parameters(row, network.parameters())
        apart.append(OPTIMIZERS[name](list(network.parameters()), 0.01))
    for _ in range(50):
        together.zero_grad()
        solvers.losses(stack).sum().backward()
        together.step()
        for network, optimizer in zip(alone, apart, strict=True):
            optimizer.zero_grad()
            network.loss().backward()
            optimizer.step()
    rows = [torch.nn.utils.parameters_to_vector(network.parameters()) for network in alone]
    torch.testing.assert_close(stack.detach(), torch.stack(rows).detach(), rtol=1e-9, atol=1e-11)


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    train_all([SPEC], tmp_path)
    whole, losses = load_weights(SPEC, tmp_path), load_losses(SPEC, tmp_path)
    assert whole.shape == (2, 31, 26)
    assert losses.shape == (40, 2)
    for chunk in (1, 2):
        (tmp_path / SPEC.file(chunk)).unlink()
    train_all([SPEC], tmp_path)
    assert torch.equal(load_weights(SPEC, tmp_path), whole)
    assert torch.equal(load_losses(SPEC, tmp_path), losses)


def test_noise_moves_points_but_the_first_and_keeps_them_inside() -> None:
    problem = Oscillator(points=20)
    times = perturbed(problem, 0.4, torch.Generator().manual_seed(0), 100)
    assert times.shape == (100, 20)
    assert bool((times[:, 0] == 0).all())
    assert float(times.min()) >= 0
    assert float(times.max()) <= problem.duration
    spacing = problem.duration / 19
    spread = float((times - problem.times())[:, 2:-2].std()) / spacing
    assert 0.35 < spread < 0.45


def test_the_rate_is_the_best_of_those_that_train_smoothly() -> None:
    rates = [
        {"rate": 1.0, "loss": 0.1, "falling": 0.5},
        {"rate": 0.1, "loss": 0.2, "falling": 1.0},
        {"rate": 0.01, "loss": 0.3, "falling": 1.0},
    ]
    assert choose_rate(rates) == 0.1
    assert choose_rate(rates[:1]) == 1.0


def test_the_solver_from_training_to_the_document(tmp_path: Path) -> None:
    result = solver_experiment(TINY, tmp_path)
    assert {run["optimizer"] for run in result["runs"]} == {"Adam", "Adagrad"}
    assert sorted(bool(run["noise"]) for run in result["runs"]) == [False, False, True, True]
    for run in result["runs"]:
        at = run["horizons"].index(50)
        # The weights really move, and the prediction that is scored is not the truth itself.
        assert 0 < ratio(run, "node", "increments", at) < 2
    again = solver_experiment(TINY, tmp_path)  # from the folder alone
    assert again == result
    published(tmp_path, "solver", "de-solver", result)


def test_the_digits_from_training_to_the_document(
    digits: Mnist,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = DigitsSettings(
        seeds=2, epochs=1, width=4, batch=4, horizons=(5, 20), headline=20, evaluated=100, repeats=1
    )
    result = digits_experiment(digits, settings, tmp_path)
    for run in result["runs"]:
        assert set(run["predictions"]) == {"weight", "quasi_node", "node", "layer", "network"}
        assert 0.1 < run["true"][1]["test_accuracy"] <= 1
    assert digits_experiment(digits, settings, tmp_path) == result
    published(tmp_path, "digits", "mnist", result)


def published(folder: Path, name: str, experiment: str, result: dict[str, Any]) -> None:
    """Figures, page, numbers, and a document of which only what is between markers changes."""
    doc = folder / "reproduction.md"
    stale = f"<!-- begin {name}-verdict -->\nstale numbers\n<!-- end {name}-verdict -->"
    doc.write_text(f"# Mine\n\nkept\n\n{stale}\n")
    args = argparse.Namespace(
        out=folder, doc=doc, experiment=experiment, full=False, json=False, quiet=False
    )
    reproduce.publish(name, result, args, 1.0)
    text = doc.read_text()
    assert text.startswith("# Mine\n\nkept\n")
    assert "stale" not in text
    assert "what must hold" in text or "predicted" in text
    assert json.loads((folder / f"{name}.json").read_text())["methods"]
    page = (folder / f"{name}.html").read_text()
    assert "<svg" in page
    assert list(folder.glob("*.png"))
    reproduce.publish(name, result, args, 1.0)
    assert doc.read_text() == text


def test_a_part_without_markers_is_put_at_the_end(tmp_path: Path) -> None:
    doc = update(tmp_path / "new.md", {"one": "1"})
    update(doc, {"two": "2", "one": "3"})
    text = doc.read_text()
    assert "<!-- begin one -->\n3\n<!-- end one -->" in text
    assert text.index("one") < text.index("two")
