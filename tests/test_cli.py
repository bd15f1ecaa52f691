# SPDX-License-Identifier: BSD-3-Clause
"""The command line: what it prints, what it imports, how it ends."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import subprocess
import sys
import types

import pytest

import koopfast
from koopfast import _build, cli


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_module_and_console_script_are_the_same_command() -> None:
    done = python("-m", "koopfast", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["koopfast", koopfast.__version__]
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="koopfast")
    assert script.load() is cli.main


def test_a_source_tree_without_metadata_has_no_version_but_a_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    demo = types.SimpleNamespace(add_arguments=lambda parser: None, run=lambda options: 7)
    monkeypatch.setattr(cli, "_module", lambda command: demo)
    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert cli.main(["demo"]) == 7
    assert cli.main(["--version"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("koopfast: the package's metadata is missing")
    assert "pip install ." in message


def test_help_does_not_wait_for_torch() -> None:
    done = python(
        "-c",
        "import sys; from koopfast.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)",
    )
    assert done.returncode == 0, done.stderr
    assert "info" in done.stdout
    assert "demo" in done.stdout


def test_info_as_json_is_build_info_and_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    build = dataclasses.asdict(koopfast.build_info())
    build["cuda_architectures"] = list(build["cuda_architectures"])
    assert {name: facts[name] for name in build} == build
    assert facts["devices"][0] == "cpu"
    assert facts["torch_threads"] >= 1


def test_info_as_text_names_what_was_compiled_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    build = koopfast.build_info()
    for fact in (build.version, build.compiler, build.eigen_version, build.eigen_dir, build.isa):
        assert fact in text
    assert (build.cuda_version or "not compiled in") in text


def test_info_is_quiet_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--quiet"]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"koopfast {koopfast.__version__}, python ")
    assert line.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["info", "--nonsense"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: koopfast" in capsys.readouterr().err


def test_an_error_of_koopfast_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise koopfast.ConfigError("window must be at least 2, got 1")

    monkeypatch.setattr(_build, "build_info", fails)
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == "koopfast: window must be at least 2, got 1\n"


def test_an_interrupt_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_build, "build_info", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "koopfast: interrupted\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "import sys; from koopfast.cli import main; sys.exit(main(['info']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=120) == 0


def test_demo_gets_its_own_options_and_its_exit_code_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--code", type=int)

    demo = types.SimpleNamespace(add_arguments=add_arguments, run=lambda options: options.code)
    monkeypatch.setattr(cli, "_module", lambda command: demo)
    assert cli.main(["demo", "--code", "7"]) == 7


def test_demo_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(command: str) -> None:
        raise ModuleNotFoundError("No module named 'tqdm'", name="tqdm.auto")

    monkeypatch.setattr(cli, "_module", absent)
    assert cli.main(["demo"]) == 2
    message = capsys.readouterr().err
    assert "needs tqdm" in message
    assert "koopfast[demo]" in message


def test_another_missing_module_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(command: str) -> None:
        raise ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere")

    monkeypatch.setattr(cli, "_module", absent)
    with pytest.raises(ModuleNotFoundError, match="elsewhere"):
        cli.main(["demo"])
