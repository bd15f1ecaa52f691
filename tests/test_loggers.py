# SPDX-License-Identifier: BSD-3-Clause
"""Every jump reaches every logger, on one rank, and none of them can stop the training."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from koopfast import ConfigError, KoopmanTrainer, KoopmanWarning
from koopfast.loggers import JsonlLogger, StandardLogger, TensorBoardLogger, WandbLogger
from training_runs import smooth_run

FAST = {"window": 6, "stride": 1, "partition": "network", "rank": 3}


class Kept:
    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[str, float | str]]] = []

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        self.calls.append((step, dict(values)))


class Board:
    """Shaped like a SummaryWriter and like a W&B run."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str | None]] = []

    def add_scalar(self, key: str, value: float, global_step: int) -> None:
        self.scalars.append((key, value, global_step))

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))


def jumped(*loggers: Any, steps: int = 6) -> KoopmanTrainer:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    trainer.loggers += loggers
    run.train(trainer, steps)
    return trainer


def test_a_jump_is_logged_at_its_step_under_koopman() -> None:
    kept = Kept()
    (record,) = jumped(kept).history.jumps
    ((step, values),) = kept.calls
    assert step == record.step == 6
    assert all(key.startswith("koopman/") for key in values)
    assert values["koopman/loss_after"] == record.loss_after
    assert values["koopman/kind"] == "accepted"
    assert values["koopman/predicted_steps"] == record.horizon


def test_the_adapters_say_it_in_their_own_shape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board, path = Board(), tmp_path / "new" / "jumps.jsonl"
    with caplog.at_level(logging.INFO, logger="koopfast"):
        jumped(
            StandardLogger(),
            JsonlLogger(path),
            TensorBoardLogger(board),
            WandbLogger(board),
            steps=12,
        )
    assert [r.getMessage().split()[:2] for r in caplog.records] == [
        ["koopman", "step=6"],
        ["koopman", "step=12"],
    ]
    assert " kind=accepted accepted=1 horizon=" in caplog.records[0].getMessage()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["koopman/step"] for line in lines] == [6, 12]
    assert ("koopman/accepted", 1, 6) in board.scalars
    assert not any(key == "koopman/kind" for key, *_ in board.scalars)
    assert [row["koopman/step"] for row in board.rows] == [6, 12]
    assert ("koopman/*", "koopman/step") in board.metrics


def test_numbers_that_json_lacks_are_words(tmp_path: Path) -> None:
    JsonlLogger(tmp_path / "log").log({"koopman/loss_before": float("nan")}, 3)
    line = (tmp_path / "log").read_text()
    assert json.loads(line) == {"koopman/step": 3, "koopman/loss_before": "nan"}


def test_only_the_first_rank_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    monkeypatch.setenv("RANK", "1")
    jumped(kept)
    assert not kept.calls
    monkeypatch.setenv("RANK", "0")
    jumped(kept)
    assert len(kept.calls) == 1


def test_the_bar_is_silent_off_rank_0_and_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    for terminal, rank, shown in ((True, "0", True), (True, "1", False), (False, "0", False)):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setenv("RANK", rank)
        trainer.fit([(run.x, run.y)], lambda out, y: (out - y).square().mean())
        assert bool(capsys.readouterr().err) == shown


def test_a_logger_that_fails_is_named_once_and_training_goes_on() -> None:
    class Broken:
        def log(self, values: Mapping[str, float | str], step: int) -> None:
            raise ConnectionError("no route")

    kept = Kept()
    with pytest.warns(
        KoopmanWarning, match="Broken.log failed with ConnectionError: no route"
    ) as w:
        trainer = jumped(Broken(), kept, steps=12)
    assert len(w) == 1
    assert len(kept.calls) == len(trainer.history.jumps) == 2


@pytest.mark.filterwarnings("error::koopfast.KoopmanWarning")
def test_a_warning_made_an_exception_finds_the_jump_done() -> None:
    class Broken:
        def log(self, values: Mapping[str, float | str], step: int) -> None:
            raise ConnectionError

    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST, cooldown=5)
    trainer.loggers.append(Broken())
    with pytest.raises(KoopmanWarning, match="ConnectionError"):
        run.train(trainer, 6)
    assert trainer.history.counters.jumps_accepted == 1
    assert trainer._idle == 5


def test_what_cannot_log_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"writer: expected an object with a method add_scalar\(\)"
    ):
        TensorBoardLogger(object())
    with pytest.raises(ConfigError, match=r"run: expected an object with a method log\(\)"):
        WandbLogger("run")
