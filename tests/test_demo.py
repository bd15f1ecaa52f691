# SPDX-License-Identifier: BSD-3-Clause
"""The demo on a handful of made-up digits: what it writes, and that its race is fair."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from koopfast import demo
from koopfast._files import write_json
from koopfast.config import KoopmanConfig
from koopfast.data import Mnist
from koopfast.demo.figures import save_picture
from koopfast.demo.page import demo_page
from koopfast.demo.race import OPTIMIZERS, race
from koopfast.demo.results import TaskResult, as_facts, text_table
from koopfast.demo.stretch import measure_stretch
from koopfast.demo.tasks import DigitsTask, OscillatorTask
from koopfast.errors import ConfigError, KoopfastError
from koopfast.report import Page, Tiles, drawing_style, save_page


@pytest.fixture(autouse=True)
def keep_threads() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> Mnist:
    """Pictures that are told apart by where their ink is."""
    rng = np.random.default_rng(0)
    parts = []
    for count in (400, 100):
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 4] += 150
        parts += [torch.from_numpy(images), torch.from_numpy(labels)]
    return Mnist(*parts, source="made up")


@pytest.fixture(scope="module")
def data_dir(digits: Mnist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    for name, tensor in (
        ("train-images-idx3-ubyte", digits.train_images),
        ("train-labels-idx1-ubyte", digits.train_labels.byte()),
        ("t10k-images-idx3-ubyte", digits.test_images),
        ("t10k-labels-idx1-ubyte", digits.test_labels.byte()),
    ):
        header = bytes((0, 0, 8, tensor.ndim)) + np.array(tensor.shape, ">u4").tobytes()
        (folder / name).write_bytes(header + tensor.numpy().tobytes())
    return folder


@pytest.fixture(scope="module")
def short() -> TaskResult:
    """A few steps with one optimizer."""
    task = OscillatorTask(steps=40)
    result = race(task, "Adam", config=KoopmanConfig(window=5, stride=2))
    stretch = measure_stretch(task, "Adam", result.middle, result.config, repeats=1)
    return TaskResult(task, [result], [stretch])


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(words)


def test_quick_demo_writes_page_picture_and_numbers(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert demo.run(parse("--quick", "--data-dir", str(data_dir), "--out", str(out))) == 0
    printed = capsys.readouterr().out
    assert str(out / "report.html") in printed
    assert "gradients" in printed
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1 + 4 + 3  # times; the oscillator has its solution besides
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")

    tasks = json.loads((out / "results.json").read_text())["tasks"]
    assert sorted(tasks) == ["mnist", "oscillator"]
    for task in tasks.values():
        assert sorted(task) == sorted(OPTIMIZERS)
        for result in task.values():
            plain, koopman = result["plain"], result["koopman"]
            assert plain["gradients"] == koopman["gradients"] == plain["steps"][-1]
            assert plain["probes"] == 0
            assert koopman["probes"] == result["history"]["counters"]["probe_evaluations"] > 0
            assert result["stretch"]["backprop"] > 0
            assert result["stretch"]["fit"] > 0


def test_runs_are_the_same_until_the_first_jump(digits: Mnist) -> None:
    task = DigitsTask(digits, steps=70, width=8, batch=10, probe=50, scored=50)
    result = race(task, "Adam", chunk=10, config=KoopmanConfig(window=10, stride=6))
    first = result.history.jumps[0].step
    assert first == 60
    for plain, koopman in zip(result.plain.scores[:6], result.koopman.scores[:6], strict=True):
        assert plain == koopman
    assert result.plain.seconds == sorted(result.plain.seconds)


def test_a_race_can_be_repeated(digits: Mnist) -> None:
    def scores() -> list[float]:
        task = DigitsTask(digits, steps=60, width=8, batch=10, probe=50, scored=50, seed=3)
        config = KoopmanConfig(window=10, stride=2)
        return race(task, "Adagrad", seed=3, config=config).koopman.scores

    before = torch.random.get_rng_state()
    assert scores() == scores()
    assert torch.equal(before, torch.random.get_rng_state())


def test_batches_go_through_all_digits_and_then_again(digits: Mnist) -> None:
    task = DigitsTask(digits, steps=85, batch=10)
    assert task.batches.shape == (85, 10)
    assert task.batches[:40].flatten().sort().values.tolist() == list(range(400))
    assert task.batches[40:80].flatten().sort().values.tolist() == list(range(400))
    assert not torch.equal(task.batches[:40], task.batches[40:80])


def test_stretch_ends_where_the_plain_run_went(digits: Mnist) -> None:
    task = DigitsTask(digits, steps=80, width=8, batch=10, probe=50, scored=50)
    result = race(task, "Adagrad", chunk=20, config=KoopmanConfig(window=10, stride=2))
    assert result.middle.step == 40
    stretch = measure_stretch(task, "Adagrad", result.middle, result.config, repeats=1)
    assert stretch.first == 40
    assert stretch.watched == stretch.steps == 20
    # 40 + 20 watched + 20 done are the 80 steps of the race.
    assert stretch.score_true == pytest.approx(result.plain.score, rel=1e-6)
    assert stretch.error > 0


def test_smooth_training_is_predicted_well() -> None:
    task = OscillatorTask(steps=400)
    result = race(task, "Adagrad")
    stretch = measure_stretch(task, "Adagrad", result.middle, result.config, repeats=1)
    assert stretch.error < 0.3
    assert stretch.score_predicted < stretch.score_now


def test_oscillator_outcome_is_the_distance_from_the_solution() -> None:
    task = OscillatorTask(steps=1)
    model = torch.nn.Module()
    model.forward = lambda t: task.reference + 0.25  # type: ignore[method-assign, assignment]
    assert task.outcome(model) == pytest.approx(0.25)
    assert task.outcome(task.build(0)) > 0.5


def test_tasks_can_be_chosen(tmp_path: Path, data_dir: Path) -> None:
    def names(*words: str) -> list[str]:
        return [task.name for task in demo._tasks(parse("--quick", *words))]

    assert names("--tasks", "oscillator", "--data-dir", str(tmp_path / "nowhere")) == ["oscillator"]
    assert names("--tasks", "mnist", "--data-dir", str(data_dir)) == ["mnist"]
    assert names("--data-dir", str(data_dir)) == ["oscillator", "mnist"]


def test_missing_digits_are_found_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = parse("--quick", "--data-dir", str(tmp_path / "nowhere"), "--out", str(tmp_path))
    with pytest.raises(KoopfastError, match="nowhere"):
        demo.run(arguments)
    assert "steps" not in capsys.readouterr().out


def test_bad_options_are_named(tmp_path: Path) -> None:
    most = os.cpu_count() or 1
    for threads in (0, most + 1, 100_000):
        with pytest.raises(ConfigError, match=rf"--threads: expected 1 to {most}, .* {threads}$"):
            demo.run(parse("--quick", "--threads", str(threads), "--out", str(tmp_path)))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out: cannot make the folder"):
        demo.run(parse("--quick", "--out", str(tmp_path / "file" / "out")))
    (tmp_path / "report.png").mkdir()
    with pytest.raises(ConfigError, match=r"--out: expected a file name, got the folder .*png"):
        demo.run(parse("--quick", "--out", str(tmp_path)))


def quick_oscillator(out: Path) -> int:
    return demo.run(parse("--quick", "--tasks", "oscillator", "--out", str(out)))


def test_a_folder_that_takes_no_files_is_found_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(ConfigError, match=r"--out: cannot write to .*: read-only"):
        quick_oscillator(tmp_path)
    assert "steps" not in capsys.readouterr().out


def test_results_are_printed_before_anything_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    message = r"--out: cannot write to .*: disk full; the results are printed above"
    with pytest.raises(KoopfastError, match=message):
        quick_oscillator(tmp_path)
    printed = capsys.readouterr().out
    assert all(optimizer in printed for optimizer in OPTIMIZERS)
    assert "s in all" in printed
    assert "report.html" not in printed


def test_json_is_what_the_file_holds_and_quiet_says_where_the_page_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--quick", "--tasks", "oscillator", "--out", str(tmp_path))
    assert demo.run(parse(*words, "--json")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["settings"] == json.loads((tmp_path / "results.json").read_text())["settings"]
    assert list(printed["tasks"]) == ["oscillator"]
    assert demo.run(parse(*words, "--quiet")) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"


def test_page_and_terminal_tell_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "perf_counter", itertools.count(0, 7).__next__)
    assert quick_oscillator(tmp_path) == 0
    assert "\n7 s in all" in capsys.readouterr().out
    assert "7 s in all" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", ["tqdm", "matplotlib", "jinja2"])
def test_missing_package_says_what_to_install(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(KoopfastError, match=rf"{package}.*pip install 'koopfast\[demo\]'"):
        demo.run(parse("--quick", "--tasks", "oscillator", "--out", str(tmp_path / "out")))


def test_the_page_counts_the_stretches_that_were_predicted_well(short: TaskResult) -> None:
    (stretch,) = short.stretches
    errors = (0.1, 0.49, 0.5, 1.0, math.nan)
    stretches = [dataclasses.replace(stretch, error=error) for error in errors]
    result = TaskResult(short.task, [*short.races] * len(errors), stretches)
    with drawing_style():
        glance = demo_page([result], {}, [], 0.0).sections[0]
    (tiles,) = (item.tiles for item in glance.items if isinstance(item, Tiles))
    assert (
        "2 of 5",
        "stretches predicted clearly better than standing still (error below 0.5)",
    ) in tiles


def test_what_the_demo_saves_appears_whole(
    short: TaskResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: dict[str, Callable[[Path], Path]] = {
        "results.json": lambda path: write_json(path, as_facts([], {}, [])),
        "report.png": lambda path: save_picture([short], path),
        "report.html": lambda path: save_page(Page("", "", [], []), path),
    }

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    for name, save in saves.items():
        with pytest.raises(OSError, match="disk full"):
            save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_text_table_lines_up() -> None:
    lines = text_table(["name", "n"], [["a", "100"], ["bcdef", "2"]], words=1).splitlines()
    assert lines == ["name     n", "─────  ───", "a      100", "bcdef    2"]
