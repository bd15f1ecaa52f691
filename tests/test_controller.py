# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from koopfast import CheckpointError
from koopfast._horizon_search import RECENT_MEAN, Candidate, Damped, Secant
from koopfast.controller import FORWARD, Controller, ControllerMark, fall

WINDOW = 12


class Training:
    """Steps of a training whose loss is a number, told to a controller as a trainer would."""

    def __init__(self, loss: Callable[[float], float], window: int = WINDOW) -> None:
        self.controller = Controller(window)
        self.window = window
        self.loss = loss  # of the time
        self.time = 0.0
        self.back = 0.0  # the time before the last jump
        self.strides: list[int] = []
        self.decisions: list[str] = []
        self.probes = 0

    def look(self) -> float:
        self.probes += 1
        self.controller.spend(1)
        return self.loss(self.time)

    def run(
        self, steps: int, landing: Callable[[float], float | None], shown: float | None = None
    ) -> None:
        """Train; ``landing`` says to what time a jump from a time leads, None for no gain.

        A probe shows the loss there, or ``shown`` times the one before.
        """
        controller, stop = self.controller, self.controller.evaluations + steps
        while controller.evaluations < stop:
            left = self.window * controller.stride
            while left > 0:
                controller.step()
                self.time += 1
                left -= 1
                looks = left > 0 and controller.wants_look(left)
                if looks and controller.look(self.look(), left) == "undo":
                    self.time, left = self.back, self.window * controller.stride
            if not controller.ready():
                for _ in range(controller.pause):
                    controller.step()
                    self.time += 1
                controller.pause = 0
                continue
            before = self.look()
            decision = controller.arrive(before)
            self.decisions.append(decision)
            self.strides.append(controller.stride)
            if decision == "undo":
                self.time = self.back
            if decision != "jump":
                continue
            target = landing(self.time)
            after = math.inf if target is None else self.loss(target)
            after = after if shown is None else shown * before
            tried = answered(controller, before, lambda _: after)  # noqa: B023 - used at once
            self.probes += len(tried)
            controller.spend(len(tried))
            accepted = controller.worth(before, after)
            if accepted and target is not None:
                self.back, self.time = self.time, target
            controller.leave(accepted)


def answered(
    controller: Controller,
    before: float,
    loss: Callable[[Candidate], float],
    *,
    averaged: bool = False,
    uneven: bool = False,
    straight: bool = True,
) -> list[Candidate]:
    """The candidates of one search."""
    search = controller.search(before, averaged, uneven=uneven, straight=straight)
    asked = []
    try:
        candidate = next(search)
        while True:
            asked.append(candidate)
            candidate = search.send(loss(candidate))
    except StopIteration:
        return asked


def power_law(time: float) -> float:
    return (1 + time) ** -0.5


def test_windows_stay_short_while_jumps_pay() -> None:
    training = Training(power_law)
    training.run(600, lambda time: 2 * time)
    assert set(training.strides) == {1}
    assert training.controller.saved > 100


@pytest.mark.parametrize("steps", [600, 3000, 20000])
def test_where_every_jump_is_refused_probes_cost_two_percent_at_most(steps: int) -> None:
    training = Training(power_law)
    training.run(steps, lambda time: None)
    assert training.probes * FORWARD <= 0.02 * steps
    assert max(training.strides) >= 4


@pytest.mark.parametrize("steps", [600, 3000, 20000])
@pytest.mark.parametrize("back", [0.0, 0.25, 0.5])
def test_where_every_jump_looks_good_and_throws_back_little_is_lost(
    back: float, steps: int
) -> None:
    """Each shows a lower loss, from which training goes on with a share of the window lost."""
    training = Training(power_law)

    def landing(time: float) -> float:
        return time - back * WINDOW * training.controller.stride

    training.run(steps, landing, shown=0.9)
    assert training.time >= 0.95 * training.controller.evaluations


def test_a_loss_that_rose_after_a_jump_undoes_it() -> None:
    controller = Controller(WINDOW)
    decision = after_a_jump(controller, before=1.0, later=1.5)
    assert decision == "undo"
    assert controller.stride == 2


