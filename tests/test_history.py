# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import io
import json
import math

import pytest
import torch

from koopfast import CheckpointError, History, JumpRecord
from koopfast.history import EpochRecord, Spread


def make_history() -> History:
    history = History()
    history.counters.optimizer_steps = 70
    tried = ((16, 0.5), (32, 0.25), (64, math.inf))
    seconds = {"seconds_fit": 0.5, "seconds_predict": 0.25, "seconds_probe": 0.125}
    rank = Spread(1.0, 2.0, 3.0)
    history.add_jump(
        JumpRecord(64, True, 32, 1.0, 0.25, tried, "accepted", "better", 4, **seconds, rank=rank)
    )
    history.add_jump(JumpRecord(70, False, 0, None, None, (), "still", "nothing moved"))
    history.epochs.append(EpochRecord(70, 0.3, None, 1.0))
    history.epochs.append(EpochRecord(70, 0.3, 0.9, 2.0))
    return history


def test_each_kind_of_work_is_counted_apart() -> None:
    c = make_history().counters
    assert (c.optimizer_steps, c.predicted_steps) == (70, 32)
    assert (c.jumps_accepted, c.jumps_refused, c.probe_evaluations) == (1, 1, 4)
    assert (c.seconds_fit, c.seconds_predict, c.seconds_probe) == (0.5, 0.25, 0.125)


def test_validation_lists_the_epochs_that_had_one() -> None:
    assert make_history().validation == [(70, 0.9)]


def test_a_history_survives_weights_only_loading() -> None:
    history = make_history()
    file = io.BytesIO()
    torch.save(history.to_dict(), file)
    file.seek(0)
    assert History.from_dict(torch.load(file, weights_only=True)) == history


def test_non_finite_losses_may_come_back_as_strings() -> None:
    data = make_history().to_dict()
    data["jumps"][0]["candidates"][2][1] = "inf"
    text = json.dumps(data, allow_nan=False)
    assert History.from_dict(json.loads(text)) == make_history()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("counters",), None, "history.counters: expected a dict, got NoneType"),
        (("counters", "jumps_refused"), 1.5, "jumps_refused: expected an integer, got 1.5"),
        (("counters", "surplus"), 1, r"unknown keys \['surplus'\]"),
        (("jumps",), {}, "history.jumps: expected a list, got dict"),
        (("jumps", 0, "accepted"), 1, r"jumps\[0\].accepted: expected True or False, got 1"),
        (("jumps", 1, "kind"), None, "kind: expected a string, got None"),
        (("jumps", 0, "candidates"), [[1]], r"expected a \(horizon, loss\) pair, got \[1\]"),
        (("jumps", 0, "rank"), {"low": 1.0}, "spread: missing keys"),
        (("epochs", 0, "loss"), "word", "loss: could not convert"),
    ],
)
def test_a_malformed_history_is_refused_by_the_name_of_the_field(
    path: tuple[str | int, ...], value: object, message: str
) -> None:
    data = make_history().to_dict()
    inner = data
    for key in path[:-1]:
        inner = inner[key]  # type: ignore[index]
    inner[path[-1]] = value  # type: ignore[index]
    with pytest.raises(CheckpointError, match=message):
        History.from_dict(data)


def test_a_spread_ignores_what_is_not_finite() -> None:
    assert Spread.of([math.nan, 3.0, 1.0, 2.0, math.inf]) == Spread(1.0, 2.0, 3.0)
    assert Spread.of([math.nan]) is None


def test_summary_and_repr_tell_the_counts() -> None:
    history = make_history()
    lines = dict(line.split("  ", 1) for line in history.summary().splitlines())
    words = {name: value.strip() for name, value in lines.items()}
    assert words["optimizer steps"] == "70"
    assert words["last jump"] == "at step 70: nothing moved"
    assert words["last validation"] == "0.9 at step 70"
    assert "1 jumps accepted, 1 refused" in repr(history)
    assert len(History().summary().splitlines()) == 11
