# SPDX-License-Identifier: BSD-3-Clause
"""Koopman training around any optimizer: when to record, fit, jump and check."""

from __future__ import annotations

import dataclasses
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

from koopfast import _training_loop, _training_state
from koopfast._files import check_file_name, write_whole
from koopfast._savepoint import Buffers, OptimizerState, Savepoint, Weights, restore_all
from koopfast.config import KoopmanConfig
from koopfast.errors import ConfigError, KoopfastError, KoopmanWarning
from koopfast.guard import Guard, Probe, Verdict
from koopfast.history import History, HistoryMark, JumpRecord, Spread
from koopfast.moments import MomentBuffer
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

    A copy or a pickle of a trainer takes model and optimizer along, is not attached and has no
    point to roll back to.

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
        config = (config or KoopmanConfig()).replace(**overrides)
        if config.guard == "finite" and config.horizon == "search":
            raise ConfigError(
                'horizon: guard="finite" cannot choose among horizons, got "search"; pass the '
                'optimizer steps to jump, horizon=100 for example, or guard="probe"'
            )
        self.config = config
        self.history = History()
        self.operator: KoopmanOperator | None = None
        self._model = model
        self._optimizer = optimizer
        self._parameters = ParameterVector(trainable_parameters(model, optimizer))
        self._partition = config.partition_of(model, self._parameters)
        self._snapshots = self._new_buffer()
        self._guard = Guard(config.guard, config.probe_gradients)
        self._enabled = True
        self._idle = config.warmup  # optimizer steps before recording goes on
        self._lag = 0  # optimizer steps since the last snapshot
        self._warned: set[str] = set()
        self._rollback: tuple[Weights, Buffers, OptimizerState] | None = None
        self._hook: RemovableHandle | None = None
        self._hook_probe: Probe | None = None
        self._fitting = False
        self._jumping = False

    def __repr__(self) -> str:
        c = self.history.counters
        return (
            f"KoopmanTrainer({type(self._model).__name__}, {type(self._optimizer).__name__}, "
            f"n={self._parameters.n}, {c.optimizer_steps} optimizer steps, "
            f"{c.predicted_steps} predicted)"
        )

    # Recording

    def after_step(self, probe: Probe | None = None) -> JumpRecord | None:
        """Count and record one optimizer step; call it after each ``optimizer.step()``.

        Args:
            probe: returns the loss to judge a jump by, as a float or a tensor with one element;
                called only when the window is full, with the weights under trial in the model.
                What it disturbs (gradients, buffers, train/eval modes, global random streams) is
                put back after each call; of another network that it calls, nothing is. It must
                not step the optimizer. With ``guard="finite"`` it is not needed.

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
        """Let ``optimizer.step()`` call :meth:`after_step`; a second call replaces the probe.

        Raises:
            ConfigError: the optimizer has no step post-hooks, or the probe cannot be called.
        """
        _check_probe(probe)
        if self._hook is None:
            if not hasattr(self._optimizer, "register_step_post_hook"):
                raise ConfigError(
                    f"optimizer: {type(self._optimizer).__name__} has no register_step_post_hook; "
                    "call after_step() after each of its steps instead"
                )
            self._hook = self._optimizer.register_step_post_hook(self._after_hook)
        self._hook_probe = probe

    def detach(self) -> None:
        """Undo :meth:`attach`; without it, nothing happens."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._hook_probe = None

    @property
    def enabled(self) -> bool:
        """False: steps are counted and nothing else is done. Switching off drops the window."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = bool(value)
        if not self._enabled:
            self._restart_window()

    def _after_hook(self, *_: Any) -> None:
        if not self._fitting:
            self._after_step(self._hook_probe)

    def _after_step(self, probe: Probe | None) -> JumpRecord | None:
        self._refuse_reentry()
        return self._or_restart(lambda: self._count_step(probe))

    def _or_restart(self, work: Callable[[], _Result]) -> _Result:
        """Do ``work``; should it fail, restart the window and put autograd's mode back."""
        with_gradients = torch.is_grad_enabled()
        try:
            return work()
        except BaseException:
            # An interrupt may strike inside a switch of that mode and leave it switched.
            torch.set_grad_enabled(with_gradients)
            self._restart_window()
            raise

    def _count_step(self, probe: Probe | None) -> JumpRecord | None:
        counters = self.history.counters
        counters.optimizer_steps += 1
        if not self._enabled:
            return None
        if self._idle > 0:
            self._idle -= 1
            return None
        # On CUDA this is the time to enqueue the copy: waiting for it would slow training down.
        started = perf_counter()
        stored = self._snapshots.record()
        self._lag = 0 if stored else self._lag + 1
        counters.seconds_record += perf_counter() - started
        if not self._snapshots.full:
            return None
        if probe is None and self.config.guard == "probe":
            self._restart_window()
            self._warn(
                "no_probe",
                'no jump: guard="probe" needs a loss to judge by; pass probe=lambda: loss to '
                'after_step or attach, or configure guard="finite" with a fixed horizon',
            )
            return None
        return self._jump(probe)

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
        self._parameters.check_unchanged(self._model)
        restore_all(*self._rollback)
        self._rollback = None
        self.history.counters.jumps_rolled_back += 1
        self._restart_window()

    def _jump(self, probe: Probe | None) -> JumpRecord:
        """One attempt, all or nothing: an exception leaves everything as it was before it."""
        history: HistoryMark | None = None
        savepoint: Savepoint | None = None
        optimizer_state: OptimizerState | None = None
        step_guard: RemovableHandle | None = None
        self._jumping = True
        try:
            history = HistoryMark(self.history)
            self._parameters.check_unchanged(self._model)
            if hasattr(self._optimizer, "register_step_pre_hook"):
                # A step of the probe's would write to the optimizer's state in place.
                step_guard = self._optimizer.register_step_pre_hook(
                    lambda *_: self._refuse_reentry()
                )
            optimizer_state = OptimizerState(self._optimizer, copy=False)
            savepoint = Savepoint(self._model, self._parameters.parameters, self._parameters.device)
            record = self._attempt(probe, savepoint)
            rollback = self._rollback
            if record.accepted:
                rollback = self._settle(savepoint, optimizer_state)
            self.history.add_jump(record)
        except BaseException:
            if savepoint is not None and optimizer_state is not None and history is not None:
                restore_all(savepoint, optimizer_state, history)
            raise
        finally:
            self._jumping = False
            if step_guard is not None:
                step_guard.remove()
        self._rollback = rollback
        self._restart_window()
        self._warn_of_newcomers()
        if record.accepted:
            self._idle = self.config.cooldown
        elif record.kind != "no_gain":
            self._warn(record.kind, f"jump refused at step {record.step}: {record.reason}")
        return record

    def _attempt(self, probe: Probe | None, savepoint: Savepoint) -> JumpRecord:
        """Fit, predict, guard; leaves the accepted weights, or the old ones, in the model."""
        config = self.config
        horizons = _horizons(config, self._snapshots.count)
        started = perf_counter()
        operator = self._fitted()
        seconds_fit = perf_counter() - started
        self.operator = operator
        predictions = _Predictions(self._snapshots, operator, horizons, self._lag)
        verdict = _refusal(operator)
        if verdict is None:
            verdict = self._guard.judge(self._parameters, predictions, savepoint, probe)
        return JumpRecord(
            step=self.history.counters.optimizer_steps,
            **dataclasses.asdict(verdict),
            seconds_fit=seconds_fit,
            seconds_predict=predictions.seconds,
            rank=Spread.of(operator.rank.cpu().numpy()),
            hindcast_error=Spread.of(operator.hindcast_error.cpu().numpy()),
        )

    def _fitted(self) -> KoopmanOperator:
        options = self.config.fit_options
        if isinstance(self._snapshots, MomentBuffer):
            return self._snapshots.fit_with(options)
        return KoopmanOperator.fit(
            self._snapshots.snapshots, self._partition, **dataclasses.asdict(options)
        )

    def _settle(
        self, savepoint: Savepoint, optimizer_state: OptimizerState
    ) -> tuple[Weights, Buffers, OptimizerState]:
        """Do to the optimizer's state what the configuration says; return how to undo the jump."""
        if self.config.optimizer_state == "reset":
            optimizer_state.reset(self._parameters.parameters)
            return savepoint.weights, savepoint.buffers, optimizer_state
        # Further steps will write to the state in place, so the way back needs copies.
        kept = OptimizerState(self._optimizer, copy=True)
        return savepoint.weights, savepoint.buffers, kept

    def _refuse_reentry(self) -> None:
        if self._jumping:
            raise ConfigError(
                "probe: it took an optimizer step or called the trainer in the middle of a jump; a "
                "probe must only compute the loss, for example probe=lambda: loss_fn(model(x), y)"
            )

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
        self._snapshots.clear()
        self._lag = 0

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
                stride=config.stride,
                average=config.average,
                capacity=config.window,
            )
        return SnapshotBuffer(
            self._parameters, config.window, stride=config.stride, average=config.average
        )

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

        The probe is the loss of the current batch.

        Args:
            loader: yields batches ``(x, y)``; tensors in them (in lists, tuples and dicts too)
                are moved to the model's device. Iterated once an epoch.
            loss_fn: takes the model's output and ``y``, returns a scalar tensor.
            epochs: passes over the loader.
            validate: called with the model after each epoch, with gradients enabled; returns a
                scalar, kept in ``history``. Train and eval modes are put back after it.
            progress: show a bar; None means if tqdm is installed and stderr is a terminal.
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
                optimizer=self._optimizer,
                after_step=self._after_step,
                history=self.history,
                device=self._parameters.device,
                loader=loader,
                loss_fn=loss_fn,
                epochs=epochs,
                validate=validate,
                progress=progress,
                max_steps=max_steps,
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
            text = json.dumps(_jsonable(data), indent=1, allow_nan=False)
            return write_whole(path, f"{text}\n".encode())
        from koopfast.report import write_trainer_report

        return write_trainer_report(self.history, self.config, path, self.operator)

    # Saving and resuming

    def state_dict(self) -> dict[str, Any]:
        """The trainer's state as plain tensors, numbers and strings.

        Together with the states of model, optimizer and random streams it resumes in the middle
        of a window bit for bit. ``torch.load(weights_only=True)`` reads it. The point that
        :meth:`rollback` goes back to is not part of it.
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
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`, after model and optimizer have loaded theirs.

        Raises:
            CheckpointError: the state is malformed or belongs to another configuration or other
                parameters (the message lists the differences). The trainer is left as it was.
        """
        self._refuse_reentry()
        snapshots = self._new_buffer()
        loaded = _training_state.unpack(state, self.config, self._parameters, snapshots)
        self._parameters.check_unchanged(self._model)
        self.history = loaded.history
        self.operator = None
        self._snapshots = snapshots
        self._enabled = loaded.enabled
        self._idle = loaded.idle
        self._lag = loaded.lag
        self._guard.needs_gradients = loaded.needs_gradients
        self._warned = loaded.warned
        self._rollback = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            "model": self._model,
            "optimizer": self._optimizer,
            "config": self.config,
            "state": self.state_dict(),
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__init__(saved["model"], saved["optimizer"], saved["config"])  # type: ignore[misc]
        self.load_state_dict(saved["state"])


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
            rows = self._operator.predict([(h + self._lag) / self._stride for h in group])
            self.seconds += perf_counter() - started
            yield from zip(group, rows, strict=True)


def _horizons(config: KoopmanConfig, count: int) -> list[int]:
    """Horizons to try, in optimizer steps: the fixed one, or ¼, ½, 1, 2, 4 … windows.

    A window spans the (count - 1) intervals between its snapshots. The longest horizon is
    ``max_horizon`` windows, whether or not it is a power of two.
    """
    if config.horizon != "search":
        return [config.horizon]
    span = (count - 1) * config.stride
    powers = range(-2, math.ceil(math.log2(config.max_horizon)) + 1)
    windows = [min(2.0**power, config.max_horizon) for power in powers]
    return sorted({max(1, round(span * factor)) for factor in windows})


def _refusal(operator: KoopmanOperator) -> Verdict | None:
    """A verdict without a trial, where the operator has nothing to predict."""
    reason = operator.failure()
    if reason is None:
        return None
    return Verdict(False, 0, None, None, (), "still" if operator.ok else "operator", reason)


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


def _jsonable(value: Any) -> Any:
    """JSON has neither tensors nor NaN and infinity: lists and strings stand for them."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
