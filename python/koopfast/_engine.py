# SPDX-License-Identifier: BSD-3-Clause
"""What happens at each optimizer step: record, fit and jump when the window is full, or undo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from koopfast import _attach, _training_state
from koopfast._attempt import Attempt, probed, refused
from koopfast._batch_norm import Recalibration, normalizing_modules
from koopfast._costs import Clock
from koopfast._distributed import FitFailure
from koopfast._moment_window import MomentWindow
from koopfast._notices import Notices
from koopfast._rehearsal import Rehearsal
from koopfast._relaxation import Relaxation
from koopfast._savepoint import (
    Buffers,
    OptimizerState,
    ReturnPoint,
    Savepoint,
    Weights,
    restore_all,
)
from koopfast._team import ProcessGroup, team_of
from koopfast._watch import RateWatch, StepWatch, StrangerWatch, WeightWatch
from koopfast._weight_average import WeightAverage
from koopfast._window import Schedule, new_buffer
from koopfast.config import KoopmanConfig
from koopfast.controller import Controller, ControllerMark, fall
from koopfast.errors import CheckpointError, ConfigError, ParameterChangedError
from koopfast.guard import Guard, Look, Probe
from koopfast.history import History, HistoryMark, JumpRecord, Spread
from koopfast.loggers import Logger
from koopfast.moments import MomentBuffer
from koopfast.operator import KoopmanOperator
from koopfast.snapshots import SnapshotBuffer

__all__ = ["Engine"]

# What broke a window: a rate that changed, weights that somebody wrote.
_RATE, _WRITTEN = 1, 2
# Steps at the end of a window that are compared with each other.
_MEASURED = 2

_Result = TypeVar("_Result")


class Engine:
    """Everything that a trainer keeps and does, behind the public face that is ``KoopmanTrainer``.

    Only sequences the other modules. Arguments, attributes and errors are those of the trainer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: KoopmanConfig,
        process_group: ProcessGroup | Literal[False] | None,
    ) -> None:
        self._given_optimizer = optimizer
        optimizer = _attach.real_optimizer(optimizer)
        if config.guard == "finite" and config.horizon == "search":
            raise ConfigError(
                'horizon: guard="finite" cannot choose among horizons, got "search"; pass the '
                'optimizer steps to jump, horizon=100 for example, or guard="probe"'
            )
        self.config = config
        self.history = History()
        self.operator: KoopmanOperator | None = None
        self.loggers: list[Logger] = []
        self.recalibrate: Callable[[], object] | None = None
        self._model = model
        self._optimizer = optimizer
        self._team = team_of(model, optimizer, process_group)
        if config.dry_run and self._team.size > 1:
            raise ConfigError(
                f"dry_run: expected one process, got {self._team.size} that train together; look "
                "at the dry run of one of them alone"
            )
        self._parameters = self._team.parameters(model, optimizer)
        self._partition = self._team.partition(config, model, self._parameters)
        self._relaxation = Relaxation(optimizer, self._parameters)
        self._controller = self._new_controller()
        self._average = self._new_average()
        self._rehearsal = Rehearsal(config) if config.dry_run else None
        self._snapshots = new_buffer(config, self._parameters, self._partition, self._schedule)
        self._moments = self._new_moments(self._snapshots)
        self._weight_watch = WeightWatch(self._parameters)
        self._stranger_watch = StrangerWatch(self._parameters)
        self._rate_watch = RateWatch(optimizer)
        self._step_watch = StepWatch(optimizer, self._before_step)
        self._guard = Guard(config.guard, config.probe_gradients, self._team)
        self._enabled = True
        self._idle = config.warmup  # optimizer steps before recording goes on
        self._lag = 0  # optimizer steps since the last snapshot
        self._broken = 0  # what broke this window; of several processes, each may see it or not
        self._reserved = False
        self._clock = Clock()
        self._notices = Notices()
        self._rollback: ReturnPoint | None = None
        self._shorter: ReturnPoint | None = None  # before steps were lengthened on trial
        self._skip_watch = _attach.SkipWatch(optimizer)
        self._jumping = False
        self._showing = False  # other weights than those that are trained

    def _before_step(self) -> None:
        """The optimizer is about to step: not from a probe, and from the weights it left."""
        self._refuse_reentry()
        if self._step_watch.began:
            return
        recording = self._enabled and self._idle == 0
        self._clock.enter(working=recording)
        try:
            if self._weight_watch.compare():
                self._break(_WRITTEN)
            controller, relaxation = self._controller, self._relaxation
            if controller is not None:
                relaxation.part = controller.part if self._enabled else 1.0
                relaxation.measuring = recording and self._rows.steps_left <= _MEASURED
                relaxation.begin()
        finally:
            self._clock.leave()

    def _after_step(self, probe: Probe | None) -> JumpRecord | None:
        self._refuse_reentry()
        if self._skip_watch.skipped:
            return None
        self._clock.enter(working=self._enabled and self._idle == 0)
        try:
            return self._or_restart(lambda: self._count_step(probe))
        finally:
            self._clock.leave()

    def _or_restart(self, work: Callable[[], _Result]) -> _Result:
        """Do ``work``; should it fail, restart the window and put autograd's mode back."""
        with_gradients = torch.is_grad_enabled()
        try:
            with _outside_inference():
                return work()
        except ParameterChangedError as error:
            self._restart_window()
            step = self.history.counters.optimizer_steps
            raise ParameterChangedError(f"step {step}: {error}") from None
        except BaseException:
            # An interrupt may strike inside a switch of that mode and leave it switched.
            torch.set_grad_enabled(with_gradients)
            self._restart_window()
            raise

    def _enable(self, enabled: bool) -> None:
        self._enabled = enabled
        if not enabled:
            self._start_over()

    def _count_step(self, probe: Probe | None) -> JumpRecord | None:
        if not self._step_watch.stepped():
            self._parameters.check_unchanged()
            if self._stranger_watch.trains():
                self._notices.warn(
                    "stranger",
                    "the weights move, but the optimizer of this KoopmanTrainer takes no steps: "
                    "another one trains them, and nothing is recorded; make a new KoopmanTrainer "
                    "with that one",
                )
            return None
        self._stranger_watch.stepped()
        counters = self.history.counters
        counters.optimizer_steps += 1
        self._clock.step()
        counters.steps_shortened += self._relaxation.part < 1
        if self._controller is not None:
            self._controller.step()
        rate_changed = self._rate_watch.changed(self._snapshots.begun)
        if not self._enabled:
            return None
        if self._average is not None:
            self._follow_mean(self._average)
        if self._rehearsal is not None and self._rehearsal.due(counters.optimizer_steps):
            self._compare(self._rehearsal, probe)
        if self._idle > 0:
            self._idle -= 1
            if self._average is not None and self._average.lead > 0:
                self._weight_watch.note()  # whoever writes weights now spoils their mean
            return None
        if rate_changed:
            self._break(_RATE)
        # On CUDA this is the time to enqueue the copy: waiting for it would slow training down.
        started = perf_counter()
        try:
            self._reserve()
            stored = self._snapshots.record()
            if self._moments is not None:
                self._moments.record()
        except MemoryError as error:
            self._enable(False)
            self._notices.warn("no_room", f"{error}; this trainer switched itself off")
            return None
        self._lag = 0 if stored else self._lag + 1
        self._weight_watch.note()
        counters.seconds_record += perf_counter() - started
        if not self._snapshots.full:
            self._look_ahead(probe)
            return None
        if self._split_where_broken():
            return None
        if self._rehearsal is not None:
            self._rehearse(self._rehearsal, probe)
            return None
        if probe is None and self.config.guard == "probe":
            self._restart_window()
            self._notices.warn(
                "no_probe",
                'no jump: guard="probe" needs a loss to judge by; pass probe=lambda: loss to '
                'after_step or attach, or configure guard="finite" with a fixed horizon',
            )
            return None
        if self._controller is not None and probe is not None:
            return self._consider(self._controller, probe)
        return self._jump(probe)

    def _look_ahead(self, probe: Probe | None) -> None:
        """Probe in mid-window, where the controller wants to know how the loss moves."""
        controller = self._controller
        if controller is None or probe is None:
            return
        left = self._rows.steps_left
        if controller.wants_look(left):
            look, _ = self._look(controller, probe)
            self._count(look)
            if controller.look(look.loss, left) == "undo" and self._rollback is not None:
                self._undo()
                self._restart_window()

    @property
    def _rows(self) -> SnapshotBuffer:
        """The snapshots where they are kept, as always under a controller."""
        assert isinstance(self._snapshots, SnapshotBuffer)
        return self._snapshots

    def _look(self, controller: Controller, probe: Probe) -> tuple[Look, Savepoint]:
        """The loss now, outside of any jump, and what was saved and put back for it."""
        self._jumping = True
        try:
            savepoint = self._savepoint()
            look = self._guard.look(savepoint, probe)
        finally:
            self._jumping = False
        controller.spend(1, len(look.parts))
        return look, savepoint

    def _look_at_average(
        self, controller: Controller, probe: Probe, look: Look, savepoint: Savepoint
    ) -> None:
        """Compare the mean of the weights with themselves, when it is time to.

        ``look`` is that at the weights and ``savepoint`` what was saved for it.
        """
        average, steps = self._average, self.history.counters.optimizer_steps
        if average is None or average.mean is None or not average.wants_look(steps):
            return
        self._jumping = True
        try:
            self._guard.recalibration = self._recalibration()
            there = self._guard.look_at(self._parameters, average.mean, savepoint, probe)
        finally:
            self._jumping = False
        # Few enough, as the time to the next one grows, to need no account.
        controller.spend(1, len(there.parts), for_jumps=False)
        self._count(there)
        average.look(steps, look.loss, there.loss)
        self.history.counters.lead_of_mean = average.lead

    def _follow_mean(self, average: WeightAverage) -> None:
        """After a step; where there is no room for the mean, on any process, none is kept."""
        try:
            if not average.reserved:
                self._team.agreed(average.reserve, MemoryError)
            average.step(self.history.counters.optimizer_steps)
        except MemoryError as error:
            self._average = None
            self._notices.warn("no_mean", f"{error}; no mean of the weights is kept")

    @contextmanager
    def _show_average(self, probe: Probe | None) -> Iterator[bool]:
        """The mean of the weights in the model, if it leads; then all is as before."""
        self._refuse_reentry()
        with _outside_inference():
            savepoint = self._savepoint()
            self._parameters.check_unchanged(self._model)
            self._split_where_written()
        shown = False
        try:
            self._jumping = True
            with _outside_inference():
                mean = self._leading_mean(savepoint, probe)
                shown = mean is not None
                if mean is not None:
                    self._parameters.write(mean, backup=False)
                    torch.clear_autocast_cache()
                    self._guard.recalibrate(savepoint)
            self._jumping, self._showing = False, True
            yield shown
        finally:
            self._jumping = self._showing = False
            try:
                self._team.prepare()
            finally:
                restore_all(*([savepoint.weights] if shown else []), savepoint.buffers)
                torch.clear_autocast_cache()

    def _leading_mean(self, savepoint: Savepoint, probe: Probe | None) -> Tensor | None:
        """The mean of the weights, if its loss is lower: now, or without a probe when last seen."""
        average = self._average
        if average is None or average.mean is None:
            return None
        self._guard.recalibration = self._recalibration()
        lead = average.lead
        if probe is not None:
            here = self._guard.look(savepoint, probe)
            there = self._guard.look_at(self._parameters, average.mean, savepoint, probe)
            self._count(here)
            self._count(there)
            lead = fall(here.loss, there.loss)
        return average.mean if lead > 0 else None

    def _count(self, look: Look) -> None:
        """Enter a look that no record of a jump holds."""
        counters = self.history.counters
        counters.probe_evaluations += 1
        counters.seconds_probe += look.seconds

    def _consider(self, controller: Controller, probe: Probe) -> JumpRecord | None:
        """The window is full: jump, only watch, or undo the jump before."""
        self._look_at_clock(controller)
        # A jump is judged in any case: what it gained is what the clock allows for.
        due = controller.pause == 0 or controller.on_trial or controller.part < 1
        if due and controller.ready():
            look, savepoint = self._look(controller, probe)
            self._look_at_average(controller, probe, look, savepoint)
            [turning] = self._team.of_first([self._relaxation.turning()])
            decision = controller.arrive(look.loss, turning)
            self._look_at_clock(controller)
            self._estimate_gains(controller)
            if decision == "jump" and controller.pause == 0:
                record = self._jump(probe, look, savepoint)
                if not record.accepted:  # no window is needed to judge it: a pause begins now
                    self._look_at_clock(controller)
                    self._begin_pause(controller)
                return record
            self._count(look)
            point, self._shorter = self._shorter, None
            if decision == "rise":
                self._shorter = self._return_point()
            elif decision == "undo" and point is not None:
                self._parameters.check_unchanged(self._model)
                point.restore()
                self._forget_average()
            elif decision == "undo" and self._rollback is not None:
                self._undo()
        self._begin_pause(controller)
        self._restart_window()
        return None

    def _begin_pause(self, controller: Controller) -> None:
        """Record nothing for as many steps as the controller says.

        But not while longer steps are on trial, which may throw back all that they did.
        """
        self._idle, controller.pause = 0 if controller.rising else controller.pause, 0

    def _look_at_clock(self, controller: Controller) -> None:
        """Let the controller pause where jumps took more time than they may."""
        controller.pause = 0
        if self.config.overhead is not None:
            clock = self._clock
            numbers = (clock.spent, clock.trained, clock.steps, clock.idle_share)
            spent, trained, steps, looking = self._team.of_first(numbers)
            controller.clock(spent, trained, int(steps), self.config.overhead, looking)

    @property
    def _schedule(self) -> Schedule | None:
        """Who says how to record, where that varies."""
        return _schedule(self._controller, self._rehearsal)

    def _rehearse(self, rehearsal: Rehearsal, probe: Probe | None) -> None:
        """The window of a dry run is full: predict, and keep that for later."""
        attempt = self._new_attempt()
        try:
            ahead = attempt.foresee(rehearsal)
        except FitFailure as failure:
            ahead = None
            self._notices.warn("operator", f"nothing is predicted: {failure}")
        if ahead is not None:
            span, horizons, rows = ahead
            losses = self._losses(rows, probe)
            start = self._parameters.read()
            step = self.history.counters.optimizer_steps
            rehearsal.expect(step, span, horizons, rows, start, losses)
        rehearsal.next_window()
        self._restart_window()

    def _compare(self, rehearsal: Rehearsal, probe: Probe | None) -> None:
        """The time has come that something was predicted of."""
        real = self._parameters.read()
        loss = self._losses((), probe)[0]
        step = self.history.counters.optimizer_steps
        self.history.forecasts += rehearsal.compare(step, real, loss)

    def _losses(self, rows: Iterable[Tensor], probe: Probe | None) -> list[float | None]:
        """Of the weights in place and of each of ``rows``; None without a probe."""
        if probe is None:
            return [None, *(None for _ in rows)]
        self._jumping = True
        try:
            parameters, counters = self._parameters, self.history.counters
            savepoint = Savepoint(self._model, parameters.parameters, parameters.device)
            self._guard.recalibration = self._recalibration()
            looks = self._guard.losses(parameters, rows, savepoint, probe)
        finally:
            self._jumping = False
        counters.probe_evaluations += sum(len(look.parts) > 0 for look in looks)
        counters.seconds_probe += sum(look.seconds for look in looks)
        return [look.loss for look in looks]

    def _estimate_gains(self, controller: Controller) -> None:
        """What jumps gained so far, at the pace at which ordinary steps were taken."""
        counters = self.history.counters
        pace = self._clock.trained / max(1, self._clock.steps)
        counters.evaluations_gained = controller.gained
        # What probes cost is in the evaluations already.
        other = counters.seconds_record + counters.seconds_fit + counters.seconds_predict
        counters.seconds_gained = controller.gained * pace - other

    def _undo(self) -> None:
        assert self._rollback is not None
        self._parameters.check_unchanged(self._model)
        # Counted and let go first: an interrupt finds it undone and not to be undone again.
        point, self._rollback = self._rollback, None
        self.history.counters.jumps_rolled_back += 1
        point.restore()
        self._forget_average()

    def _jump(
        self,
        probe: Probe | None,
        look: Look | None = None,
        savepoint: Savepoint | None = None,
    ) -> JumpRecord:
        """One attempt, all or nothing: an exception leaves everything as it was before it.

        ``savepoint``: that of ``look``; nothing has changed since.
        """
        history: HistoryMark | None = None
        optimizer_state: OptimizerState | None = None
        controller, rollback = ControllerMark(self._controller), self._rollback
        self._shorter = None
        self._jumping = True
        try:
            history = HistoryMark(self.history)
            self._team.prepare()
            self._parameters.check_unchanged(self._model)
            optimizer_state = OptimizerState(self._optimizer, copy=False)
            savepoint = savepoint or self._savepoint()
            if self._controller is not None:
                self._controller.stateful = bool(self._optimizer.state)
                if self._average is not None:  # one begun anew has as much noise to leave out
                    self._controller.spare = max(0.0, self._average.lead)
            record = self._attempt(probe, savepoint, look)
            treatment = self._treatment(record, optimizer_state)
            if record.accepted:
                self._team.settle(self._parameters)
                self._rollback = self._settle(savepoint, optimizer_state, treatment, record)
            self.history.add_jump(record)
        except BaseException:
            self._rollback = rollback
            if savepoint is not None and optimizer_state is not None and history is not None:
                restore_all(savepoint, optimizer_state, history, controller)
            raise
        finally:
            self._jumping = False
        self._restart_window()
        if record.horizon > 0:  # not to the mean of some snapshots, which lies where they do
            self._forget_average()
        if self._moments is not None and self._moments.trouble:
            self._notices.warn(
                "moments",
                f'optimizer_state="predict" keeps the optimizer\'s state: {self._moments.trouble}',
            )
        self._warn_of_missing_batches()
        self._warn_of_newcomers()
        if record.accepted:
            self._idle = self.config.cooldown
        self._notices.log(record, self.history.counters, self.loggers)
        if not record.accepted and record.kind not in self._quiet:
            self._notices.warn(record.kind, f"jump refused at step {record.step}: {record.reason}")
        return record

    def _attempt(self, probe: Probe | None, savepoint: Savepoint, look: Look | None) -> JumpRecord:
        """Fit, predict, guard; leaves the accepted weights, or the old ones, in the model."""
        step = self.history.counters.optimizer_steps
        attempt = self._new_attempt()
        self._guard.recalibration = self._recalibration()
        seconds_fit = 0.0
        started = perf_counter()
        try:
            operator = attempt.fit()
            seconds_fit = perf_counter() - started
            self.operator = operator
            verdict, seconds_predict = attempt.judge(operator, probe, savepoint, look)
        except FitFailure as failure:
            known = {} if look is None else probed(look)
            verdict = refused("operator", str(failure), **known)
            return JumpRecord(step=step, **vars(verdict))
        return JumpRecord(
            step=step,
            **vars(verdict),
            seconds_fit=seconds_fit,
            seconds_predict=seconds_predict,
            rank=Spread.of(operator.rank.cpu().numpy()),
            hindcast_error=Spread.of(operator.hindcast_error.cpu().numpy()),
        )

    def _new_attempt(self) -> Attempt:
        return Attempt(
            self.config,
            self._parameters,
            self._partition,
            self._snapshots,
            self._lag,
            self._guard,
            self._controller,
            self._team,
        )

    def _recalibration(self) -> Recalibration | None:
        """How statistics of batches are computed anew, where that is wanted and can be done."""
        wanted = self.config.batch_norm == "recalibrate"
        forward = self._forward() if wanted and normalizing_modules(self._model) else None
        return None if forward is None else Recalibration(self._model, forward)

    def _forward(self) -> Callable[[], object] | None:
        """Passes batches through the model, where there are any."""
        return self.recalibrate

    def _treatment(self, record: JumpRecord, state: OptimizerState) -> str:
        """What is to become of the optimizer's state: as configured, or as the controller says."""
        wanted = self.config.optimizer_state
        if self._controller is None:
            return wanted
        self._controller.scaled = state.scaled
        chosen = self._controller.leave(record.accepted, wanted == "auto" and state.resettable)
        return chosen if wanted == "auto" else wanted

    def _settle(
        self,
        savepoint: Savepoint,
        optimizer_state: OptimizerState,
        treatment: str,
        record: JumpRecord,
    ) -> ReturnPoint:
        """Do to the optimizer's state what is to be done; return how to undo the jump."""
        if treatment == "reset":
            optimizer_state.reset(self._parameters.parameters)
            return ReturnPoint(savepoint.weights, savepoint.buffers, optimizer_state)
        if treatment == "predict" and self._moments is not None:
            horizon = (record.horizon + self._lag) / self._snapshots.stride
            options = self.config.fit_options
            entries = self._moments.predicted(self._partition, options, horizon, record.horizon)
            if entries:
                optimizer_state.replace(entries)
                return ReturnPoint(savepoint.weights, savepoint.buffers, optimizer_state)
        # Further steps will write to the state in place, so the way back needs copies.
        kept = OptimizerState(self._optimizer, copy=True)
        if treatment == "decay":
            optimizer_state.decay(self._parameters.parameters)
        return ReturnPoint(savepoint.weights, savepoint.buffers, kept)

    def _refuse_reentry(self) -> None:
        if self._showing:
            raise ConfigError(
                "averaged: the mean of the weights is in the model to be evaluated or saved, not "
                "to be trained; leave the `with trainer.averaged():` block first"
            )
        if self._jumping:
            raise ConfigError(
                "probe: it took an optimizer step or called the trainer in the middle of a jump; a "
                "probe must only compute the loss, for example probe=lambda: loss_fn(model(x), y)"
            )

    @property
    def _quiet(self) -> tuple[str, ...]:
        """Refusals that go without saying: more where the next attempt will be another one."""
        return ("no_gain",) if self._controller is None else ("no_gain", "still")

    def _warn_of_missing_batches(self) -> None:
        wanted = self.config.batch_norm == "recalibrate"
        if wanted and normalizing_modules(self._model) and self._forward() is None:
            self._notices.warn(
                "batch_norm",
                'batch_norm="recalibrate" keeps the statistics: no batches are there to compute '
                "them from; set trainer.recalibrate = lambda: model(x), or train with fit()",
            )

    def _warn_of_newcomers(self) -> None:
        """Say it once if the optimizer now steps a parameter that jumps do not know."""
        own = {id(p) for p in self._parameters.parameters}
        stepped = [p for group in self._optimizer.param_groups for p in group["params"]]
        new = [p for p in stepped if p.requires_grad and p.numel() > 0 and id(p) not in own]
        if new:
            names = {id(p): name for name, p in self._model.named_parameters()}
            name = names.get(id(new[0]), "(not in the model)")
            self._notices.warn(
                "newcomer",
                f"parameter '{name}' is trained now but was not when the KoopmanTrainer was made, "
                "and is left out of its jumps; make a new KoopmanTrainer to include it",
            )

    def _restart_window(self) -> None:
        schedule = self._schedule
        if schedule is None:
            self._snapshots.clear()
        else:
            self._rows.clear(stride=schedule.stride, average=schedule.average)
        if self._moments is not None:
            self._moments.clear()
        self._weight_watch.forget()
        self._relaxation.turning()
        self._lag = 0
        self._broken = 0

    def _start_over(self) -> None:
        """What comes is not to be compared with what was."""
        if self._controller is not None:
            self._controller.forget()
        if self._rehearsal is not None:
            self._rehearsal.forget()
        self._shorter = None
        if self._average is not None:
            self._average.start_over()
        self._restart_window()

    def _forget_average(self) -> None:
        if self._average is not None:
            self._average.forget()

    def _break(self, cause: int) -> None:
        """The window is broken: begin anew, now or, with others, when all have come to its end."""
        self._broken = max(self._broken, cause)
        if self._team.size == 1:
            self._split(cause)

    def _split_where_written(self) -> None:
        """Between two steps: begin anew if weights were written since the last one."""
        if not self._step_watch.began and self._weight_watch.compare():
            self._break(_WRITTEN)
        self._split_where_broken()

    def _split_where_broken(self) -> bool:
        """Begin anew if any process saw the window break; True if so."""
        seen = _WRITTEN if self._weight_watch.broken() else self._broken
        cause = self._team.highest(seen)
        if cause:
            self._split(cause)
        return cause > 0

    def _split(self, cause: int) -> None:
        if cause == _WRITTEN:
            self._split_at_write()
        else:
            self._split_window()

    def _split_window(self) -> None:
        self._start_over()
        self.history.counters.windows_split += 1

    def _split_at_write(self) -> None:
        self._split_window()
        self._notices.warn(
            "written",
            "the weights were changed between two optimizer steps, after step "
            f"{self.history.counters.optimizer_steps}: expected those that the step left, got "
            "others (an average swapped in, a checkpoint loaded); the window began anew. Where "
            "this belongs to each step, call after_step() after it instead of attach()",
        )

    def _savepoint(self) -> Savepoint:
        self._team.prepare()
        parameters = self._parameters
        return Savepoint(self._model, parameters.tensors, parameters.device)

    def _reserve(self) -> None:
        """Make room for the window on all processes, or on none."""
        snapshots = self._snapshots
        if self._team.size > 1 and not self._reserved and isinstance(snapshots, SnapshotBuffer):
            self._team.agreed(snapshots.reserve, MemoryError)
            self._reserved = True

    def _new_controller(self) -> Controller | None:
        config = self.config
        if not config.adaptive:
            return None
        relax = config.relax and self._relaxation.possible
        return Controller(config.snapshots, config.max_horizon, relax=relax)

    def _new_average(self) -> WeightAverage | None:
        wanted = self.config.weight_average and self.config.adaptive
        return WeightAverage(self._parameters) if wanted else None

    def _new_moments(self, snapshots: SnapshotBuffer | MomentBuffer) -> MomentWindow | None:
        """Where the optimizer's state is predicted, its window beside that of the weights.

        Raises:
            ConfigError: it cannot be.
        """
        if self.config.optimizer_state != "predict":
            return None
        if self._parameters.dtype.is_complex or self._team.size > 1:
            what = "complex parameters" if self._team.size == 1 else "several processes"
            raise ConfigError(
                f'optimizer_state: "predict" is made for real parameters in one process, got '
                f'{what}; choose "auto", "keep", "reset" or "decay"'
            )
        assert isinstance(snapshots, SnapshotBuffer)
        return MomentWindow(self._optimizer, snapshots, self.config.max_bytes)

    def _undo_state(self) -> dict[str, Any] | None:
        """What an automatic undo needs to come, saved while it may come."""
        on_trial = self._controller is not None and self._controller.on_trial
        point = self._rollback if self._shorter is None else self._shorter
        return point.state_dict() if on_trial and point is not None else None

    def _return_point(self) -> ReturnPoint:
        """The weights, buffers and optimizer state of now."""
        return ReturnPoint(
            Weights(self._parameters.tensors),
            Buffers(self._model),
            OptimizerState(self._optimizer, copy=True),
        )

    def _checked(
        self, state: Any
    ) -> tuple[
        SnapshotBuffer | MomentBuffer,
        MomentWindow | None,
        Controller | None,
        WeightAverage | None,
        Rehearsal | None,
        ReturnPoint | None,
        _training_state.TrainingState,
    ]:
        """What is in ``state``, if it fits; nothing is changed."""
        self._refuse_reentry()
        controller = self._new_controller()
        rehearsal = Rehearsal(self.config) if self.config.dry_run else None
        schedule = _schedule(controller, rehearsal)
        snapshots = new_buffer(self.config, self._parameters, self._partition, schedule)
        loaded = _training_state.unpack(state, self.config, self._parameters, snapshots, schedule)
        moments = self._new_moments(snapshots)
        if moments is not None:
            moments.load_state_dict(state["moments"])
        average = self._new_average()
        if average is not None:
            average.load_state_dict(state.get("average"), elsewhere=loaded.elsewhere)
        undo = None
        if state["undo"] is not None and not loaded.elsewhere:
            undo = self._return_point()
            undo.load_state_dict(state["undo"])
        self._parameters.check_unchanged(self._model)
        return snapshots, moments, controller, average, rehearsal, undo, loaded

    def spread_window(self) -> dict[str, Tensor] | None:
        """The recorded window as distributed tensors that can be loaded into, where it is sharded.

        None where each process has all of it.
        """
        return self._team.spread(self._snapshots, self.config)

    def with_own_window(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state that was saved beside :meth:`spread_window`, joined by what is in that now.

        Raises:
            CheckpointError: it was saved otherwise.
        """
        kept = state.get("snapshots")
        if not isinstance(kept, dict) or "count" not in kept:
            raise CheckpointError(
                "state: expected one of sharded parameters, got one without; load it into a model "
                "that is not sharded"
            )
        rows, sums = self._rows.reserve()
        summed = kept["summed"] and sums is not None
        own = {key: value for key, value in kept.items() if key not in ("count", "summed")}
        own["lengths"] = list(self._parameters.lengths)
        own["snapshots"] = rows[: kept["count"]]
        own["sum"] = sums if summed else None
        return {**state, "snapshots": own, "layout": self._parameters.layout}

    def _adopt(
        self,
        snapshots: SnapshotBuffer | MomentBuffer,
        moments: MomentWindow | None,
        controller: Controller | None,
        average: WeightAverage | None,
        rehearsal: Rehearsal | None,
        undo: ReturnPoint | None,
        loaded: _training_state.TrainingState,
    ) -> None:
        self.history = loaded.history
        self.operator = None
        self._snapshots = snapshots
        self._moments = moments
        self._controller = controller
        self._average = average
        self._rehearsal = rehearsal
        self._clock = Clock()
        self._enabled = loaded.enabled
        self._idle = loaded.idle
        self._lag = loaded.lag
        self._guard.needs_gradients = loaded.needs_gradients
        self._notices.warned = loaded.warned
        rising = controller is not None and controller.rising
        self._rollback, self._shorter = (None, undo) if rising else (undo, None)
        self._rate_watch.rates = loaded.rates
        self._rate_watch.largest = loaded.largest_rates
        self._weight_watch.noted = loaded.noted
        self._relaxation.increment = loaded.increment
        self._broken, self._reserved = 0, False
        if loaded.elsewhere:
            self._notices.warn(
                "elsewhere",
                "the state was saved by processes that held other parts of the parameters, so the "
                "window begins anew; save through koopfast.checkpoint.Stateful to take it along",
            )

    def _state(self) -> dict[str, Any]:
        """All that resuming needs."""
        return _training_state.pack(
            config=self.config,
            parameters=self._parameters,
            history=self.history,
            snapshots=self._snapshots,
            moments=None if self._moments is None else self._moments.state_dict(),
            enabled=self._enabled,
            idle=self._idle,
            lag=self._lag,
            needs_gradients=self._guard.needs_gradients,
            warned=self._notices.warned,
            rates=self._rate_watch.rates,
            largest_rates=self._rate_watch.largest,
            noted=self._weight_watch.noted,
            increment=self._relaxation.increment,
            average=None if self._average is None else self._average.state_dict(),
            schedule=self._schedule,
            undo=self._undo_state(),
        )


def _outside_inference() -> AbstractContextManager[object]:
    """Tensors made in inference mode could not be written to outside of it."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _schedule(controller: Controller | None, rehearsal: Rehearsal | None) -> Schedule | None:
    return rehearsal if rehearsal is not None and rehearsal.varies else controller
