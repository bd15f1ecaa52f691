# SPDX-License-Identifier: BSD-3-Clause
"""Koopman training around any optimizer: when to record, fit, jump and check."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from koopfast import _attach, _optimizer_checkpoint, _training_loop, _training_state
from koopfast._adaptive import Predictions
from koopfast._files import check_file_name, jsonable, write_whole
from koopfast._rank import is_first_rank
from koopfast._savepoint import (
    Buffers,
    OptimizerState,
    ReturnPoint,
    Savepoint,
    Weights,
    restore_all,
)
from koopfast._watch import RateWatch, StepWatch, WeightWatch
from koopfast.config import KoopmanConfig
from koopfast.controller import Controller, ControllerMark
from koopfast.errors import (
    ConfigError,
    KoopfastError,
    KoopmanWarning,
    ParameterChangedError,
)
from koopfast.guard import Guard, Look, Probe, Verdict
from koopfast.history import Counters, History, HistoryMark, JumpRecord, Spread
from koopfast.loggers import Logger, jump_values
from koopfast.moments import DEFAULT_MAX_BYTES, MomentBuffer
from koopfast.operator import KoopmanOperator
from koopfast.parameters import ParameterVector, trainable_parameters
from koopfast.snapshots import SnapshotBuffer

__all__ = ["KoopmanTrainer"]

# Candidates are predicted together up to this much memory. All eleven of a search fit for ten
# million float32 weights; for a billion, each row is formed alone and only if it is tried.
_CANDIDATE_BYTES = 512 * 2**20

_Result = TypeVar("_Result")


class KoopmanTrainer:
    """Koopman training of a model with any optimizer.

    Records the weights after optimizer steps. Each time ``window`` snapshots are together, it fits
    a linear operator to them, predicts the weights at several horizons, keeps the best of them if
    the probe's loss goes down and otherwise restores the weights bit for bit. Disabled, or before
    the first accepted jump, training is bit-identical to the plain optimizer.

    Args:
        model: the network, with its parameters where and as they will be trained.
        optimizer: steps those parameters; parameters that it does not hold are left alone.
        config: a :class:`~koopfast.KoopmanConfig`; None means the default one.
        **overrides: fields of the configuration to replace.

    Attributes:
        config: the configuration, overrides included.
        history: every jump and all counts (:class:`~koopfast.History`).
        operator: the last fitted :class:`~koopfast.KoopmanOperator` or None. Its eigenvalues
            stay good; its ``predict`` does so only until the next snapshot is recorded.
        loggers: told of every jump tried (:mod:`koopfast.loggers`); empty at first.

    A copy or a pickle of a trainer takes model and optimizer along and has no point to roll back
    to. If the trainer was attached so is the copy, but without the probe, which knows the
    original's model: set :attr:`probe` on the copy.

    Raises:
        ConfigError: an argument cannot work.
        UnsupportedParameterError: a parameter is of a kind that has no fit.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = KoopmanTrainer(model, optimizer, window=8, stride=1)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [3.0]])
        >>> loss = lambda: torch.nn.functional.mse_loss(model(x), y)
        >>> for _ in range(8):
        ...     optimizer.zero_grad()
        ...     loss().backward()
        ...     optimizer.step()
        ...     record = trainer.after_step(probe=loss)
        >>> record.accepted, record.loss_after < record.loss_before
        (True, True)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: KoopmanConfig | None = None,
        **overrides: Any,
    ) -> None:
        _check_arguments(model, optimizer, config)
        self._given_optimizer = optimizer
        optimizer = _attach.real_optimizer(optimizer)
        config = (config or KoopmanConfig()).replace(**overrides)
        if config.guard == "finite" and config.horizon == "search":
            raise ConfigError(
                'horizon: guard="finite" cannot choose among horizons, got "search"; pass the '
                'optimizer steps to jump, horizon=100 for example, or guard="probe"'
            )
        self.config = config
        self.history = History()
        self.operator: KoopmanOperator | None = None
        self.loggers: list[Logger] = []
        self._model = model
        self._optimizer = optimizer
        self._parameters = ParameterVector(trainable_parameters(model, optimizer))
        self._partition = config.partition_of(model, self._parameters)
        self._controller = self._new_controller()
        self._snapshots = self._new_buffer()
        self._weight_watch = WeightWatch(self._parameters)
        self._rate_watch = RateWatch(optimizer)
        self._step_watch = StepWatch(optimizer, self._before_step)
        self._guard = Guard(config.guard, config.probe_gradients)
        self._enabled = True
        self._idle = config.warmup  # optimizer steps before recording goes on
        self._lag = 0  # optimizer steps since the last snapshot
        self._since_begin, self._since_paid = _Since(), _Since()
        self._held = _training_loop.HeldBatches()
        self._warned: set[str] = set()
        self._rollback: ReturnPoint | None = None
        self._hook: RemovableHandle | None = None
        self._hook_probe: Probe | None = None
        self._skip_watch = _attach.SkipWatch(optimizer)
        self._travel: tuple[RemovableHandle, ...] = ()
        self._fitting = False
        self._jumping = False

    def __repr__(self) -> str:
        c = self.history.counters
        return (
            f"KoopmanTrainer({type(self._model).__name__}, {type(self._optimizer).__name__}, "
            f"n={self._parameters.n}, {c.optimizer_steps} optimizer steps, "
            f"{c.predicted_steps} predicted)"
        )

    @property
    def model(self) -> nn.Module:
        """The network, as given."""
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, as given: a wrapper is still wrapped."""
        return self._given_optimizer

    # Recording

    def after_step(self, probe: Probe | None = None) -> JumpRecord | None:
        """Count and record one optimizer step; call it after each ``optimizer.step()``.

        A call that no step came before (a ``GradScaler`` skipped it, gradients are still being
        accumulated) does nothing. A window begins anew when somebody else writes weights between
        two steps, or when a learning rate changes by more than a tenth from one to the next.

        Args:
            probe: returns the loss to judge a jump by, as a float or a tensor with one element,
                or a list of them, one for each of several batches: of three or more, a jump must
                lower the mean by twice its standard error. Losses of the same samples at every
                call are compared over time, which is what tells whether jumps pay; where the
                samples change, only what stands out of the noise counts. Called when the window is
                full, with the weights under trial in the model, and now and then before.
                What it disturbs (gradients, buffers, train/eval modes, global random streams) is
                put back after each call; of another network that it calls, nothing is, nor what
                it takes from an iterator. It must not step the optimizer. With ``guard="finite"``
                it is not needed.

        Returns:
            What became of the jump, if the window was full; otherwise None.

        Raises:
            ParameterChangedError: a parameter was resized, moved, cast, frozen or replaced.
            ConfigError: the probe cannot be called, returned no scalar or took an optimizer step,
                or the trainer is attached (the optimizer then makes this call).
            Exception: whatever the probe raises. In each case weights, gradients, buffers, random
                streams and optimizer state are as before the call and the window restarts.
        """
        if self._hook is not None:
            raise ConfigError(
                "after_step: the trainer is attached, so optimizer.step() makes this call; pass "
                "the probe to attach(probe=...), or detach() first"
            )
        _check_probe(probe)
        return self._after_step(probe)

    def attach(self, probe: Probe | None = None) -> None:
        """Let ``optimizer.step()`` call :meth:`after_step`, until :meth:`detach`.

        Once per step: also with gradient accumulation, closures and compiled steps, and not at all
        for a step that a ``GradScaler`` skipped. Of a wrapped optimizer (accelerate's, Lightning's)
        the one inside is meant.

        Args:
            probe: as for :meth:`after_step`; without one, the closure of ``step(closure)`` serves
                where there is one. It can be changed later through :attr:`probe`.

        Raises:
            ConfigError: the optimizer has no step post-hooks, this trainer or another one is
                attached to it already, or the probe cannot be called.
        """
        _check_probe(probe)
        if not _attach.runs_hooks(self._optimizer):
            raise ConfigError(
                f"optimizer: {type(self._optimizer).__name__} runs no step post-hooks (it was not "
                "made by torch.optim.Optimizer.__init__); call after_step() after each of its "
                "steps instead"
            )
        _attach.claim(self._optimizer, self)
        hook = _attach.undisturbed(self._after_hook)
        self._hook = self._optimizer.register_step_post_hook(hook)
        self._hook_probe = probe

    def detach(self) -> None:
        """Undo :meth:`attach`; without it, nothing happens."""
        if self._hook is not None:
            self._hook.remove()
            _attach.release(self._optimizer)
        self._hook = None
        self._hook_probe = None

    @property
    def probe(self) -> Probe | None:
        """What an attached trainer judges jumps by; None where there is none or it is detached.

        Raises:
            ConfigError: on setting something that cannot be called, or when not attached.
        """
        return self._hook_probe

    @probe.setter
    def probe(self, probe: Probe | None) -> None:
        _check_probe(probe)
        if self._hook is None:
            raise ConfigError(
                "probe: the trainer is not attached; call attach(probe=...), or give the probe to "
                "each after_step(probe=...)"
            )
        self._hook_probe = probe

    @property
    def enabled(self) -> bool:
        """False: steps are counted and nothing else is done. Switching off drops the window."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = bool(value)
        if not self._enabled:
            self._start_over()

    def _after_hook(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The optimizer has stepped; ``args`` and ``kwargs`` are those of its ``step()``."""
        if not self._fitting and not _attach.inside_another_step(self._optimizer):
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            self._after_step(self._hook_probe if self._hook_probe is not None else closure)

    def _before_step(self) -> None:
        """The optimizer is about to step: not from a probe, and from the weights it left."""
        self._refuse_reentry()
        if not self._step_watch.began and self._weight_watch.compare():
            self._split_at_write()

    def _after_step(self, probe: Probe | None) -> JumpRecord | None:
        self._refuse_reentry()
        if self._skip_watch.skipped:
            return None
        return self._or_restart(lambda: self._count_step(probe))

    def _or_restart(self, work: Callable[[], _Result]) -> _Result:
        """Do ``work``; should it fail, restart the window and put autograd's mode back."""
        with_gradients = torch.is_grad_enabled()
        try:
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

    def _count_step(self, probe: Probe | None) -> JumpRecord | None:
        if not self._step_watch.stepped():
            self._parameters.check_unchanged()
            return None
        counters = self.history.counters
        counters.optimizer_steps += 1
        if self._controller is not None:
            self._controller.step()
        rate_changed = self._rate_watch.changed()
        if not self._enabled:
            return None
        if self._idle > 0:
            self._idle -= 1
            return None
        if rate_changed and self._snapshots.begun:
            self._split_window()
        # On CUDA this is the time to enqueue the copy: waiting for it would slow training down.
        started = perf_counter()
        try:
            stored = self._snapshots.record()
        except MemoryError as error:
            self.enabled = False
            self._warn("no_room", f"{error}; this trainer switched itself off")
            return None
        self._lag = 0 if stored else self._lag + 1
        self._weight_watch.note()
        counters.seconds_record += perf_counter() - started
        if not self._snapshots.full:
            self._look_ahead(probe)
            return None
        if self._weight_watch.broken():
            self._split_at_write()
            return None
        if probe is None and self.config.guard == "probe":
            self._restart_window()
            self._warn(
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
            controller.look(self._look(controller, probe).loss, left)

    @property
    def _rows(self) -> SnapshotBuffer:
        """The snapshots where they are kept, as always under a controller."""
        assert isinstance(self._snapshots, SnapshotBuffer)
        return self._snapshots

    def _look(self, controller: Controller, probe: Probe) -> Look:
        """The loss now, outside of any jump."""
        self._jumping = True
        try:
            parameters = self._parameters
            savepoint = Savepoint(self._model, parameters.parameters, parameters.device)
            look = self._guard.look(savepoint, probe)
        finally:
            self._jumping = False
        controller.spend(1, len(look.parts))
        return look

    def _consider(self, controller: Controller, probe: Probe) -> JumpRecord | None:
        """The window is full: jump, only watch, or undo the jump before."""
        counters = self.history.counters
        if self.config.overhead is not None:
            controller.clock(*self._since_paid(counters), self.config.overhead)
        if controller.pause == 0 and controller.ready():
            look = self._look(controller, probe)
            decision = controller.arrive(look.loss)
            if controller.paid:
                self._since_paid = _Since(counters)
            self._estimate_gains(controller)
            if decision == "jump":
                return self._jump(probe, look)
            counters.probe_evaluations += 1
            counters.seconds_probe += look.seconds
            if decision == "undo" and self._rollback is not None:
                self._undo()
        self._idle, controller.pause = controller.pause, 0
        self._restart_window()
        return None

    def _estimate_gains(self, controller: Controller) -> None:
        """What jumps gained so far, at the pace at which ordinary steps were taken."""
        counters = self.history.counters
        spent, elapsed, steps = self._since_begin(counters)
        pace = (elapsed - spent) / max(1, steps)
        counters.evaluations_gained = controller.gained
        # What probes cost is in the evaluations already.
        other = _seconds(counters, "record", "fit", "predict")
        counters.seconds_gained = controller.gained * pace - other

    # Jumping

    def jump_now(self, probe: Probe | None = None) -> JumpRecord:
        """Fit what is recorded so far and try to jump; arguments and errors as :meth:`after_step`.

        Without ``probe``, the one given to :meth:`attach` is used. The window restarts.

        Raises:
            ConfigError: too few snapshots for a fit, or no probe though the guard needs one.
        """
        self._refuse_reentry()
        _check_probe(probe)
        probe = probe if probe is not None else self._hook_probe
        if probe is None and self.config.guard == "probe":
            raise ConfigError('probe: guard="probe" needs a callable that returns the loss')
        written = not self._step_watch.began and self._weight_watch.compare()
        if written or self._weight_watch.broken():
            self._split_at_write()
        least = self.config.least_snapshots
        if self._snapshots.count < least:
            raise ConfigError(
                f"jump_now: expected at least {least} recorded snapshots, got "
                f"{self._snapshots.count}; take more optimizer steps first"
            )
        return self._or_restart(lambda: self._jump(probe))

    def rollback(self) -> None:
        """Undo the last accepted jump and every step since.

        Weights, buffers and the optimizer's state become what they were at the moment of the
        jump, bit for bit; learning rates, random streams and counts stay. The window restarts.

        Raises:
            KoopfastError: no jump was accepted, or the last one was rolled back already.
            ParameterChangedError: a parameter is no longer what it was.
        """
        self._refuse_reentry()
        if self._rollback is None:
            raise KoopfastError(
                "rollback: there is no accepted jump to undo (one at most can be, and loading a "
                "state forgets it)"
            )
        self._undo()
        self._start_over()

    def _undo(self) -> None:
        assert self._rollback is not None
        self._parameters.check_unchanged(self._model)
        self._rollback.restore()
        self._rollback = None
        self.history.counters.jumps_rolled_back += 1

    def _jump(self, probe: Probe | None, look: Look | None = None) -> JumpRecord:
        """One attempt, all or nothing: an exception leaves everything as it was before it."""
        history: HistoryMark | None = None
        savepoint: Savepoint | None = None
        optimizer_state: OptimizerState | None = None
        controller = ControllerMark(self._controller)
        self._jumping = True
        try:
            history = HistoryMark(self.history)
            self._parameters.check_unchanged(self._model)
            optimizer_state = OptimizerState(self._optimizer, copy=False)
            savepoint = Savepoint(self._model, self._parameters.parameters, self._parameters.device)
            record = self._attempt(probe, savepoint, look)
            treatment = self._treatment(record, optimizer_state)
            rollback = self._rollback
            if record.accepted:
                rollback = self._settle(savepoint, optimizer_state, treatment)
            self.history.add_jump(record)
        except BaseException:
            if savepoint is not None and optimizer_state is not None and history is not None:
                restore_all(savepoint, optimizer_state, history, controller)
            raise
        finally:
            self._jumping = False
        self._rollback = rollback
        self._restart_window()
        self._warn_of_newcomers()
        if record.accepted:
            self._idle = self.config.cooldown
        self._log(record)
        if not record.accepted and record.kind not in self._quiet:
            self._warn(record.kind, f"jump refused at step {record.step}: {record.reason}")
        return record

    def _attempt(self, probe: Probe | None, savepoint: Savepoint, look: Look | None) -> JumpRecord:
        """Fit, predict, guard; leaves the accepted weights, or the old ones, in the model."""
        step = self.history.counters.optimizer_steps
        seconds_fit, probed = 0.0, {} if look is None else _probed(look)
        started = perf_counter()
        try:
            with _fit_failures():
                operator = self._fitted()
            seconds_fit = perf_counter() - started
            self.operator = operator
            verdict, seconds_predict = self._judge(operator, probe, savepoint, look)
        except _FitFailure as failure:
            verdict = _refused("operator", str(failure), **probed)
            return JumpRecord(step=step, **dataclasses.asdict(verdict))
        return JumpRecord(
            step=step,
            **dataclasses.asdict(verdict),
            seconds_fit=seconds_fit,
            seconds_predict=seconds_predict,
            rank=Spread.of(operator.rank.cpu().numpy()),
            hindcast_error=Spread.of(operator.hindcast_error.cpu().numpy()),
        )

    def _judge(
        self,
        operator: KoopmanOperator,
        probe: Probe | None,
        savepoint: Savepoint,
        look: Look | None,
    ) -> tuple[Verdict, float]:
        """What the guard says to the operator's predictions, and the seconds these took."""
        guard, parameters, controller = self._guard, self._parameters, self._controller
        averaged = controller is not None and self._rows.average
        verdict = _refusal(operator, **({} if look is None else _probed(look)))
        # Where nothing is predicted, the mean of the snapshots may still be better than the last.
        if verdict is not None and not (averaged and verdict.kind == "still"):
            return verdict, 0.0
        if controller is None or probe is None:
            horizons = _horizons(self.config, self._snapshots)
            in_order = _Predictions(self._snapshots, operator, horizons, self._lag)
            return guard.judge(parameters, in_order, savepoint, probe), in_order.seconds
        if look is None:
            look = guard.look(savepoint, probe)
            controller.spend(1, len(look.parts))
            controller.begin(look.loss)
        predictions = Predictions(
            self._rows, _unless_it_fails(operator), self._lag, _CANDIDATE_BYTES
        )
        search = predictions.search(controller.search(look.loss, averaged, still=operator.still))
        verdict = guard.judge_search(parameters, search, savepoint, probe, look, controller.worth)
        controller.spend(verdict.probe_evaluations - 1, len(look.parts))
        return verdict, predictions.seconds

    def _treatment(self, record: JumpRecord, state: OptimizerState) -> str:
        """What is to become of the optimizer's state: as configured, or as the controller says."""
        wanted = self.config.optimizer_state
        if self._controller is None:
            return wanted
        chosen = self._controller.leave(record.accepted, wanted == "auto" and state.resettable)
        return chosen if wanted == "auto" else wanted

    def _fitted(self) -> KoopmanOperator:
        options = self.config.fit_options
        if isinstance(self._snapshots, MomentBuffer):
            return self._snapshots.fit_with(options)
        return KoopmanOperator.fit(
            self._snapshots.snapshots, self._partition, **dataclasses.asdict(options)
        )

    def _settle(
        self, savepoint: Savepoint, optimizer_state: OptimizerState, treatment: str
    ) -> ReturnPoint:
        """Keep the optimizer's state or forget it; return how to undo the jump."""
        if treatment == "reset":
            optimizer_state.reset(self._parameters.parameters)
            return ReturnPoint(savepoint.weights, savepoint.buffers, optimizer_state)
        # Further steps will write to the state in place, so the way back needs copies.
        kept = OptimizerState(self._optimizer, copy=True)
        return ReturnPoint(savepoint.weights, savepoint.buffers, kept)

    def _refuse_reentry(self) -> None:
        if self._jumping:
            raise ConfigError(
                "probe: it took an optimizer step or called the trainer in the middle of a jump; a "
                "probe must only compute the loss, for example probe=lambda: loss_fn(model(x), y)"
            )

    @property
    def _quiet(self) -> tuple[str, ...]:
        """Refusals that go without saying: more where the next attempt will be another one."""
        return ("no_gain",) if self._controller is None else ("no_gain", "still")

    def _warn_of_newcomers(self) -> None:
        """Say it once if the optimizer now steps a parameter that jumps do not know."""
        own = {id(p) for p in self._parameters.parameters}
        names = {id(p): name for name, p in self._model.named_parameters()}
        stepped = [p for group in self._optimizer.param_groups for p in group["params"]]
        new = [p for p in stepped if p.requires_grad and p.numel() > 0 and id(p) not in own]
        if new:
            name = names.get(id(new[0]), "(not in the model)")
            self._warn(
                "newcomer",
                f"parameter '{name}' is trained now but was not when the KoopmanTrainer was made, "
                "and is left out of its jumps; make a new KoopmanTrainer to include it",
            )

    def _restart_window(self) -> None:
        controller = self._controller
        if controller is None:
            self._snapshots.clear()
        else:
            self._rows.clear(stride=controller.stride, average=controller.average)
        self._weight_watch.forget()
        self._lag = 0

    def _start_over(self) -> None:
        """What comes is not to be compared with what was."""
        if self._controller is not None:
            self._controller.forget()
        self._restart_window()

    def _split_window(self) -> None:
        self._start_over()
        self.history.counters.windows_split += 1

    def _split_at_write(self) -> None:
        self._split_window()
        self._warn(
            "written",
            "the weights were changed between two optimizer steps, after step "
            f"{self.history.counters.optimizer_steps}: expected those that the step left, got "
            "others (an average swapped in, a checkpoint loaded); the window began anew. Where "
            "this belongs to each step, call after_step() after it instead of attach()",
        )

    def _new_controller(self) -> Controller | None:
        config = self.config
        return Controller(config.snapshots, config.max_horizon) if config.adaptive else None

    def _new_buffer(self) -> SnapshotBuffer | MomentBuffer:
        config = self.config
        if self._parameters.dtype.is_complex:
            config.check_given("of complex parameters")
        if config.streaming:
            return MomentBuffer(
                self._parameters,
                self._partition,
                observables="increments" if config.increments else "state",
                delays=int(config.delays),
                stride=config.first_stride,
                average=config.average is True,
                capacity=config.snapshots,
                max_bytes=DEFAULT_MAX_BYTES if config.max_bytes is None else config.max_bytes,
            )
        window, adaptive = config.snapshots, self._controller is not None
        # A stride that sets itself may come to average, which takes a row more.
        stride = 2 if adaptive else config.first_stride
        average = adaptive or config.average is True
        buffer = SnapshotBuffer(self._parameters, window, stride=stride, average=average)
        needed, most = buffer.nbytes_needed, config.max_bytes
        if most is not None and needed > most:
            row = self._parameters.n * self._parameters.dtype.itemsize
            fits = window + (most - needed) // row
            fewer = f"record fewer snapshots (window={fits}) or "
            raise ConfigError(
                f"max_bytes: expected room for {window} snapshots of {self._parameters.n} "
                f"weights, {needed} bytes, got {most}; "
                f"{fewer if fits >= config.least_snapshots else ''}"
                "freeze parameters that need no prediction"
            )
        if self._controller is not None:
            buffer.clear(stride=self._controller.stride, average=self._controller.average)
        return buffer

    def _log(self, record: JumpRecord) -> None:
        if not self.loggers or not is_first_rank():
            return
        values = jump_values(record, self.history.counters)
        for logger in self.loggers:
            try:
                logger.log(values, record.step)
            except Exception as error:  # noqa: PERF203 - a few loggers, once a jump
                name, what = type(logger).__name__, type(error).__name__
                self._warn(f"logger {name}", f"{name}.log failed with {what}: {error}")

    def _warn(self, kind: str, message: str) -> None:
        """Warn, once for each kind; last of all, since a warning may be made an exception."""
        if kind not in self._warned:
            self._warned.add(kind)
            text = f"{message}; training goes on"
            warnings.warn(text, KoopmanWarning, stacklevel=_levels_to_caller())

    # The whole loop

    def fit(
        self,
        loader: Iterable[Any],
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        epochs: int = 1,
        validate: Callable[[nn.Module], Any] | None = None,
        progress: bool | None = None,
        max_steps: int | None = None,
    ) -> History:
        """Train: zero_grad, ``loss_fn(model(x), y)``, backward, step, jump now and then.

        Jumps are judged by the first three batches that this loader gave (they are kept on the
        model's device), each with its own loss: a jump must lower their mean by more than chance
        explains, and losses of different steps can be compared. With a stride that is set they
        are judged by the current batch.

        Args:
            loader: yields batches ``(x, y)``; tensors in them (in lists, tuples and dicts too)
                are moved to the model's device. Iterated once an epoch.
            loss_fn: takes the model's output and ``y``, returns a scalar tensor.
            epochs: passes over the loader.
            validate: called with the model after each epoch, with gradients enabled; returns a
                scalar, kept in ``history``. Train and eval modes are put back after it.
            progress: show a bar; None means if tqdm is installed, stderr is a terminal and this
                process is of rank 0.
            max_steps: stop after so many optimizer steps of this call.

        Returns:
            The trainer's history, with one more :class:`~koopfast.history.EpochRecord` an epoch.

        Raises:
            ConfigError: an argument cannot work, or a batch is not a pair.
            Exception: whatever model, loss, loader or ``validate`` raise; the trainer can go on.
        """
        if self._fitting:
            raise ConfigError("fit: already running in this trainer")
        self._fitting = True
        try:
            _training_loop.run(
                model=self._model,
                optimizer=self._given_optimizer,
                after_step=self._after_step,
                history=self.history,
                device=self._parameters.device,
                loader=loader,
                loss_fn=loss_fn,
                epochs=epochs,
                validate=validate,
                progress=progress,
                max_steps=max_steps,
                held=None if self._controller is None else self._held,
                new_batches=None if self._controller is None else self._controller.forget,
            )
        finally:
            self._fitting = False
        return self.history

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write the history to ``path``: ``.json`` as data, any other suffix as a page.

        The file appears whole or not at all; a symbolic link is followed.

        Returns:
            The path written.

        Raises:
            ConfigError: ``path`` is a folder, a device, a pipe or a socket.
            KoopfastError: a page needs matplotlib and jinja2, and one of them is not installed.
            OSError: the file cannot be written.
        """
        check_file_name(path)
        if Path(path).suffix == ".json":
            data = {"config": self.config.to_dict(), "history": self.history.to_dict()}
            text = json.dumps(jsonable(data), indent=1, allow_nan=False)
            return write_whole(path, f"{text}\n".encode())
        from koopfast.report import write_trainer_report

        return write_trainer_report(self.history, self.config, path, self.operator)

    # Saving and resuming

    def state_dict(self) -> dict[str, Any]:
        """The trainer's state as plain tensors, numbers and strings.

        Together with the states of model, optimizer and random streams it resumes in the middle
        of a window bit for bit. ``torch.load(weights_only=True)`` reads it. The point that
        :meth:`rollback` goes back to is part of it (and takes the room of weights and optimizer
        state) only where jumps are judged later and the last one is not judged yet.
        """
        return _training_state.pack(
            config=self.config,
            parameters=self._parameters,
            history=self.history,
            snapshots=self._snapshots,
            enabled=self._enabled,
            idle=self._idle,
            lag=self._lag,
            needs_gradients=self._guard.needs_gradients,
            warned=self._warned,
            rates=self._rate_watch.rates,
            noted=self._weight_watch.noted,
            controller=self._controller,
            undo=self._undo_state(),
        )

    def _undo_state(self) -> dict[str, Any] | None:
        """What an automatic undo needs to come, saved while it may come."""
        on_trial = self._controller is not None and self._controller.on_trial
        return self._rollback.state_dict() if on_trial and self._rollback is not None else None

    def _return_point(self) -> ReturnPoint:
        """The weights, buffers and optimizer state of now."""
        return ReturnPoint(
            Weights(self._parameters.parameters),
            Buffers(self._model),
            OptimizerState(self._optimizer, copy=True),
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`, after model and optimizer have loaded theirs.

        Raises:
            CheckpointError: the state is malformed or belongs to another configuration or other
                parameters (the message lists the differences). The trainer is left as it was.
        """
        self._adopt(*self._checked(state))

    def save_with_optimizer(self, active: bool = True) -> None:
        """Let this state travel in the optimizer's ``state_dict``, under the key ``"koopman"``.

        For frameworks that save and load the optimizer themselves. Loading an optimizer's state
        that carries none restarts the window. ``active=False`` ends it.

        Raises (from the optimizer's ``load_state_dict``):
            CheckpointError: as :meth:`load_state_dict`; the optimizer is left as it was too.
        """
        for handle in self._travel:
            handle.remove()
        self._travel = ()
        if active:
            self._travel = _optimizer_checkpoint.travel(
                self._optimizer,
                save=self.state_dict,
                check=lambda state: functools.partial(self._adopt, *self._checked(state)),
                without=self._start_over,
            )

    def _checked(
        self, state: Any
    ) -> tuple[
        SnapshotBuffer | MomentBuffer,
        Controller | None,
        ReturnPoint | None,
        _training_state.TrainingState,
    ]:
        """What is in ``state``, if it fits; nothing is changed."""
        self._refuse_reentry()
        snapshots, controller = self._new_buffer(), self._new_controller()
        loaded = _training_state.unpack(state, self.config, self._parameters, snapshots, controller)
        undo = None
        if state["undo"] is not None:
            undo = self._return_point()
            undo.load_state_dict(state["undo"])
        self._parameters.check_unchanged(self._model)
        return snapshots, controller, undo, loaded

    def _adopt(
        self,
        snapshots: SnapshotBuffer | MomentBuffer,
        controller: Controller | None,
        undo: ReturnPoint | None,
        loaded: _training_state.TrainingState,
    ) -> None:
        self.history = loaded.history
        self.operator = None
        self._snapshots = snapshots
        self._controller = controller
        self._since_begin, self._since_paid = _Since(), _Since()
        self._enabled = loaded.enabled
        self._idle = loaded.idle
        self._lag = loaded.lag
        self._guard.needs_gradients = loaded.needs_gradients
        self._warned = loaded.warned
        self._rollback = undo
        self._rate_watch.rates = loaded.rates
        self._weight_watch.noted = loaded.noted

    def __getstate__(self) -> dict[str, Any]:
        return {
            "model": self._model,
            "optimizer": self._given_optimizer,
            "config": self.config,
            "state": self.state_dict(),
            "attached": self._hook is not None,
            "travels": bool(self._travel),
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__init__(saved["model"], saved["optimizer"], saved["config"])  # type: ignore[misc]
        self.load_state_dict(saved["state"])
        if saved["attached"]:
            self.attach()
        self.save_with_optimizer(saved["travels"])


class _Predictions:
    """(horizon in optimizer steps, weights (n,)) one after the other, formed in groups on demand.

    Each group is new memory, so that a row stays good while the next group is formed.
    """

    def __init__(
        self,
        snapshots: SnapshotBuffer | MomentBuffer,
        operator: KoopmanOperator,
        horizons: Sequence[int],
        lag: int,
    ) -> None:
        self._operator = operator
        self._horizons = horizons
        self._lag = lag
        self._stride = snapshots.stride
        self._row_bytes = snapshots.vector.n * snapshots.vector.dtype.itemsize
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        size = max(1, _CANDIDATE_BYTES // self._row_bytes)
        for first in range(0, len(self._horizons), size):
            group = self._horizons[first : first + size]
            started = perf_counter()
            # Horizons count from now, the operator's powers from the last snapshot.
            with _fit_failures():
                rows = self._operator.predict([(h + self._lag) / self._stride for h in group])
            self.seconds += perf_counter() - started
            yield from zip(group, rows, strict=True)


class _Since:
    """Time, and what was spent on jumps, since a moment: by default that of the first question."""

    def __init__(self, counters: Counters | None = None) -> None:
        self._at, self._then = 0.0, Counters()
        self._begun = counters is not None
        if counters is not None:
            self._begin(counters)

    def __call__(self, counters: Counters) -> tuple[float, float, int]:
        """Seconds spent, seconds gone by and optimizer steps taken since then."""
        if not self._begun:
            self._begin(counters)
        stages = ("record", "fit", "predict", "probe")
        spent = _seconds(counters, *stages) - _seconds(self._then, *stages)
        steps = counters.optimizer_steps - self._then.optimizer_steps
        return spent, perf_counter() - self._at, steps

    def _begin(self, counters: Counters) -> None:
        self._at, self._then, self._begun = perf_counter(), dataclasses.replace(counters), True


def _seconds(counters: Counters, *stages: str) -> float:
    return float(sum(getattr(counters, f"seconds_{stage}") for stage in stages))


def _unless_it_fails(operator: KoopmanOperator) -> Callable[[list[float]], Tensor]:
    """The operator's predictions; where they fail, :class:`_FitFailure`."""

    def predict(horizons: list[float]) -> Tensor:
        with _fit_failures():
            return operator.predict(horizons)

    return predict


def _probed(look: Look) -> dict[str, Any]:
    """A look as the fields of a verdict."""
    return {"loss_before": look.loss, "probe_evaluations": 1, "seconds_probe": look.seconds}


def _horizons(config: KoopmanConfig, snapshots: SnapshotBuffer | MomentBuffer) -> list[int]:
    """Horizons to try, in optimizer steps: the fixed one, or ¼, ½, 1, 2, 4 … windows.

    A window spans the intervals between its snapshots. The longest horizon is
    ``max_horizon`` windows, whether or not it is a power of two.
    """
    if config.horizon != "search":
        return [config.horizon]
    span = (snapshots.count - 1) * snapshots.stride
    powers = range(-2, math.ceil(math.log2(config.max_horizon)) + 1)
    windows = [min(2.0**power, config.max_horizon) for power in powers]
    return sorted({max(1, round(span * factor)) for factor in windows})


def _refusal(operator: KoopmanOperator, **probed: Any) -> Verdict | None:
    """A verdict without a trial, where the operator has nothing to predict."""
    reason = operator.failure()
    if reason is None:
        return None
    return _refused("still" if operator.ok else "operator", reason, **probed)


def _refused(kind: str, reason: str, **probed: Any) -> Verdict:
    empty = {"loss_before": None, "loss_after": None, "candidates": ()}
    return Verdict(accepted=False, horizon=0, kind=kind, reason=reason, **{**empty, **probed})


class _FitFailure(Exception):
    """Fitting or predicting broke off; the message says why."""


@contextlib.contextmanager
def _fit_failures() -> Iterator[None]:
    """Tell errors of fit and prediction (no memory, say) from those of a probe."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = str(error).partition("\n")[0]
        raise _FitFailure(f"the fit failed: {type(error).__name__}: {message}") from error


def _check_arguments(model: Any, optimizer: Any, config: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
        raise ConfigError(
            f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    if config is not None and not isinstance(config, KoopmanConfig):
        raise ConfigError(
            f"config: expected a KoopmanConfig, got {type(config).__name__}; its fields can also "
            "be given by name, KoopmanTrainer(model, optimizer, window=16)"
        )


def _check_probe(probe: Any) -> None:
    if probe is not None and not callable(probe):
        raise ConfigError(
            f"probe: expected a callable that returns the loss, got {type(probe).__name__}; write "
            "probe=lambda: loss_fn(model(x), y)"
        )


def _levels_to_caller() -> int:
    """The ``stacklevel`` with which the caller's warning points out of this package."""
    package = os.path.dirname(__file__)
    frame = inspect.currentframe()
    frames = 0
    while frame is not None and frame.f_code.co_filename.startswith(package):
        frame, frames = frame.f_back, frames + 1
    return frames
