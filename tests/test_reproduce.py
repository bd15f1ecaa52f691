# SPDX-License-Identifier: BSD-3-Clause
"""The reproduction on tiny settings: that stacking changes nothing, that a killed run goes on,
that the rate is chosen by losses, and both experiments from training to the document."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
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
    networks=3, sweep=2, noisy=1, keep_from=100, last=500, fitted_until=400, horizon=50,
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
    stack = initial_weights(problem, range(3), 4)
    together = OPTIMIZERS[name]([stack], 0.01)
    solvers = StackedSolvers(problem, 4)
    alone = [HamiltonianNetwork(problem, width=4) for _ in range(3)]
    apart = []
    for row, network in zip(stack.clone(), alone, strict=True):
        torch.nn.utils.vector_to_parameters(row, network.parameters())
        apart.append(OPTIMIZERS[name](list(network.parameters()), 0.01))
    for _ in range(50):
        stack.grad = solvers.gradients(stack)[1]
        together.step()
        for network, optimizer in zip(alone, apart, strict=True):
            optimizer.zero_grad()
            network.loss().backward()
            optimizer.step()
    rows = [torch.nn.utils.parameters_to_vector(network.parameters()) for network in alone]
    torch.testing.assert_close(stack, torch.stack(rows).detach(), rtol=1e-9, atol=1e-11)


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


def test_a_killed_command_leaves_no_worker_behind(tmp_path: Path) -> None:
    endless = [dataclasses.replace(SPEC, last=10**7, first=first) for first in (0, 2)]
    script = tmp_path / "command.py"
    script.write_text(
        "from pathlib import Path\n"
        "from koopfast.reproduce.trajectories import RunSpec, train_all\n"
        f"if __name__ == '__main__':\n    train_all({endless}, Path({str(tmp_path)!r}), workers=2)"
    )
    command = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 150
    first = [tmp_path / spec.file(1) for spec in endless]
    while not all(chunk.is_file() for chunk in first) and time.monotonic() < until:
        time.sleep(0.01)
    command.kill()
    command.wait()
    counts = [-1, len(list(tmp_path.rglob("*.pt")))]
    while counts[-1] != counts[-2] and time.monotonic() < until:
        time.sleep(1)
        counts.append(len(list(tmp_path.rglob("*.pt"))))
    assert counts[-1] == counts[-2] >= 2
    train_all([SPEC], tmp_path)
    chunks = [torch.load(tmp_path / spec.file(1)) for spec in (SPEC, endless[0])]
    assert torch.equal(chunks[0]["weights"], chunks[1]["weights"])


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
        seeds=2, epochs=1, width=4, batch=1, horizons=(5, 20), headline=20, evaluated=100, repeats=1
    )
    result = digits_experiment(digits, settings, tmp_path)
    for run in result["runs"]:
        assert set(run["predictions"]) == {"weight", "quasi_node", "node", "layer", "network"}
        assert 0.1 < run["true"][1]["test_accuracy"] <= 1
    assert digits_experiment(digits, settings, tmp_path) == result
    published(tmp_path, "digits", "mnist", result)


DOCUMENT = Path(__file__).parents[1] / "docs" / "reproduction.md"
MARKED = re.compile(r"(<!-- begin ([\w-]+) -->\n).*?(\n<!-- end \2 -->)", re.DOTALL)


def published(folder: Path, name: str, experiment: str, result: dict[str, Any]) -> None:
    """Figures, page, numbers, and the document, of which everything between markers is written
    anew, and nothing else changes."""
    doc = folder / "reproduction.md"
    doc.write_text(MARKED.sub(r"\1stale\3", DOCUMENT.read_text(encoding="utf-8")))
    args = argparse.Namespace(
        out=folder, doc=doc, experiment=experiment, full=False, networks=None,
        json=False, quiet=False,
    )  # fmt: skip
    reproduce.publish(name, result, args, "took 1 minute from an empty folder")
    text = doc.read_text()
    assert MARKED.sub("", text) == MARKED.sub("", DOCUMENT.read_text(encoding="utf-8"))
    mine = [found[0] for found in MARKED.finditer(text) if found[2].startswith(name)]
    assert len(mine) > 5
    assert not [part for part in mine if "stale" in part]
    assert json.loads((folder / f"{name}.json").read_text())["methods"]
    page = (folder / f"{name}.html").read_text()
    assert "<svg" in page
    assert list(folder.glob("*.png"))
    reproduce.publish(name, result, args, "took no time from what was there")
    assert doc.read_text() == text


def test_the_text_around_the_tables_has_no_figures_of_its_own() -> None:
    around = MARKED.sub("", DOCUMENT.read_text(encoding="utf-8"))
    assert re.findall(r"\d[\d.,]*\s*(?:×|%|ms\b|seconds\b|minutes\b|points\b)", around) == []


def test_a_part_without_markers_is_put_at_the_end(tmp_path: Path) -> None:
    doc = update(tmp_path / "new.md", {"one": "1"})
    update(doc, {"two": "2", "one": "3"})
    text = doc.read_text()
    assert "<!-- begin one -->\n3\n<!-- end one -->" in text
    assert text.index("one") < text.index("two")