def after_a_jump(controller: Controller, before: float, later: float) -> str:
    """What is decided a window after a jump from one loss, at the other."""
    for _ in range(WINDOW // 2):
        controller.step()
    controller.look(1.01 * before, WINDOW // 2)
    for _ in range(WINDOW // 2):
        controller.step()
    assert controller.arrive(before) == "jump"
    controller.leave(accepted=True)
    for _ in range(WINDOW):
        controller.step()
    return controller.arrive(later)


def test_noise_is_no_reason_to_undo() -> None:
    controller = Controller(WINDOW)
    for _ in range(WINDOW // 2):
        controller.step()
    controller.look(1.0, WINDOW // 2)
    for _ in range(WINDOW // 2):
        controller.step()
    controller.look(1.5, 1)  # one step before the window is full: the loss jitters by a half
    controller.arrive(1.0)
    controller.leave(accepted=True)
    for _ in range(WINDOW):
        controller.step()
    assert controller.arrive(1.5) != "undo"
    assert controller.stride == 2


def test_the_search_goes_on_from_the_horizon_that_was_good_last() -> None:
    controller = Controller(WINDOW)

    def valley(candidate: Candidate) -> float:
        assert isinstance(candidate, float)
        return abs(math.log2(candidate) - 5)

    first = answered(controller, 10.0, valley, straight=False)
    assert first == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    second = answered(controller, 10.0, valley, straight=False)
    assert second[0] == 32.0
    assert len(second) <= 3


def hump(best: float) -> Callable[[Candidate], float]:
    """A loss from 1.0 at nothing, convex over the horizon, least at the ``best`` one."""

    def loss(candidate: Candidate) -> float:
        if not isinstance(candidate, float):
            return 2.0
        return 1.0 + 0.2 * ((candidate / best - 1) ** 2 - 1)

    return loss


def test_where_the_last_horizon_is_too_far_the_best_one_below_it_is_found() -> None:
    controller = Controller(WINDOW)
    controller._search.power = 6
    asked = answered(controller, 1.0, hump(8.0), straight=False)
    assert asked == [64.0, 0.25, 32.0, 16.0, 8.0, 4.0]
    assert answered(controller, 1.0, hump(8.0), straight=False)[0] == 8.0


def test_horizons_that_cannot_be_worth_a_jump_are_not_tried() -> None:
    """Twice the horizon gains twice as much at most: 4 times 0.06 for one window."""
    controller = Controller(WINDOW)
    state = controller._s
    state.rate = state.latest = 1.0
    state.evaluations, state.credit = 24.0, -9.0
    assert not controller.worth(1.0, 0.9)
    short = {2.0: 1.3, 0.25: 0.94, 1.0: 0.92}
    state.stride = 4
    asked = answered(controller, 1.0, lambda c: short.get(c, 0.9) if c in short else 2.0)
    assert asked == [2.0, 0.25, Secant(1.0)]  # the secant may be worth one yet
    state.stride, state.credit = 1, 50.0
    controller._search.power = 1
    assert answered(controller, 1.0, lambda c: short.get(c, 0.9), straight=False)[2:] == [1.0, 0.5]


def test_the_best_horizon_is_tried_damped_where_blocks_are_uneven_and_while_that_wins() -> None:
    def tried(controller: Controller, damped: float, *, uneven: bool = True) -> bool:
        """Whether it is, where a horizon of two windows is the best."""
        controller._s.attempts += 1

        def loss(asked: Candidate) -> float:
            return damped if isinstance(asked, Damped) else 0.5 if asked == 2.0 else 0.8

        asked = answered(controller, 1.0, loss, uneven=uneven)
        assert not any(isinstance(one, Damped) for one in asked if one != Damped(2.0))
        return Damped(2.0) in asked

    loses, wins = Controller(WINDOW), Controller(WINDOW)
    assert [tried(loses, 0.7) for _ in range(8)] == [i in (1, 2, 4, 8) for i in range(1, 9)]
    assert all(tried(wins, 0.4) for _ in range(8))
    assert not tried(wins, 0.4, uneven=False)


def test_the_secant_is_tried_now_and_then_where_nothing_is_good_and_first_while_it_wins() -> None:
    def search(controller: Controller, ahead: float, secant: float) -> list[Candidate]:
        controller._s.attempts += 1
        return answered(controller, 1.0, lambda c: secant if isinstance(c, Secant) else ahead)

    loses, wins = Controller(WINDOW), Controller(WINDOW)
    tried = [any(isinstance(c, Secant) for c in search(loses, 0.8, 0.9)) for _ in range(8)]
    assert tried == [i in (1, 2, 4, 8) for i in range(1, 9)]
    assert isinstance(search(loses, 2.0, 2.0)[-1], Secant)
    asked = [search(wins, 0.8, 0.4) for _ in range(4)]
    assert [isinstance(candidates[0], Secant) for candidates in asked] == [False, True, True, True]
    # Horizons get another chance when an attempt is rare, and then the better of both comes first.
    assert [any(isinstance(c, float) for c in one) for one in asked] == [True, True, False, True]
    assert not isinstance(search(Controller(WINDOW), 0.8, 0.9)[0], Secant)


def test_a_secant_goes_on_from_where_it_was_good_last() -> None:
    controller = Controller(WINDOW)

    def valley(candidate: Candidate) -> float:
        return abs(math.log2(candidate.windows) - 3) if isinstance(candidate, Secant) else 20.0

    secants = [c for c in answered(controller, 10.0, valley) if isinstance(c, Secant)]
    assert [s.windows for s in secants] == [1, 2, 4, 8, 16]
    assert answered(controller, 10.0, valley)[:2] == [Secant(8.0), Secant(16.0)]
    none = answered(controller, 10.0, valley, straight=False)
    assert not any(isinstance(candidate, Secant) for candidate in none)


def test_a_jump_that_the_account_could_not_bear_must_gain_what_the_window_would() -> None:
    controller = Controller(WINDOW)
    state = controller._s
    state.rate, state.latest, state.evaluations = 1.0, 2.0, 240.0
    assert controller.worth(1.0, 0.99)
    state.stride, state.credit = 8, -4.0
    ordinary = 1 / (1 + WINDOW * 8 / 240)
    assert not controller.worth(1.0, ordinary + 0.01)
    assert controller.worth(1.0, ordinary - 0.01)
    state.rate, state.latest = 2.0, 1.0  # the last stretch was slower than those before
    assert controller.worth(1.0, ordinary - 0.01)
    state.doubt = 2.0
    assert not controller.worth(1.0, ordinary**2 + 0.01)
    assert controller.worth(1.0, ordinary**2 - 0.01)
    state.evaluations = 24000.0
    state.credit = -244.0
    assert not controller.worth(1.0, 0.84)  # a fifth, however little the window would bring
    assert controller.worth(1.0, 0.83)


@pytest.mark.parametrize(("after", "undone"), [(0.4, False), (1.1, True), (math.nan, True)])
def test_such_a_jump_is_looked_at_early_and_undone_unless_the_loss_is_lower(
    after: float, undone: bool
) -> None:
    controller = Controller(WINDOW)
    state = controller._s
    state.rate, state.evaluations, state.stride, state.credit = 1.0, 240.0, 8, -4.0
    controller.begin(1.0)
    controller.leave(accepted=True)
    looks = []
    for left in range(WINDOW * controller.stride, WINDOW * controller.stride // 2, -1):
        controller.step()
        if controller.wants_look(left):
            looks.append(left)
            assert controller.look(after, left) == ("undo" if undone else None)
    assert looks == [WINDOW * 8 * 3 // 4]
    assert (state.doubt, state.stride) == ((2.0, 16) if undone else (1.0, 8))
    assert controller.on_trial is not undone


def test_the_longest_horizon_bounds_the_search() -> None:
    def ahead(candidate: Candidate) -> float:
        return 10.0 if isinstance(candidate, Secant) else 1 / float(candidate)

    def straight(candidate: Candidate) -> float:
        return 1 / candidate.windows if isinstance(candidate, Secant) else 20.0

    asked = answered(Controller(WINDOW, longest=8), 10.0, ahead)
    assert asked == [2.0, 4.0, 8.0, Secant(1.0)]
    asked = answered(Controller(WINDOW, longest=8), 10.0, straight)
    assert asked[-4:] == [Secant(1.0), Secant(2.0), Secant(4.0), Secant(8.0)]
    asked = answered(Controller(WINDOW, longest=0.5), 10.0, straight)
    assert asked == [0.5, 0.25, Secant(0.5)]


def test_where_no_horizon_is_good_two_are_tried_the_mean_and_the_secant() -> None:
    asked = answered(Controller(WINDOW), 1.0, lambda _: 2.0, averaged=True)
    assert asked == [2.0, 0.25, RECENT_MEAN, Secant(1.0)]


def test_a_mean_that_won_is_asked_for_first() -> None:
    controller = Controller(WINDOW)
    answered(controller, 1.0, lambda c: 0.5 if c == RECENT_MEAN else 2.0, averaged=True)
    assert answered(controller, 1.0, lambda _: 2.0, averaged=True)[0] == RECENT_MEAN


def test_forgetting_the_optimizers_state_is_tried_and_kept_only_while_it_pays() -> None:
    """Jumps that keep it bring a factor of 1.2 in time, those that reset it one of 2."""
    treatments = treated({"keep": 1.2, "reset": 2.0})
    assert treatments[:2] == ["keep", "keep"]
    assert treatments[-10:].count("reset") >= 9
    assert treated({"keep": 2.0, "reset": 1.05})[-10:].count("keep") >= 9


def treated(factor: dict[str, float]) -> list[str]:
    controller = Controller(WINDOW)
    time, treatments = 0.0, []
    for _ in range(WINDOW // 2):
        controller.step()
    controller.look(power_law(WINDOW // 2), WINDOW // 2)
    time = WINDOW // 2
    for window in range(40):
        for _ in range(WINDOW * controller.stride if window else WINDOW // 2):
            controller.step()
            time += 1
        if controller.arrive(power_law(time)) == "jump":
            treatment = controller.leave(accepted=True, resettable=True)
            treatments.append(treatment)
            time *= factor[treatment]
    return treatments


def explored(controller: Controller) -> str:
    """The treatment in the first jump, which is then on trial."""
    controller.step()
    controller.begin(1.0)
    arrived(controller, 0.9, 1.0)
    return controller.leave(accepted=True, resettable=True)


def test_what_gradients_measured_is_forgotten_in_the_first_jump_if_that_can_be_borne() -> None:
    adam, momentum, poor = Controller(WINDOW), Controller(WINDOW), Controller(WINDOW)
    adam.scaled = poor.scaled = True
    poor._s.credit, poor._s.stride = -3.0, 8
    assert [explored(c) for c in (adam, momentum, poor)] == ["reset", "keep", "keep"]
    arrived(adam, 0.2, 1.0)
    assert adam.leave(accepted=True, resettable=True) == "reset"  # it paid


def test_where_the_loss_is_no_lower_soon_after_that_it_is_undone_and_not_tried_again() -> None:
    controller = Controller(WINDOW)
    controller.scaled = True
    assert explored(controller) == "reset"
    for _ in range(WINDOW // 4):
        controller.step()
    assert controller.wants_look(WINDOW - WINDOW // 4)
    assert controller.look(0.95, WINDOW - WINDOW // 4) == "undo"
    arrived(controller, 0.8, 1.0)
    assert controller.leave(accepted=True, resettable=True) == "keep"


@pytest.mark.clock
def test_the_clock_stops_what_takes_too_long_and_leaves_short_runs_alone() -> None:
    controller = Controller(WINDOW)
    controller.clock(spent=0.09, trained=0.03, steps=100, share=0.05)
    assert controller.pause == 0
    controller.clock(spent=2.0, trained=8.0, steps=100, share=0.05)
    assert controller.pause == 375  # until the two seconds are a twentieth of the time
    controller._s.attempts, controller.pause = 4, 0
    controller.clock(spent=2.0, trained=8.0, steps=100, share=0.05)
    assert controller.pause == 500  # and half a second, as an attempt takes, is one of ten more


@pytest.mark.clock
def test_the_clock_allows_what_jumps_have_saved() -> None:
    pauses = {}
    for saved in (0.0, 15.0, 24.0):
        controller = Controller(WINDOW)
        controller._s.credit = saved
        controller.clock(spent=2.0, trained=8.0, steps=100, share=0.05)
        pauses[saved] = controller.pause  # an ordinary step took 0.08 seconds
    assert pauses == {0.0: 375, 15.0: 75, 24.0: 0}


@pytest.mark.clock
@pytest.mark.parametrize(
    ("looking", "gained", "pause"),
    [(0.0, 0.0, 375), (0.02, 0.0, 709), (0.5, -1.0, 875), (0.02, 1.0, 375)],
)
def test_looking_on_counts_as_long_as_jumps_have_saved_nothing(
    looking: float, gained: float, pause: int
) -> None:
    controller = Controller(WINDOW)
    controller._s.gained = gained
    controller.clock(spent=2.0, trained=8.0, steps=100, share=0.05, looking=looking)
    assert controller.pause == pause


def test_a_loss_that_is_no_number_is_only_watched() -> None:
    controller = Controller(WINDOW)
    controller.step()
    assert controller.arrive(math.nan) == "watch"
    controller.step()
    assert controller.arrive(1.0) == "jump"


def test_falls_of_negative_losses_are_relative() -> None:
    assert fall(2.0, 1.0) == pytest.approx(math.log(2))
    assert fall(-1.0, -2.0) == pytest.approx(0.5)
    assert fall(0.0, 0.0) == 0.0


def test_its_state_is_numbers_and_strings_and_decides_the_same() -> None:
    one, other = Training(power_law), Training(power_law)
    one.run(300, lambda time: 1.3 * time)
    state = one.controller.state_dict()
    values = [*state.values(), *state["steps"].values()]
    assert all(type(value) in (int, float, str, bool, dict) for value in values)
    other.controller.load_state_dict(state)
    other.time = one.time
    for training in (one, other):
        training.decisions.clear()
        training.run(300, lambda time: 1.3 * time)
    assert one.decisions == other.decisions
    assert one.controller.state_dict() == other.controller.state_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"stride": 0},
        {"stride": "2"},
        {"watch": 1},
        {"jumped": "far"},
        {"noise": None},
        {"steps": None},
        {"steps": {"halvings": 1}},
        {"steps": {**Controller(WINDOW).state_dict()["steps"], "halvings": 9}},
        {"steps": {**Controller(WINDOW).state_dict()["steps"], "lame": 1.5}},
    ],
)
def test_a_state_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    controller = Controller(WINDOW)
    before = controller.state_dict()
    with pytest.raises(CheckpointError, match="controller"):
        controller.load_state_dict({**before, **change})
    with pytest.raises(CheckpointError, match="controller"):
        controller.load_state_dict({"stride": 1})
    assert controller.state_dict() == before


def test_a_mark_brings_the_state_back() -> None:
    controller = Controller(WINDOW)
    mark = ControllerMark(controller)
    controller.step()
    mark.restore()
    assert controller.evaluations == 0
    ControllerMark(None).restore()


def arrived(controller: Controller, loss: float, turning: float) -> str:
    """A window of steps, at whose end the loss is this."""
    for _ in range(WINDOW * controller.stride):
        controller.step()
    assert controller.ready()
    controller.spend(1)
    return controller.arrive(loss, turning)


def swinging(*, relax: bool = True) -> Controller:
    """A controller whose first jumps paid, and whose steps then turn back at once."""
    controller = Controller(WINDOW, relax=relax)
    controller.step()
    controller.begin(1.0)
    arrived(controller, 0.9, 1.0)
    for loss in (0.5, 0.2):
        controller.leave(accepted=True)
        assert arrived(controller, loss, 1.0) == "jump"
    controller.leave(accepted=True)
    arrived(controller, 0.15, -0.99)
    return controller


def test_steps_are_halved_where_two_windows_turn_back_and_jumps_were_kept() -> None:
    controller = swinging()
    assert controller.part == 1
    assert arrived(controller, 0.14, -0.99) == "watch"
    assert controller.part == 0.5
    assert controller.stride == 1
    assert arrived(controller, 0.13, -0.99) == "watch"  # at once, once they are shortened
    assert controller.part == 0.25


@pytest.mark.parametrize("turning", [-0.5, 0.0, 1.0, math.nan])
def test_steps_that_do_not_cancel_stay_whole(turning: float) -> None:
    """Independent noise on every step gives a cosine of -1/2 at the least."""
    controller = swinging()
    for loss in (0.14, 0.13, 0.12):
        arrived(controller, loss, turning)
    assert controller.part == 1


def test_steps_stay_whole_where_that_is_wanted_or_no_jump_was_kept() -> None:
    unwanted, unpaid = swinging(relax=False), Controller(WINDOW)
    unpaid.step()
    unpaid.begin(1.0)
    for loss in (0.14, 0.13, 0.12):
        arrived(unwanted, loss, -0.99)
        arrived(unpaid, loss, -0.99)
    assert unwanted.part == unpaid.part == 1


def test_whole_steps_come_back_where_shortened_ones_gain_nothing() -> None:
    controller = swinging()
    arrived(controller, 0.14, -0.99)
    decisions = []
    while controller.part < 1 and len(decisions) < 20:
        decisions.append(arrived(controller, 0.14, 1.0))
        if decisions[-1] == "jump":
            controller.leave(accepted=False)
    assert decisions[-1] == "rise"
    assert controller.on_trial
    assert arrived(controller, 0.139, 1.0) != "undo"
    assert controller.part == 1
    controller._s.credit = 50.0  # enough to go on looking
    for loss in (0.138, 0.137, 0.136):  # and not again before long
        arrived(controller, loss, -0.99)
        assert controller.part == 1


@pytest.mark.parametrize(("loss", "turning"), [(0.3, 1.0), (0.139, -0.99), (math.nan, 1.0)])
def test_longer_steps_that_rise_or_turn_back_are_undone(loss: float, turning: float) -> None:
    controller = swinging()
    arrived(controller, 0.14, -0.99)
    while arrived(controller, 0.14, 1.0) != "rise":
        controller.leave(accepted=False)
    assert controller.part == 1
    assert arrived(controller, loss, turning) == "undo"
    assert controller.part == 0.5
    assert not controller.on_trial


def test_a_jump_that_is_undone_costs_its_steps_and_no_more() -> None:
    controller = Controller(WINDOW)
    controller.step()
    controller.begin(1.0)
    arrived(controller, 0.9, 1.0)
    controller.leave(accepted=True)
    before = controller.gained
    assert arrived(controller, 9.0, 1.0) == "undo"
    assert controller.gained == pytest.approx(before - WINDOW - 2 * FORWARD)


def test_what_a_mean_leaves_out_is_no_gain_while_it_may_come_back() -> None:
    """Losses swing by a third of themselves, and the mean of a window is below all of them."""
    gained = {}
    for mean in (1.0, 0.7):
        controller = Controller(WINDOW)
        controller.step()
        controller.begin(1.0)
        arrived(controller, 0.99, 1.0)
        answered(controller, 1.0, lambda c, m=mean: m if c == RECENT_MEAN else 2.0, averaged=True)
        controller.leave(accepted=True)
        before = controller.gained
        arrived(controller, 0.6, 1.0)
        gained[mean] = controller.gained - before
    assert gained[1.0] > WINDOW
    assert gained[0.7] <= 0


def test_shortened_steps_are_charged_for_the_way_that_whole_ones_would_have_gone_at_most() -> None:
    controller = swinging()
    arrived(controller, 0.14, -0.99)
    controller._s.rate = 50.0  # of the first steps, long ago
    before = controller.gained
    arrived(controller, 0.139, 1.0)
    assert controller.gained - before == pytest.approx(-WINDOW / 2, abs=1.0)


def test_looks_that_lead_to_no_attempt_do_not_keep_it_from_coming() -> None:
    """An attempt whose number is a power of two is looked at before; that is to come to an end."""
    controller = Controller(WINDOW)
    controller._s.attempts, controller._s.credit = 15, -20.0
    controller.step()
    controller.begin(1.0)
    attempts = 0
    for _ in range(400):
        for left in range(WINDOW * controller.stride - 1, -1, -1):
            controller.step()
            if left > 0 and controller.wants_look(left):
                controller.spend(1)
                controller.look(1.0, left)
        if controller.ready():
            controller.spend(1)
            attempts += controller.arrive(1.0) == "jump"
            controller.leave(accepted=False)
    assert attempts > 1


def test_where_an_optimizer_has_a_state_a_jump_must_be_worth_what_it_disturbs() -> None:
    controller = Controller(WINDOW)
    controller.step()
    controller.begin(1.0)
    arrived(controller, 0.5, 1.0)  # half of the loss in a window: small gains are not worth it
    assert controller.worth(0.5, 0.48)
    controller.stateful = True
    assert not controller.worth(0.5, 0.48)
    assert controller.worth(0.5, 0.3)
    for _ in range(10_000):
        controller.step()
    assert controller.worth(0.5, 0.48)
