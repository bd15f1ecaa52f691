# SPDX-License-Identifier: BSD-3-Clause
"""Files appear whole, behind links too, and never in the place of something else."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from koopfast import KoopmanTrainer
from koopfast._files import check_file_name, write_whole
from koopfast.errors import ConfigError


def test_the_folder_is_made_and_nothing_else_stays_in_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    assert write_whole(path, b"text") == path
    assert path.read_bytes() == b"text"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_file_is_written(there: bool, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "folder" / "link"
    link.parent.mkdir()
    link.symlink_to("../real")
    if there:
        real.write_text("old")
    assert write_whole(link, b"new") == link
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_whole(tmp_path / "file", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_no_file_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="path: expected a file name, got the folder"):
        write_whole(tmp_path, b"")
    with pytest.raises(ConfigError, match="--out: expected a file name, got the folder"):
        check_file_name(tmp_path, "--out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("linked", [False, True])
def test_pipes_and_devices_stay_what_they_are(linked: bool, tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with pytest.raises(ConfigError, match="not a regular file"):
        write_whole(link if linked else pipe, b"text")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(ConfigError, match="not a regular file"):
        write_whole(os.devnull, b"text")


def test_the_trainers_report_goes_behind_links_and_not_into_devices(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    trainer = KoopmanTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    link = tmp_path / "link.json"
    link.symlink_to("real.json")
    assert trainer.report(link) == link
    assert link.is_symlink()
    assert "history" in json.loads((tmp_path / "real.json").read_text())
    for path in (tmp_path, os.devnull):
        with pytest.raises(ConfigError, match="path: expected a file name"):
            trainer.report(path)
