# SPDX-License-Identifier: BSD-3-Clause
"""Reports are whole, self-contained pages, and say what to install when they cannot be made."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from koopfast import report
from koopfast.config import KoopmanConfig
from koopfast.errors import KoopfastError
from koopfast.history import EpochRecord, History, JumpRecord, Spread
from koopfast.operator import KoopmanOperator
from koopfast.partition import Partition

_VOID = {"meta", "link", "br", "hr", "img", "input"}


class Outline(HTMLParser):
    """Fails on a tag that is not closed; collects text, ids and attributes that would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        loading = ("src", "href", "xlink:href")
        self.loads += [v for n, v in attrs if n in loading and v and not v.startswith("#")]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def outline(path: Path) -> Outline:
    page = Outline(path.read_text(encoding="utf-8"))
    assert page.loads == []
    assert "script" not in page.tags
    assert len(set(page.ids)) == len(page.ids)
    return page


def jump(step: int, accepted: bool = True) -> JumpRecord:
    return JumpRecord(
        step=step,
        accepted=accepted,
        horizon=64 if accepted else 0,
        loss_before=0.5,
        loss_after=0.03125 if accepted else None,
        candidates=((64, 0.03125),),
        kind="accepted" if accepted else "no_gain",
        reason="better <b>by far</b>" if accepted else "no better",
        probe_evaluations=2,
        rank=Spread(1.0, 2.0, 3.0),
    )


@pytest.fixture
def history() -> History:
    history = History()
    history.counters.optimizer_steps = 1234
    history.add_jump(jump(128))
    history.add_jump(jump(256, accepted=False))
    history.epochs += [EpochRecord(600, 0.4, 0.9, 1.0), EpochRecord(1200, 0.04, 0.95, 2.0)]
    return history


@pytest.fixture
def operator() -> KoopmanOperator:
    """Two modes that decay by 0.9 and by 0.5 a snapshot, seen by six weights."""
    t = torch.arange(12, dtype=torch.float64)
    modes = torch.stack([0.9**t, 0.5**t], dim=1)
    generator = torch.Generator().manual_seed(0)
    shapes = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    return KoopmanOperator.fit(modes @ shapes, rank=2)


def test_trainer_report_tells_the_run(
    tmp_path: Path, history: History, operator: KoopmanOperator
) -> None:
    path = tmp_path / "new" / "report.html"
    assert report.write_trainer_report(history, KoopmanConfig(), path, operator) == path
    page = outline(path)
    for words in ("1,234", "1 of 2", "0.03125", "no better", "largest |λ|", "0.900000", "layer"):
        assert words in page.text
    assert page.tags.count("svg") == 3  # jumps, epochs, eigenvalues


def test_text_of_the_run_is_escaped(tmp_path: Path, history: History) -> None:
    path = report.write_trainer_report(history, KoopmanConfig(), tmp_path / "report.html")
    assert "better &lt;b&gt;by far" in path.read_text(encoding="utf-8")


def test_report_of_a_run_without_jumps(tmp_path: Path) -> None:
    page = outline(report.write_trainer_report(History(), KoopmanConfig(), tmp_path / "r.html"))
    assert "No jump was tried" in page.text
    assert "svg" not in page.tags


def test_losses_that_are_zero_negative_or_missing_are_drawn(tmp_path: Path) -> None:
    history = History()
    for step, (before, after) in enumerate([(0.0, -1.0), (float("nan"), None), (1e9, 0.0)]):
        record = JumpRecord(step, after is not None, 1, before, after, (), "accepted", "")
        history.add_jump(record)
    history.epochs.append(EpochRecord(1, float("inf"), None, 1.0))
    outline(report.write_trainer_report(history, KoopmanConfig(), tmp_path / "report.html"))


def test_operator_of_many_blocks_is_cut_short_and_says_so() -> None:
    generator = torch.Generator().manual_seed(0)
    snapshots = torch.randn(6, 100, generator=generator, dtype=torch.float64).cumsum(0)
    blocks = Partition.from_segments([[(i, 1)] for i in range(100)], 100)
    table = report.block_table(KoopmanOperator.fit(snapshots, blocks))
    assert 0 < len(table.rows) < 100
    assert f"{100 - len(table.rows)} further blocks" in " ".join(table.notes)


def test_figure_follows_the_pages_colours_and_keeps_its_ids_apart() -> None:
    with report.drawing_style():
        figure = report.new_figure(2, 2)
        ax = figure.subplots()
        ax.plot([1, 2], [1e-5, 1e-3])
        report.log_scale(ax)
        ax.set_title("residual")
        svg = report.to_svg(figure, "first")
    assert svg.startswith("<svg")
    assert "var(--ink)" in svg
    assert report.INK not in svg
    assert ">residual<" in svg
    assert "10⁻⁵" in svg
    assert all(name.startswith("first-") for name in re.findall(r'\bid="([^"]*)"', svg))
    assert all(name.startswith("first-") for name in re.findall(r"url\(#([^)]*)\)", svg))


def test_a_page_appears_whole_and_behind_links(
    tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, link = tmp_path / "real.html", tmp_path / "link.html"
    real.write_text("old")
    link.symlink_to(real)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr("os.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            report.write_trainer_report(history, KoopmanConfig(), link)
    assert real.read_text() == "old"
    report.write_trainer_report(history, KoopmanConfig(), link)
    assert link.is_symlink()
    assert "1,234" in outline(real).text


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_missing_package_says_what_to_install(
    package: str, tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(KoopfastError, match=rf"{package}.*pip install 'koopfast\[plots\]'"):
        report.write_trainer_report(history, KoopmanConfig(), tmp_path / "report.html")


def test_importing_report_imports_neither_package() -> None:
    # torch itself may bring jinja2 or tqdm along.
    code = (
        "import sys, torch; before = set(sys.modules); import koopfast, koopfast.report;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "sys.exit(bool(new & {'matplotlib', 'jinja2', 'tqdm'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
