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


def test_what_is_done_before_a_step_is_work_as_what_is_done_after_it(life: Life) -> None:
    for _ in range(11):
        life.now += 0.5
        life.clock.enter(working=True)
        life.now += 0.125
        life.clock.leave()
        life.step(training=0.25, work=0.125)
    assert life.clock.steps == 10  # half of the first one is not known
    assert life.clock.trained == pytest.approx(10 * 0.75)
    assert life.clock.spent == pytest.approx(11 * 0.25)


def test_looking_on_has_its_share_of_steps_in_which_nothing_else_is_done(life: Life) -> None:
    assert life.clock.idle_share == 0.0
    life.step(0.75, work=8.0)
    life.step(0.75, work=0.25, working=False)
    life.step(0.75, work=8.0)
    life.step(0.75, work=0.25, working=False)
    assert life.clock.idle_share == pytest.approx(0.25)


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


def test_a_pause_between_steps_is_hardly_training(life: Life) -> None:
    """An hour at a notebook, and a validation now and then."""
    for number in range(1001):
        life.step(1.0)
        life.now += 3600 if number == 500 else 200.0 * (number % 100 == 7)
    assert life.clock.trained == pytest.approx(1000, rel=0.15)


def test_slow_steps_among_fast_ones_are_training(life: Life) -> None:
    """A machine that others use too."""
    for number in range(1001):
        life.step(5.0 if number % 8 == 1 else 1.0)
    assert life.clock.trained == pytest.approx(1000 + 125 * 4.0)


def test_what_is_said_to_be_no_training_is_none(life: Life) -> None:
    for _ in range(11):
        life.step(1.0)
        life.now += 3.0
        life.clock.resume()
    assert life.clock.trained == pytest.approx(10 * 1.0)


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
    for _ in range(20):
        life.step(1.0)
    before = life.clock.trained
    life.step(3600.0)
    assert life.clock.trained - before < 20.0
