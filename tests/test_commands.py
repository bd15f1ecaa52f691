# SPDX-License-Identifier: BSD-3-Clause
"""The subcommands bench, report, inspect and doctor."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cases import SYSTEMS, random_walk
from koopfast import ConfigError, KoopmanTrainer, cli
from koopfast.commands.doctor import diagnose, read_trajectory
from training_runs import smooth_run

COMMANDS = ("demo", "bench", "report", "inspect", "doctor")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, window=6, stride=1, rank=3)
    run.train(trainer, 15)
    path = tmp_path / "run.pt"
    torch.save({"epoch": 3, "nested": {"trainer": trainer.state_dict()}}, path)
    trainer.report(tmp_path / "run.json")
    return path


def output(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert cli.main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().out


def test_help_takes_less_than_a_third_of_a_second_and_no_torch() -> None:
    """The processor's time, best of several: what others do on the machine is not meant."""
    command = [sys.executable, "-X", "importtime", "-m", "koopfast", "--help"]
    taken = []
    for _ in range(8):
        started = _seconds_of_children()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        taken.append(_seconds_of_children() - started)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "koopfast.cli" in imported
        assert not imported & {"torch", "numpy", "matplotlib", "jinja2", "tqdm"}
        if min(taken) < 0.3:
            break
    assert min(taken) < 0.3


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_help_without_torch(command: str) -> None:
    code = (
        "import sys; from koopfast.cli import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"usage: koopfast " + command.encode() in done.stdout


# inspect


def test_inspect_finds_the_trainer_and_says_where_it_stands(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = output(capsys, "inspect", checkpoint)
    assert "['nested']['trainer']" in text
    assert all(chosen in text for chosen in ("window=6", "stride=1", "rank=3"))
    assert "3 of 6 snapshots recorded" in text
    facts = json.loads(output(capsys, "inspect", checkpoint, "--json"))["['nested']['trainer']"]
    assert (facts["weights"], facts["optimizer_steps"]) == (41, 15)
    assert facts["jumps_accepted"] + facts["jumps_refused"] == 2


@pytest.mark.parametrize("command", ["inspect", "report", "doctor"])
def test_a_file_that_is_something_else_is_one_line_and_exit_code_2(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (
        ("text.pt", b"no checkpoint"),
        ("half.pt", b"PK\x03\x04"),
        ("no.pt", None),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        assert cli.main([command, str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("koopfast: ")
        assert name in error


def test_a_checkpoint_without_a_trainer_says_how_to_save_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": {"weight": torch.zeros(3)}}, tmp_path / "plain.pt")
    assert cli.main(["inspect", str(tmp_path / "plain.pt")]) == 2
    assert "found none; save one with torch.save" in capsys.readouterr().err


# report


@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_report_writes_the_page_of_a_saved_run(
    checkpoint: Path, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    source, page = checkpoint.with_suffix(suffix), tmp_path / "out" / "page.html"
    text = output(capsys, "report", source, "--out", page)
    assert "optimizer steps     15" in text
    assert text.endswith(f"{page}\n")
    assert "Jump log" in page.read_text(encoding="utf-8")
    assert output(capsys, "report", source, "--quiet") == f"{source.with_suffix('.html')}\n"
    data = json.loads(output(capsys, "report", source, "--json"))
    assert data["history"]["counters"]["optimizer_steps"] == 15


# bench


def test_bench_times_what_it_has_checked(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("bench", "--weights", 8192, "--snapshots", 8, "--repeats", 1)
    facts = json.loads(output(capsys, *small, "--json"))
    assert len(facts["milliseconds"]) == 8
    assert all(ms > 0 for ms in facts["milliseconds"].values())
    assert "fit, layer (16 blocks)" in output(capsys, *small)
    assert cli.main(["bench", "--weights", "5"]) == 2
    assert "--weights: expected 8192 or more, got 5" in capsys.readouterr().err


def test_bench_stops_where_results_are_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("koopfast.KoopmanOperator.predict", lambda self, _: self._snapshots[:1])
    assert cli.main(["bench", "--weights", "8192", "--snapshots", "8", "--repeats", "1"]) == 2
    assert "this build computes wrong results" in capsys.readouterr().err


# doctor


def test_doctor_trusts_a_linear_system_to_the_end_and_a_random_walk_not_at_all() -> None:
    (system,) = (s for s in SYSTEMS if s.name == "decaying")
    smooth = diagnose(system.states(50, range(40)))
    assert (smooth.trusted, smooth.helps) == (20, True)
    assert max(smooth.errors["increments"]) < 1e-6
    walk = diagnose(random_walk(40, 50))
    assert not walk.helps
    assert "jumps would not help" in walk.in_words()


@pytest.mark.parametrize("form", ["npy", "npz", "pt", "pt in a dict"])
def test_doctor_reads_numpy_and_torch(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = SYSTEMS[0].states(30, range(24))
    path = tmp_path / f"run.{form[:3].strip()}"
    if form == "npy":
        np.save(path, states.numpy())
    elif form == "npz":
        np.savez(path, snapshots=states.numpy(), other=np.zeros(3))
    else:
        torch.save(states if form == "pt" else {"snapshots": states}, path)
    assert torch.equal(read_trajectory(path), states)
    verdict = output(capsys, "doctor", path, "--quiet")
    assert verdict.startswith("jumps would help: up to 12 recorded intervals")
    assert verdict.count("\n") == 1


def test_doctor_exits_with_3_where_jumps_would_not_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "walk.npy", random_walk(40, 50).numpy())
    facts = json.loads(output(capsys, "doctor", tmp_path / "walk.npy", "--json", code=3))
    assert not facts["helps"]
    assert len(facts["errors"]["state"]) == 20


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), r"expected floating-point snapshots of shape \(m, n\)"),
        (np.zeros((9, 3), dtype=np.int64), "expected floating-point snapshots"),
        (np.array([{}]), "expected an array of numbers"),
    ],
)
def test_doctor_refuses_what_is_no_trajectory(array: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "odd.npy", array, allow_pickle=True)
    with pytest.raises(ConfigError, match=message):
        read_trajectory(tmp_path / "odd.npy")


def test_doctor_wants_enough_snapshots_and_a_share() -> None:
    with pytest.raises(ConfigError, match="expected 8 or more, got 5"):
        diagnose(torch.zeros(5, 3))
    with pytest.raises(ConfigError, match="--fit: expected a share"):
        diagnose(torch.zeros(9, 3), fit=1.0)


SCRIPT = """
import torch
from torch import nn

def make_training():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x = torch.randn(20, 3)
    def step():
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), x.sin().sum(1, keepdim=True)).backward()
        optimizer.step()
    return model, optimizer, step

if __name__ == "__main__":
    raise SystemExit("the script itself was run")
"""


def test_doctor_trains_what_a_script_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "training.py"
    path.write_text(SCRIPT, encoding="utf-8")
    facts = json.loads(output(capsys, "doctor", path, "--steps", 64, "--stride", 2, "--json"))
    assert (facts["snapshots"], facts["weights"]) == (32, 41)
    assert facts["helps"]
    again = json.loads(output(capsys, "doctor", path, "--steps", 64, "--stride", 2, "--json"))
    assert again == facts  # the seed is the same


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("x = 1", "expected a function make_training()"),
        (
            "def make_training(): return 3",
            "make_training: got int; return (model, optimizer, step)",
        ),
    ],
)
def test_doctor_says_what_a_script_must_have(
    script: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.py"
    path.write_text(script, encoding="utf-8")
    assert cli.main(["doctor", str(path)]) == 2
    assert message in capsys.readouterr().err
