# SPDX-License-Identifier: BSD-3-Clause
"""When a self-setting trainer records, how far it looks, and whether its jumps pay.

Only numbers come in and decisions go out: no model, no tensor, no clock of its own. Everything is
counted in gradient evaluations; a forward pass, which is what a probe costs, counts as a third of
one. What it goes by is the rate at which the logarithm of the loss falls over the logarithm of the
evaluations: it stays the same while a loss falls as a power of time, so that stretches of training
at different times can be compared, those that a jump began and those that none did.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from koopfast._horizon_search import SHORTEST, Candidate, HorizonSearch
from koopfast._step_length import MOST_HALVINGS, StepLength, turns_back
from koopfast.errors import CheckpointError

__all__ = ["FORWARD", "Controller", "ControllerMark", "Decision", "fall"]

FORWARD = 1 / 3
"""Gradient evaluations that a forward pass costs: the backward pass costs twice as much."""

Decision = Literal["jump", "watch", "undo", "rise"]

# What probes may cost while they gain nothing: this share of all evaluations, and this many probes.
_SHARE = 0.01
_GRACE = 18
# Credit that jumps have earned never exceeds this share of all evaluations, so that gains of long
# ago do not pay for losses without end.
_MOST_CREDIT = 0.5
_SEARCH = 3  # probes of an attempt, beside the look that begins it
_LONGEST_STRIDE = 256
_LEAST_GAIN = 1e-3  # of the loss's logarithm, for a jump to be worth the disturbance
_WORTH = 0.25  # of the ordinary progress of a window, that a jump must gain at least
_STRONG = 2.0  # times the ordinary rate of progress: then windows may become shorter again
_WORSE = 1.2  # a loss higher than before the jump by this factor undoes it
# Share of a window, if it is not among the shortest, that the account must be able to lose.
_STAKE = 0.25
_SLOWER = 0.25  # of what the first jump seems to lose is charged if the loss still falls
_LEAST_RATE = 0.02  # of progress; slower than that is standing still
_MOST_CHANGE = 3.0  # times the rate so far: more is the recovery from a rise, not progress
_SURE = 2.0  # standard errors
_GRACE_SECONDS = 0.1
_LEAST_SHARE = 0.5  # of the overhead, that is left for work however long it takes to look on


def fall(before: float, after: float) -> float:
    """By how much a loss fell: the difference of logarithms, or relative if one is not positive."""
    if before > 0 and after > 0:
        return math.log(before) - math.log(after)
    scale = max(abs(before), abs(after))
    return (before - after) / scale if scale > 0 else 0.0


@dataclass
class _State:
    """All that a controller remembers, as numbers and strings."""

    evaluations: float = 0.0
    stride: int = 1
    watch: bool = False  # the next window is for comparison only
    mark_at: float = 0.0  # evaluations at the last look; 0 before the first
    mark_loss: float = 0.0
    jumped: str = ""  # what became of the optimizer's state in the jump at the mark, "" without one
    rate: float = 0.0  # of progress without jumps; 0 while unknown
    latest: float = 0.0  # the same, in the last such stretch alone
    credit: float = 0.0  # evaluations saved by jumps, less those spent on probes or lost
    gained: float = 0.0  # the same without a bound
    forwards: int = 1  # passes of a probe
    attempts: int = 0
    last_look: float = 0.0  # the loss one step before the window was full; 0 without one
    noise: float = 0.0  # mean square of the loss's logarithm from one step to the next
    returns: float = 0.0  # what a window's mean last gained: noise, which comes back
    keep: float = 0.0  # progress after jumps that kept the optimizer's state, in ordinary rates
    keep_count: int = 0
    reset: float = 0.0
    reset_count: int = 0
    exploring: bool = False
    daring: bool = False  # the jump at the mark may lose more than the account could bear
    doubt: float = 1.0  # how many windows' ordinary progress such a jump must show
    explore_at: float = 0.0  # evaluations before the other treatment of that state is tried


class Controller:
    """Decides for one training run.

    The window's length is fixed; its stride begins at 1, doubles whenever an attempt did not pay
    and halves when it paid well. A jump is judged at the next full window, by what the loss is
    then, against ordinary training: what it saved or lost is entered in an account. Where that is
    overdrawn, nothing is tried until training has gone on long enough; where it could not bear what
    a jump from so long a window may lose, a jump must gain all that the next window would bring.

    Where consecutive steps cancel each other they are shortened, see
    :class:`koopfast._step_length.StepLength`.

    Args:
        window: snapshots in a window.
        longest: the longest horizon, in windows.
        relax: whether steps may be shortened.

    Attributes:
        pause: optimizer steps to wait before recording goes on, set by a decision.
        spare: by how much the loss's logarithm is lower at the mean of the weights of late, which
            is there without a jump.
        stateful: whether the optimizer remembers anything of the weights it moved.
        scaled: whether it remembers how large gradients were.
    """

    def __init__(self, window: int, longest: float = 256, *, relax: bool = True) -> None:
        self._window = window
        self._relax = relax
        self._highest = max(SHORTEST, math.floor(math.log2(longest)))
        self._s = _State()
        self._steps = StepLength()
        self._search = HorizonSearch()
        self.pause = 0
        self.spare = 0.0
        self.stateful = self.scaled = False

    @property
    def stride(self) -> int:
        """Optimizer steps from one snapshot to the next, in the window that begins now."""
        return self._s.stride

    @property
    def average(self) -> bool:
        """Whether snapshots of that window are means over the stride."""
        return self._s.stride > 1

    @property
    def part(self) -> float:
        """Share of each optimizer step that is to be gone."""
        return self._steps.part

    @property
    def evaluations(self) -> float:
        """Gradient evaluations so far, probes included."""
        return self._s.evaluations

    @property
    def on_trial(self) -> bool:
        """Whether a jump was made, or steps were lengthened, and that is not judged yet."""
        return self._s.jumped != "" or self._steps.rising

    @property
    def rising(self) -> bool:
        """Whether steps were lengthened, and that is what is to be judged."""
        return self._steps.rising

    @property
    def saved(self) -> float:
        """Gradient evaluations that jumps have to their credit, at most half of all."""
        return self._s.credit

    @property
    def gained(self) -> float:
        """Gradient evaluations that jumps are estimated to have saved, less what probes cost.

        What ordinary training, falling as the power of time that it was last seen to fall by, would
        have taken for what the stretches after jumps brought, less what these took.
        """
        return self._s.gained

    def step(self) -> None:
        """One optimizer step."""
        self._s.evaluations += 1

    def spend(self, probes: int, forwards: int = 1, *, for_jumps: bool = True) -> None:
        """So many probes, each of so many forward passes; the account pays those for jumps."""
        self._s.forwards = forwards
        cost = probes * forwards * FORWARD
        self._s.evaluations += cost
        if not for_jumps:
            return
        self._s.credit -= cost
        self._s.gained -= cost

    def wants_look(self, steps_left: int) -> bool:
        """Whether the loss is to be looked at, so many steps before the window is full.

        In the middle of the very first window, which gives the rate of ordinary training; one step
        before the end of the attempts 2, 4, 8, … to see how much the loss jitters; and a quarter of
        a window after a jump that may lose more than the account can bear, or that tried what is
        not known to be good for the optimizer's state.
        """
        s = self._s
        if s.mark_at == 0:
            return steps_left == self._window // 2
        if (s.daring or s.exploring) and steps_left == 3 * self._window * s.stride // 4:
            return True
        # Only where ready() will be content after it: a look that leads to no attempt comes again.
        enough = self._room(2 + _SEARCH) >= 0
        return steps_left == 1 and s.attempts > 0 and _is_power_of_two(s.attempts + 1) and enough

    def look(self, loss: float, steps_left: int) -> Literal["undo"] | None:
        """The loss where :meth:`wants_look` asked for it; says whether to undo the last jump."""
        s = self._s
        if steps_left == 1:
            s.last_look = loss if math.isfinite(loss) else 0.0
        elif s.daring or s.exploring:
            fallen = fall(s.mark_loss, loss) if math.isfinite(loss) else -math.inf
            if not fallen + self._unsure > 0:
                self._learn(s.jumped, 0.0)
                if s.daring:
                    self._learn_daring(paid=False)
                self._take_back(explored=self._end_exploring(fallen))
                s.mark_at, s.jumped = s.evaluations, ""
                return "undo"
        elif math.isfinite(loss):
            s.mark_at, s.mark_loss, s.jumped = s.evaluations, loss, ""
        return None

    def ready(self) -> bool:
        """Whether the account allows a look at the full window; if not, ``pause`` says how long."""
        s = self._s
        if s.mark_at == 0 or self.on_trial:
            return True
        room = self._room(1 + _SEARCH)
        if self._steps.may_rise(s.evaluations):
            return True  # if not to look for a jump, then for the way back to whole steps
        if room < 0:
            self.pause = math.ceil(-room / _SHARE)
            if self._steps.shortened:
                self.pause = min(self.pause, math.ceil(self._steps.rise_after - s.evaluations))
        return room >= 0

    def arrive(self, loss: float, turning: float = math.nan) -> Decision:
        """The window is full and this is the loss: judge what came before, say what to do.

        Args:
            loss: where the window ends.
            turning: cosine between its last two steps; NaN if unknown.

        Returns:
            ``"jump"``: fit, predict and :meth:`search`. ``"watch"``: only go on. ``"undo"``: put
            back what was before the last jump, or before steps were lengthened. ``"rise"``: they
            are lengthened now, which may be undone.
        """
        s, steps = self._s, self._steps
        if not math.isfinite(loss):
            rising = steps.rising
            self.forget()
            if rising:
                self._fall_back()
            return "undo" if rising else "watch"
        turns = self._relax and turns_back(turning)
        if s.last_look != 0 and not turns:
            jitter = fall(s.last_look, loss) ** 2 / 2
            s.noise = jitter if s.noise == 0 else max(jitter, (s.noise + jitter) / 2)
        s.last_look = 0.0
        s.attempts += 1
        decision: Decision = "jump"
        again, steps.turned = steps.turned and turns, turns
        rising, steps.rising = steps.rising, False
        if s.mark_at > 0:
            decision = self._judge(fall(s.mark_loss, loss), rising, turns)
            if decision == "undo":
                s.mark_at, s.jumped, s.watch = s.evaluations, "", False
                if rising:
                    self._fall_back()
                elif turns:
                    self._shorten()
                return decision
        s.mark_at, s.mark_loss, s.jumped = s.evaluations, loss, ""
        # The first steps of a training often swing; that is over after a window.
        if turns and (again or steps.shortened) and self._shorten():
            s.watch = False
            return "watch"
        if self._rises():
            return "rise"
        if s.watch or self._room(_SEARCH) < 0:
            decision = "watch"
        s.watch = False
        return decision

    def search(
        self,
        before: float,
        averaged: bool,
        *,
        still: bool = False,
        uneven: bool = False,
        straight: bool = True,
    ) -> Generator[Candidate, float, None]:
        """The candidates, one after the other; each is answered with the loss it gives.

        From the horizon that was good last time by factors of two, as long as the loss goes down;
        where it is above ``before``, the shortest, and those between if they can be :meth:`worth`
        a jump. Where snapshots are averages, the mean of the newer half of them takes part when it
        won last time or no horizon is good; alone where nothing is predicted and the operator
        stands ``still``. At the attempts 1, 2, 4, 8, … and as long as they win there take part:
        where the hindcast of the blocks is ``uneven``, the best horizon damped; and, if
        ``straight``, the secant of the window, which is tried where nothing else is worth a jump,
        too.
        """
        s, search, mean = self._s, self._search, math.inf
        if not still:
            least = self._least_gain
            mean = yield from search.candidates(
                before,
                before * math.exp(-least) if before > 0 else before * (1 + least),
                self._highest,
                averaged=averaged,
                uneven=uneven,
                straight=straight,
                rare=_is_power_of_two(s.attempts),
            )
        elif averaged:
            mean = yield from search.mean_alone(before)
        if math.isfinite(mean):
            s.returns = max(0.0, fall(before, mean))

    def worth(self, before: float, after: float) -> bool:
        """Whether a loss this much lower is worth a jump.

        A jump must gain more than the mean of the weights of late does, which it ends. This beside:
        Where the optimizer has a state, which is of the weights left behind, the jump must gain
        more than a share of what the next window brings without it, at the lower of the rates that
        the last stretch and all had. Where the account could not bear what the jump may lose in
        that window, it must gain all of that and a fifth of the loss, and twice as much for each
        such jump that lost.
        """
        return math.isfinite(after) and fall(before, after) > self._least_gain

    def begin(self, loss: float) -> None:
        """A jump is tried at this loss whatever the account says."""
        s = self._s
        s.mark_at, s.mark_loss, s.jumped = s.evaluations, loss, ""
        s.exploring = s.daring = False
        self._steps.forget()

    def forget(self) -> None:
        """What was a stretch of training is none: compare with nothing that came before."""
        s = self._s
        s.mark_at, s.jumped, s.last_look = 0.0, "", 0.0
        s.exploring = s.daring = False
        self._steps.forget()

    def leave(self, accepted: bool, resettable: bool = False) -> Literal["keep", "reset"]:
        """The search is over; returns what is to become of the optimizer's state in the jump.

        Args:
            accepted: whether a candidate was kept.
            resettable: whether the optimizer has a state that can be forgotten.
        """
        s = self._s
        if not accepted:
            self._lengthen()
            return "keep"
        treatment = self._treatment() if resettable else "keep"
        s.jumped, s.daring = treatment, self._dares
        return treatment

    def clock(
        self, spent: float, trained: float, steps: int, share: float, looking: float = 0.0
    ) -> None:
        """Set ``pause`` if more seconds were ``spent`` than may be.

        That is a ``share`` of all time and what jumps have saved, at the pace of ordinary steps. As
        long as they have saved nothing, looking on, which no pause would save, takes its part of
        that share, of short steps half of it. The first tenth of a second is free. A pause lasts
        until there is time for another attempt: windows that end in the next pause would take
        theirs for nothing.

        Args:
            spent: seconds in recording, fitting, predicting and probing.
            trained: seconds of training beside that.
            steps: optimizer steps in that time.
            share: of the whole time that may be spent in vain.
            looking: share of a step that it takes to look on.
        """
        if spent <= _GRACE_SECONDS or steps == 0 or trained <= 0:
            return
        if self.gained <= 0:
            share = max(_LEAST_SHARE * share, share - looking)
        saved = max(0.0, self._s.credit) * trained / steps
        missing = (spent - saved) / share - (spent + trained)
        if missing > 0:
            attempt = spent / self._s.attempts if self._s.attempts > 0 else 0.0
            missing += attempt / share
            self.pause = max(self.pause, math.ceil(missing * steps / trained))

    def state_dict(self) -> dict[str, Any]:
        """The state as numbers and strings."""
        return {
            **dataclasses.asdict(self._s),
            "steps": dataclasses.asdict(self._steps),
            "search": dataclasses.asdict(self._search),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            CheckpointError: something is missing, unknown or of another type.
        """
        self._s, self._steps, self._search = _checked(state)
        self.pause = 0

    @property
    def _stake(self) -> float:
        """Evaluations that a jump may lose before it is judged."""
        return _STAKE * self._window * max(0, self._s.stride - 2)

    @property
    def _unsure(self) -> float:
        """What two losses' logarithms may differ by from jitter: half of it is each one's."""
        return _SURE * math.sqrt(2 * self._s.noise)

    @property
    def _least_gain(self) -> float:
        """By how much a jump must lower the loss's logarithm, see :meth:`worth`."""
        s, least = self._s, _LEAST_GAIN
        share = _WORTH if self.stateful else 0.0
        if self._dares:
            share, least = s.doubt, math.log(_WORSE)
        if share > 0:
            window = self._window * s.stride / max(1.0, s.evaluations)
            least = max(least, share * min(s.rate, s.latest) * math.log1p(window))
        return self.spare + least

    @property
    def _dares(self) -> bool:
        """Whether a jump may lose more than the account can bear."""
        return self._room(0) < self._stake

    def _room(self, probes: int) -> float:
        """Evaluations left in the account after so many probes."""
        s = self._s
        grace = (_GRACE - probes) * s.forwards * FORWARD
        free = self._steps.free(s.evaluations, self._window)
        return s.credit + _SHARE * s.evaluations + grace + free

    def _judge(self, fallen: float, rising: bool, turns: bool) -> Decision:
        """Enter in the account what the stretch since the mark brought."""
        s = self._s
        unsure = self._unsure
        length = s.evaluations - s.mark_at
        if rising:
            # What swings makes losses a step apart differ, which is not to excuse anything here.
            unsure = min(unsure, math.log(_WORSE))
            if turns or fallen + unsure < -math.log(_WORSE):
                self._enter(-length)
                return "undo"
            self._steps.keep(s.evaluations)
            return "jump"
        span = math.log(s.evaluations / s.mark_at)
        if not s.jumped and not self._steps.shortened:
            if turns and s.rate > 0:
                return "jump"  # where losses swing, two of them tell no rate
            s.latest = rate = max(_LEAST_RATE, fallen / span)
            s.rate = rate if s.rate == 0 else (s.rate + min(rate, _MOST_CHANGE * s.rate)) / 2
            return "jump"
        ordinary = max(s.rate, _LEAST_RATE) * span
        # Of what is more than that, noise that was left out for a moment is none.
        chance = max(unsure, _SURE * s.returns) if fallen > ordinary else unsure
        certain = fallen - math.copysign(min(chance, abs(fallen - ordinary)), fallen - ordinary)
        gain = min(10.0, max(-2.0, certain / ordinary - 1))
        self._steps.count(gained=s.jumped != "" and gain > 0)
        if not s.jumped:  # shortened steps alone
            if fallen > 0:  # whole ones would have gone further in proportion at most
                gain = max(gain, self._steps.part - 1)
            # A pause before the window was no choice of theirs.
            self._enter(min(0.0, gain) * min(length, self._window * s.stride))
            # Training slows down, and no whole steps are taken that would show it.
            s.rate -= _SLOWER * (s.rate - min(s.rate, max(_LEAST_RATE, fallen / span)))
            return "jump"
        if gain < 0 < fallen and s.keep_count + s.reset_count == 0:
            # Progress, if less than in the steps before the first jump: ordinary steps, too, make
            # less of it after the first ones.
            gain *= _SLOWER
        self._learn(s.jumped, min(10.0, max(-3.0, fallen / ordinary)))
        if s.daring:
            self._learn_daring(paid=gain > 0)
        explored = self._end_exploring(fallen)
        if fallen + unsure < -math.log(_WORSE) or (explored and fallen + unsure <= 0):
            self._take_back(explored=explored)
            return "undo"
        self._enter(gain * length)
        if fallen < ordinary or gain <= 0:
            self._lengthen()
            s.watch = True
        elif gain >= _STRONG - 1:
            s.stride = max(1, s.stride // 2)
        return "jump"

    def _enter(self, evaluations: float) -> None:
        """So many saved, or lost."""
        s = self._s
        s.credit = min(_MOST_CREDIT * s.evaluations, s.credit + evaluations)
        s.gained += evaluations

    def _take_back(self, *, explored: bool) -> None:
        """The jump at the mark is undone: that has cost its steps and no more."""
        self._enter(self._s.mark_at - self._s.evaluations)
        if not explored:
            self._lengthen()

    def _end_exploring(self, fallen: float) -> bool:
        """Whether the jump at the mark tried the other treatment; says when that comes next."""
        s = self._s
        explored, s.exploring = s.exploring, False
        if explored:
            s.explore_at = (2 if fallen > 0 else 4) * s.evaluations
        return explored

    def _shorten(self) -> bool:
        """Halve the optimizer's steps; False if that may not be."""
        s = self._s
        jumped = s.keep_count + s.reset_count > 0
        if not self._relax or not self._steps.shorten(s.evaluations, self._window, jumped=jumped):
            return False
        s.stride = 1
        return True

    def _rises(self) -> bool:
        """Double shortened steps, on trial, if it is time to."""
        s = self._s
        idle = self.pause > 0 or self._room(_SEARCH) < 0
        if not self._steps.rise(s.evaluations, idle=idle):
            return False
        s.stride, s.watch = 1, False
        return True

    def _fall_back(self) -> None:
        """Longer steps were tried in vain."""
        self._steps.fall_back(self._s.evaluations, self._window)

    def _lengthen(self) -> None:
        self._s.stride = min(_LONGEST_STRIDE, 2 * self._s.stride)

    def _learn_daring(self, *, paid: bool) -> None:
        s = self._s
        s.daring, s.doubt = False, max(1.0, s.doubt / 2) if paid else 2 * s.doubt

    def _learn(self, treatment: str, progress: float) -> None:
        s = self._s
        if treatment == "keep":
            s.keep = progress if s.keep_count == 0 else 0.6 * s.keep + 0.4 * progress
            s.keep_count += 1
        else:
            s.reset = progress if s.reset_count == 0 else 0.6 * s.reset + 0.4 * progress
            s.reset_count += 1

    def _treatment(self) -> Literal["keep", "reset"]:
        """The better one so far, and now and then the other, if the account can bear it.

        First of all the optimizer's measure of gradients is forgotten, where it has one: those
        behind a jump are others. Not as long as jumps may lose more than the account can bear.
        """
        s = self._s
        if s.keep_count + s.reset_count == 0 and self.scaled and not self._dares:
            s.exploring = True
            return "reset"
        if s.keep_count < 2 and s.reset_count == 0:
            return "keep"
        resets = s.reset_count > 0 and s.reset > (s.keep if s.keep_count > 0 else 1.0)
        # At worst the whole window is undone.
        cost = self._window * s.stride + (1 + _SEARCH) * s.forwards * FORWARD
        bearable = cost <= _SHARE * s.evaluations + max(0.0, s.credit) / 4
        if bearable and s.evaluations >= s.explore_at:
            s.exploring = True
            resets = not resets
        return "reset" if resets else "keep"


class ControllerMark:
    """The state of a controller now; ``restore()`` goes back to it. Of None, nothing happens."""

    def __init__(self, controller: Controller | None) -> None:
        self._controller = controller
        self._state = None if controller is None else controller.state_dict()

    def restore(self) -> None:
        if self._controller is not None and self._state is not None:
            self._controller.load_state_dict(self._state)


def _is_power_of_two(count: int) -> bool:
    """Or 0."""
    return count & (count - 1) == 0


def _checked(state: Any) -> tuple[_State, StepLength, HorizonSearch]:
    where = "state['controller']"
    _check(state, {**_fields(_State), "steps": dict, "search": dict}, where)
    own = dict(state)
    steps, search = own.pop("steps"), own.pop("search")
    _check(steps, _fields(StepLength), f"{where}['steps']")
    _check(search, _fields(HorizonSearch), f"{where}['search']")
    possible = own["stride"] >= 1 and own["jumped"] in ("", "keep", "reset")
    if not possible or not 0 <= steps["halvings"] <= MOST_HALVINGS:
        raise CheckpointError(
            f"{where}: stride {own['stride']!r}, jumped {own['jumped']!r} and "
            f"halvings {steps['halvings']!r} cannot be"
        )
    return _State(**own), StepLength(**steps), HorizonSearch(**search)


def _fields(kind: type) -> dict[str, type]:
    return {f.name: type(f.default) for f in dataclasses.fields(kind)}


def _check(state: Any, fields: Mapping[str, type], where: str) -> None:
    if not isinstance(state, Mapping) or set(state) != set(fields):
        raise CheckpointError(
            f"{where}: expected a dict with the keys {sorted(fields)}, got "
            f"{sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__}"
        )
    for name, kind in fields.items():
        value = state[name]
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (kind is not bool and isinstance(value, bool)):
            raise CheckpointError(f"{where}[{name!r}]: expected {kind.__name__}, got {value!r}")
