# SPDX-License-Identifier: BSD-3-Clause
"""The clock that tells training from what a trainer does beside it."""

from __future__ import annotations

import pytest

from koopfast._costs import Clock


class Life:
    """A clock, and time that passes only as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("koopfast._costs.perf_counter", lambda: self.now)
        self.clock = Clock()

    def step(self, training: float, work: float = 0.0, *, working: bool = True) -> None:
        self.now += training
        self.clock.enter(working=working)
        self.clock.step()
        self.now += work
        self.clock.leave()


@pytest.fixture
def life(monkeypatch: pytest.MonkeyPatch) -> Life:
    return Life(monkeypatch)


def test_steps_and_the_trainers_work_are_told_apart(life: Life) -> None:
    for _ in range(11):
        life.step(training=0.5, work=0.25)
    assert life.clock.steps == 10  # nobody knows when the first one began
    assert life.clock.trained == pytest.approx(10 * 0.5)
    assert life.clock.spent == pytest.approx(11 * 0.25)


def test_looking_on_is_neither(life: Life) -> None:
    life.step(1.0)
    life.step(1.0, work=0.5, working=False)
    life.step(1.0)
    assert (life.clock.steps, life.clock.trained, life.clock.spent) == (2, 2.0, 0.0)


def test_a_call_that_follows_no_step_belongs_to_the_next_one(life: Life) -> None:
    life.step(1.0)
    life.now += 0.25
    life.clock.enter(working=True)
    life.clock.leave()
    life.step(0.75)
    assert (life.clock.steps, life.clock.trained) == (1, 1.0)


def test_work_that_goes_on_is_counted_up_to_now(life: Life) -> None:
    life.step(1.0)
    life.now += 1.0
    life.clock.enter(working=True)
    life.now += 3.0
    assert life.clock.spent == 3.0


def test_a_pause_between_steps_is_not_training(life: Life) -> None:
    """An hour at a notebook, and a validation after every second step."""
    for number in range(201):
        life.step(1.0)
        life.now += 3600 if number == 50 else 20.0 * (number % 2)
    assert life.clock.trained == pytest.approx(200, rel=0.1)


def test_steps_that_become_slower_for_good_are_training(life: Life) -> None:
    for _ in range(51):
        life.step(1.0)
    before = life.clock.trained
    for _ in range(200):
        life.step(5.0)
    assert life.clock.trained - before > 0.8 * 200 * 5.0


def test_a_slow_first_step_is_forgotten(life: Life) -> None:
    life.step(1.0)
    life.step(60.0)  # it was compiled
    before = life.clock.trained
    for number in range(200):
        life.step(1.0)
        life.now += 20.0 * (number % 2)
    assert life.clock.trained - before == pytest.approx(200, rel=0.5)
