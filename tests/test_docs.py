# SPDX-License-Identifier: BSD-3-Clause
"""What the pages of docs/ show runs, and does what they say."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page for page in DOCS.glob("*.md") if ">>> " in page.read_text(encoding="utf-8"))
BLOCK = re.compile(r"^## (.+?)\n.*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECIPES = BLOCK.findall((DOCS / "recipes.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_print_what_they_show(page: Path) -> None:
    outcome = doctest.testfile(str(page), module_relative=False)
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`:FutureWarning")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize(("title", "code"), RECIPES, ids=[title for title, _ in RECIPES])
def test_a_recipe_runs(
    title: str,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for framework in re.findall(r"^from (lightning|transformers)\b", code, re.MULTILINE):
        pytest.importorskip(framework)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(code, title, "exec"), names)
    history = names["trainer"].history  # type: ignore[attr-defined]
    if "summary()" in code:
        assert history.jumps
        assert "jumps accepted" in capsys.readouterr().out


def test_the_lines_of_the_readme_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a script that has model, optimizer, loader and loss_fn, as a reader's has."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(20, 3)
    names: dict[str, Any] = {
        "torch": torch,
        "model": model,
        "optimizer": optimizer,
        "loader": [(x, x.sin().sum(1, keepdim=True))] * 40,
        "loss_fn": torch.nn.functional.mse_loss,
        "snapshots": torch.linspace(0, 2, 12).exp()[:, None].repeat(1, 3),
        "step": lambda state: state / 2 + 1,
        "x0": torch.zeros(3),
        "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer),
    }
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    first, *others = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    exec(first, names)
    assert names["trainer"].history.counters.jumps_accepted > 0
    assert sum("koopfast" in line or "trainer" in line for line in first.splitlines()) <= 5
    for block in others:
        exec(block, names)
    assert names["result"].converged
    assert names["later"].shape == (3, 3)


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r": ([\w-]+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))


def test_each_row_of_the_table_of_failures_has_a_test_named_after_it() -> None:
    """In its order, as the page says; those of several processes are in test_distributed.py."""
    rows = re.findall(r"^\| (?!what|-)(.+?) \|", (DOCS / "safety.md").read_text(), re.MULTILINE)
    several = ("one of several", "another process", "several processes")
    first = [re.match(r"\w+", row).group().lower() for row in rows if not row.startswith(several)]  # type: ignore[union-attr]
    names = ("", "_changes", "_run", "_probes")
    files = (Path(__file__).with_name(f"test_failure_table{name}.py") for name in names)
    tests = re.findall(r"^def test_([a-z]+)", "\n".join(f.read_text() for f in files), re.MULTILINE)
    assert len(first) >= 20
    assert [word for word in dict.fromkeys(tests) if word in first] == list(dict.fromkeys(first))


def test_the_table_of_failures_names_tests_that_are_there() -> None:
    text = (DOCS / "safety.md").read_text(encoding="utf-8")
    for name in re.findall(r"`tests/(\w+\.py)`", text):
        assert (Path(__file__).parent / name).is_file(), name
