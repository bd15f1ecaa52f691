# SPDX-License-Identifier: BSD-3-Clause
"""Koopman training around any optimizer: when to record, fit, jump and check."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from koopfast import _attach, _optimizer_checkpoint, _training_loop
from koopfast._engine import Engine
from koopfast._files import check_file_name, jsonable, write_whole
from koopfast._team import ProcessGroup, local, portable
from koopfast.config import KoopmanConfig
from koopfast.errors import ConfigError, KoopfastError
from koopfast.guard import Probe, check_probe
from koopfast.history import History, JumpRecord

__all__ = ["KoopmanTrainer"]


class KoopmanTrainer(Engine):
    """Koopman training of a model with any optimizer.

    Records the weights after optimizer steps. Each time ``window`` snapshots are together, it fits
    a linear operator to them, predicts the weights at several horizons, keeps the best of them if
    the probe's loss goes down and otherwise restores the weights bit for bit. Disabled, or before
    the first accepted jump, training is bit-identical to the plain optimizer.

    Args:
        model: the network, with its parameters where and as they will be trained.
        optimizer: steps those parameters; parameters that it does not hold are left alone.
        config: a :class:`~koopfast.KoopmanConfig`; None means the default one.
        process_group: the processes of torch.distributed that train these weights with this one:
            each makes its trainer alike and takes the same steps, and all decide together. None
            finds them where ``model`` is in ``DistributedDataParallel`` or has sharded parameters
            (``fully_shard``, ``parallelize_module``). False: this process trains alone.
        **overrides: fields of the configuration to replace.

    Attributes:
        config: the configuration, overrides included.
        history: every jump and all counts (:class:`~koopfast.History`).
        operator: the last fitted :class:`~koopfast.KoopmanOperator` or None. Its eigenvalues
            stay good; its ``predict`` does so only until the next snapshot is recorded.
        loggers: told of every jump tried (:mod:`koopfast.loggers`); empty at first.
        recalibrate: with ``batch_norm="recalibrate"`` and your own loop, set this to what passes
            some batches through the model, ``lambda: [model(x) for x in batches]``. Where it is
            None, the batches serve that :meth:`fit` judges jumps by.

    A copy or a pickle of a trainer takes model and optimizer along and has no point to roll back
    to. If the trainer was attached so is the copy, but without the probe, which knows the
    original's model: set :attr:`probe` on the copy. Of process groups only that of all ranks can
    be taken along.

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
        *,
        process_group: ProcessGroup | Literal[False] | None = None,
        **overrides: Any,
    ) -> None:
        _check_arguments(model, optimizer, config)
        config = (config or KoopmanConfig()).replace(**overrides)
        super().__init__(model, optimizer, config, process_group)
        self._given_group = process_group
        self._held = _training_loop.HeldBatches()
        self._hook: RemovableHandle | None = None
        self._hook_probe: Probe | None = None
        self._held_probe: Probe | None = None  # of fit()
        self._travel: tuple[RemovableHandle, ...] = ()
        self._fitting = False

    def __repr__(self) -> str:
        c = self.history.counters
        return (
            f"KoopmanTrainer({type(self._model).__name__}, {type(self._optimizer).__name__}, "
            f"n={self._parameters.n}, {c.optimizer_steps} optimizer steps, "
            f"{c.predicted_steps} predicted)"
        )

    def _forward(self) -> Callable[[], object] | None:
        if self.recalibrate is not None:
            return self.recalibrate
        return self._held.forward(self._model)

    @property
    def model(self) -> nn.Module:
        """The network, as given."""
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, as given: a wrapper is still wrapped."""
        return self._given_optimizer

    @property
    def process_group(self) -> ProcessGroup | Literal[False] | None:
        """As given."""
        return self._given_group

    # Recording

    def after_step(self, probe: Probe | None = None) -> JumpRecord | None:
        """Count and record one optimizer step; call it after each ``optimizer.step()``.

        A call that no step came before (a ``GradScaler`` skipped it, gradients are still being
        accumulated) does nothing. A window begins anew when somebody else writes weights between
        two steps, or when a learning rate changes at once by more than a tenth of the largest that
        it had in the window.

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
        check_probe(probe)
        return self._after_step(probe)

    def attach(self, probe: Probe | None = None, *, replace: bool = False) -> None:
        """Let ``optimizer.step()`` call :meth:`after_step`, until :meth:`detach`.

        Once per step: also with gradient accumulation, closures and compiled steps, and not at all
        for a step that a ``GradScaler`` skipped. Of a wrapped optimizer (accelerate's, Lightning's)
        the one inside is meant.

        Args:
            probe: as for :meth:`after_step`; without one, the closure of ``step(closure)`` serves
                where there is one. It can be changed later through :attr:`probe`.
            replace: detach whoever is attached already; the optimizer keeps an attached trainer
                alive, so that the name of one may be lost (a cell of a notebook that runs again).

        Raises:
            ConfigError: the optimizer has no step post-hooks, this trainer or another one is
                attached to it already, or the probe cannot be called.
        """
        check_probe(probe)
        if not _attach.runs_hooks(self._optimizer):
            raise ConfigError(
                f"optimizer: {type(self._optimizer).__name__} runs no step post-hooks (it was not "
                "made by torch.optim.Optimizer.__init__); call after_step() after each of its "
                "steps instead"
            )
        other = _attach.owner_of(self._optimizer)
        if replace and isinstance(other, KoopmanTrainer):
            other.detach()
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
        check_probe(probe)
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
        self._enable(bool(value))

    def _after_hook(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The optimizer has stepped; ``args`` and ``kwargs`` are those of its ``step()``."""
        if not self._fitting and not _attach.inside_another_step(self._optimizer):
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            self._after_step(self._hook_probe if self._hook_probe is not None else closure)

    # Jumping

    def jump_now(self, probe: Probe | None = None) -> JumpRecord:
        """Fit what is recorded so far and try to jump; arguments and errors as :meth:`after_step`.

        Without ``probe``, the one given to :meth:`attach` is used. The window restarts.

        Raises:
            ConfigError: too few snapshots for a fit, or no probe though the guard needs one.
        """
        self._refuse_reentry()
        check_probe(probe)
        if self.config.dry_run:
            raise ConfigError(
                "jump_now: dry_run=True never jumps; look at history.outlook() or report()"
            )
        probe = probe if probe is not None else self._hook_probe
        if probe is None and self.config.guard == "probe":
            raise ConfigError('probe: guard="probe" needs a callable that returns the loss')
        self._split_where_written()
        least = self.config.least_snapshots
        if self._snapshots.count < least:
            raise ConfigError(
                f"jump_now: expected at least {least} recorded snapshots, got "
                f"{self._snapshots.count}; take more optimizer steps first"
            )
        return self._or_restart(lambda: self._jump(probe))

    @property
    def step_share(self) -> float:
        """Share of its way that the last optimizer step went, 1 for whole ones (see ``relax``)."""
        return self._relaxation.part

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

    # Evaluating

    def averaged(self, probe: Probe | None = None) -> AbstractContextManager[bool]:
        """The mean of the weights of the last twentieth of all steps, where its loss is lower.

        A rate that trains fast keeps the weights moving about where they would come to rest; their
        mean is nearer to it. Evaluate the network and save ``model.state_dict()`` in a ``with``
        block of this (to keep it in memory, copy it: its tensors are the model's own); no optimizer
        step is allowed there, nor a checkpoint to resume from. At its end weights and buffers
        become again what they were, bit for bit, also if others were loaded meanwhile, and training
        goes on as if it had not been. After a jump the mean begins anew. Of several processes all
        must come here.

        Args:
            probe: as for :meth:`after_step`; weights and mean are compared by it now. None takes
                the one given to :meth:`attach`, or the batches that :meth:`fit` judges by; without
                these the comparison goes by what probes said last in training.

        Returns:
            A context manager, whose value says whether the mean is in the model. It is not where
            its loss is not lower, and where none is kept: see ``weight_average`` of the
            configuration.

        Raises:
            ConfigError: the probe cannot be called or returned no scalar, or this block is in
                another one.
            ParameterChangedError: a parameter is no longer what it was.
            Exception: whatever the probe raises; then all is as before.

        Source: Polyak & Juditsky (1992); the memory that grows with the steps is the
        polynomial-decay averaging of Shamir & Zhang (ICML 2013).

        Example:
            >>> import copy
            >>> model = torch.nn.Linear(2, 1)
            >>> trainer = KoopmanTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1))
            >>> with trainer.averaged() as shown:
            ...     weights = copy.deepcopy(model.state_dict())
            >>> shown  # nothing was trained yet
            False
        """
        check_probe(probe)
        if probe is None:
            held = self._held_probe if self._held.any else None
            probe = self._hook_probe if self._hook_probe is not None else held
        return self._show_average(probe)

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
        self._refuse_reentry()
        if self._fitting:
            raise ConfigError("fit: already running in this trainer")
        self._fitting = True
        if self._controller is not None:
            self._held_probe = self._held.probe(self._model, loss_fn)
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
        return self._state()

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

    def __getstate__(self) -> dict[str, Any]:
        return {
            "model": self._model,
            "optimizer": self._given_optimizer,
            "config": self.config,
            "state": self.state_dict(),
            "attached": self._hook is not None,
            "travels": bool(self._travel),
            "process_group": portable(self.process_group),
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        group = local(saved["process_group"])
        self.__init__(  # type: ignore[misc]
            saved["model"], saved["optimizer"], saved["config"], process_group=group
        )
        self.load_state_dict(saved["state"])
        if saved["attached"]:
            self.attach()
        self.save_with_optimizer(saved["travels"])


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
