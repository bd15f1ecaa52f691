# SPDX-License-Identifier: BSD-3-Clause
"""What the trainer does, when, and with which operator: one frozen dataclass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from koopfast._checks import check_choice, did_you_mean, listed, whole
from koopfast._options import FitOptions
from koopfast.errors import ConfigError
from koopfast.parameters import ParameterVector
from koopfast.partition import PARTITION_KINDS, Partition

__all__ = ["KoopmanConfig"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "guard": ("probe", "finite"),
    "batch_norm": ("keep", "recalibrate"),
    "optimizer_state": ("auto", "keep", "reset", "decay", "predict"),
}
_LEAST: dict[str, int] = {
    "max_horizon": 1,
    "warmup": 0,
    "cooldown": 0,
}
_LEAST_OR_AUTO: dict[str, int] = {"window": 2, "stride": 1}
# Short windows follow a dynamics that changes as training goes on, and let jumps come often; where
# nothing adapts, longer ones with a stride are what most trainings need.
_ADAPTIVE_WINDOW = 12
_FIXED_WINDOW, _FIXED_STRIDE = 32, 4
_REHEARSED_STRIDES = (1, 4, 16)


@dataclass(frozen=True, kw_only=True)
class KoopmanConfig(FitOptions):
    """How a :class:`~koopfast.KoopmanTrainer` records, fits, jumps and checks.

    Three units are kept apart: optimizer *steps*, recorded *snapshots* (one every ``stride``
    steps) and *windows* (the ``(window - 1) * stride`` steps from the first snapshot to the last).

    Attributes:
        partition: which weights are predicted together: "network", "layer", "node", "quasi_node",
            "weight", or a :class:`~koopfast.Partition` of your own.
        node_size: most weights in a block; for "quasi_node", and only there.
        observables: "state" fits a linear map of the weights (the paper's), "increments" one of
            their differences between snapshots, which is the same as an affine map. Weights that
            did not move in the window stay where they are with either.
        delays: how many consecutive observables are stacked; more than one for methods with
            momentum, whose memory is longer than one step.
        block_average: how many consecutive snapshots are averaged in the fit; against noise.
            ``observables``, ``delays``, ``block_average`` and ``estimator`` can each be "auto":
            chosen for every block from its snapshots (see :meth:`koopfast.KoopmanOperator.fit`).
        window: snapshots in a fit; "auto" is 12 where the stride sets itself and 32 otherwise, or
            as many as ``delays`` need.
        stride: optimizer steps from one snapshot to the next. "auto" sets itself as training goes
            on, together with the horizon and with when to try at all
            (:mod:`koopfast.controller`); that needs ``horizon="search"`` and ``guard="probe"``
            and snapshots that are kept, and is 4 without them.
        average: store the mean over each ``stride`` steps instead of the last one; against noise.
            "auto" does so where the stride sets itself and is above 1.
        streaming: sum up the moments of the snapshots as they arrive instead of keeping the
            snapshots (:class:`~koopfast.MomentBuffer`): for long windows of small blocks, such as
            the paper's nodes.
        rank: directions kept in a block: a number, "auto" (chosen from the data by hindcast), a
            float between 0 and 1 (as many as hold that fraction of the energy), "gavish-donoho"
            (the optimal threshold against noise), or None (all whose singular value lies above
            the tolerance).
        tolerance: singular values up to this fraction of the largest are dropped; None takes what
            the precision of ``method`` allows.
        method: "gram" (fast; sees singular values down to about 1e-7 of the largest) or "qr"
            (slower; down to about 1e-13).
        ridge: Tikhonov regularisation, as a multiple of the largest squared singular value.
        symmetric: fit a self-adjoint operator (gradient flow near a minimum is).
        estimator: "least_squares", or against noise in the snapshots "forward_backward" or
            "total_least_squares".
        unstable: what is done with eigenvalues outside the unit circle: "clip" moves them onto it,
            "slow" leaves slow growth (what is "auto" only), "damp" reflects them inside, "keep"
            leaves them.
        horizon: optimizer steps to jump, or "search": try ¼, ½, 1, 2, 4, … windows and keep what
            the guard likes best (with a stride that sets itself, beginning at the horizon that was
            best last time; and beside the operator's prediction the mean of the window's newer half
            and straight on from its first snapshot through its last).
        max_horizon: longest jump that "search" tries, in windows.
        guard: "probe" accepts a jump only if the probe's loss goes down, "finite" if all predicted
            weights are finite numbers.
        probe_gradients: whether the probe runs with gradients enabled; "auto" tries without and
            repeats with them if autograd asks for them.
        warmup: optimizer steps before the first recording.
        cooldown: optimizer steps after a jump before recording begins again.
        optimizer_state: after a jump, "keep" the optimizer's state, "reset" it, "decay" its momenta
            (they are halved) or "predict" it: what the optimizer has of each weight is recorded
            too, each number in as much memory as the weight, and extrapolated by the operator of
            the weights; steps are counted on. A state that is no set of tensors shaped as the
            parameters is kept, warned of once. "auto" goes by what training gained after keeping
            and after resetting it, where the stride sets itself and the optimizer is one of
            torch's, and keeps it otherwise.
        batch_norm: running statistics of batch normalisation at weights under trial: "keep" those
            of the weights before, or "recalibrate" them from the batches that ``fit()`` judges by,
            or those that ``recalibrate`` of the trainer passes through the model (as Izmailov et
            al. 2018, section 3.2, and ``torch.optim.swa_utils.update_bn`` do for means of
            weights). A candidate then costs a forward pass more for each of these batches.
        relax: where consecutive optimizer steps cancel each other, as at a learning rate near the
            largest that does not diverge, go only half of each (a quarter, ... at least a
            sixteenth): what is left is the slow motion, which is predicted further. Whole steps
            come back when that does not pay. Only where the stride sets itself, and with float32
            or float64 parameters. The rate in the optimizer stays as it is; a trainer that is
            switched off leaves steps whole.
        weight_average: follow the mean of the weights of the last twentieth of all steps, for
            ``with trainer.averaged()``: where the noise of batches is what limits the loss, the
            mean has a lower one, and a jump must gain more than that. Takes the room of the weights
            once more, on their device. Only where the stride sets itself (so not with a horizon,
            ``guard="finite"``, ``streaming`` or ``dry_run``).
        overhead: share of the training time that recording, fitting, predicting and probing may
            take beyond what jumps are seen to save, by the clock, beside the bound by counts that
            always holds; the first tenth of a second is free, and what interrupts training (a
            validation, a checkpoint) does not count as its time. As long as jumps have saved
            nothing, what it takes to look on at each step is part of it, of very short steps up to
            a half. None leaves the clock out, for runs that repeat to the last bit on a machine so
            slow or a network so small that the bound is reached. Only where the stride sets itself.
        max_bytes: most bytes that the snapshots of a window may take; None for no limit.
        offload: keep the snapshots of a model on a CUDA device in pinned host memory, and fit
            there; they are copied while training goes on.
        dry_run: never jump: predict, wait until training is there, and note in
            ``history.forecasts`` how right it was (:meth:`koopfast.History.outlook`). Weights under
            trial are in the model only while the probe runs. A stride that would set itself is 1,
            4 and 16 in turn.

    Raises:
        ConfigError: a field has a value that cannot work; the message names it.

    Example:
        >>> KoopmanConfig(partition="node", window=16).replace(stride=2).window
        16
    """

    partition: str | Partition = "layer"
    node_size: int | None = None
    window: int | Literal["auto"] = "auto"
    stride: int | Literal["auto"] = "auto"
    average: bool | Literal["auto"] = "auto"
    streaming: bool = False
    horizon: int | Literal["search"] = "search"
    max_horizon: int = 256
    guard: Literal["probe", "finite"] = "probe"
    probe_gradients: bool | Literal["auto"] = "auto"
    warmup: int = 0
    cooldown: int = 0
    optimizer_state: Literal["auto", "keep", "reset", "decay", "predict"] = "auto"
    batch_norm: Literal["keep", "recalibrate"] = "keep"
    relax: bool = True
    weight_average: bool = True
    overhead: float | None = 0.05
    max_bytes: int | None = None
    offload: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, known in _CHOICES.items():
            check_choice(field, getattr(self, field), known)
        for field, least in _LEAST.items():
            self._store(field, whole(field, getattr(self, field), least))
        for field, least in _LEAST_OR_AUTO.items():
            value = getattr(self, field)
            if value != "auto":
                self._store(field, whole(field, value, least, ', or "auto"'))
        if self.average != "auto" and not isinstance(self.average, bool):
            raise ConfigError(f'average: expected True, False or "auto", got {self.average!r}')
        if self.overhead is not None:
            given: Any = self.overhead
            if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= 1:
                raise ConfigError(
                    "overhead: expected a share of the training time above 0 and up to 1, or None, "
                    f"got {given!r}"
                )
        for field in ("streaming", "offload", "dry_run", "relax", "weight_average"):
            if not isinstance(getattr(self, field), bool):
                raise ConfigError(f"{field}: expected True or False, got {getattr(self, field)!r}")
        if self.streaming and self.offload:
            raise ConfigError(
                "offload: with streaming=True no snapshots are kept, got True; leave out one"
            )
        if self.streaming:
            self.check_given("with streaming=True")
        if self.streaming and self.method != "gram":
            raise ConfigError(
                f'method: streaming=True keeps Gram matrices, so only "gram" goes with it, got '
                f"{self.method!r}"
            )
        if self.probe_gradients != "auto" and not isinstance(self.probe_gradients, bool):
            raise ConfigError(
                f'probe_gradients: expected True, False or "auto", got {self.probe_gradients!r}'
            )
        if self.horizon != "search":
            hint = ' optimizer steps, or "search"'
            self._store("horizon", whole("horizon", self.horizon, 1, hint))
        if self.max_bytes is not None:
            self._store("max_bytes", whole("max_bytes", self.max_bytes, 1, " bytes, or None"))
        self._check_partition()
        self._check_window()
        if self.batch_norm == "recalibrate" and self.guard != "probe":
            raise ConfigError(
                'batch_norm: "recalibrate" is for weights that a probe tries, got '
                f"guard={self.guard!r}; choose one of the two differently"
            )
        if self.optimizer_state == "predict":
            self._check_predicts()

    @classmethod
    def paper(
        cls,
        horizon: int,
        partition: str | Partition = "node",
        *,
        window: int = 100,
        warmup: int = 0,
        node_size: int | None = None,
    ) -> KoopmanConfig:
        """Algorithm 1 of Dogra & Redman (NeurIPS 2020, arXiv 2006.02361) and nothing added.

        The weights themselves are the observables, every step is recorded, all directions are
        kept, eigenvalues are left as they are, and every jump is taken if it is finite. (As under
        any configuration, weights that did not move in the window stay where they are.)

        Args:
            horizon: optimizer steps to jump (the paper's T).
            partition: as the field; "node" is the paper's node-wise Koopman operator.
            window: optimizer steps to learn from (the paper's t2 - t1).
            warmup: optimizer steps before that (the paper's t1).
            node_size: as the field.

        Raises:
            ConfigError: ``horizon`` is not a number of steps, or another value cannot work.

        Example:
            >>> KoopmanConfig.paper(500, window=200).observables
            'state'
        """
        return cls(
            partition=partition,
            node_size=node_size,
            observables="state",
            window=window,
            stride=1,
            average=False,
            rank=None,
            method="qr",  # a pseudo-inverse by SVD, as the paper's
            unstable="keep",
            horizon=whole("horizon", horizon, 1, " optimizer steps"),
            guard="finite",
            warmup=warmup,
            optimizer_state="keep",
        )

    def replace(self, **overrides: Any) -> KoopmanConfig:
        """A copy with some fields changed, checked anew.

        Raises:
            ConfigError: a name is not a field, or a value cannot work.
        """
        _check_fields(overrides)
        return dataclasses.replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """The fields as numbers, strings, lists and (for a large Partition) tensors.

        What comes can be saved with ``torch.save`` and loaded with ``weights_only=True``.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if isinstance(self.partition, Partition):
            fields["partition"] = self.partition.to_dict()
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> KoopmanConfig:
        """The configuration that :meth:`to_dict` wrote; fields that are missing get their default.

        Raises:
            ConfigError: a name is not a field, or a value cannot work.
        """
        _check_fields(fields)
        values = dict(fields)
        if isinstance(values.get("partition"), Mapping):
            values["partition"] = Partition.from_dict(values["partition"])
        return cls(**values)

    @property
    def adaptive(self) -> bool:
        """Whether stride, horizon and the moments to jump set themselves."""
        sets_itself = self.stride == "auto" and self.horizon == "search"
        kept = not self.streaming and not self.dry_run
        return sets_itself and self.guard == "probe" and kept

    @property
    def rehearsed_strides(self) -> tuple[int, ...]:
        """Strides that a dry run takes in turn."""
        if self.dry_run and self.stride == "auto" and not self.streaming:
            return _REHEARSED_STRIDES
        return (self.first_stride,)

    @property
    def snapshots(self) -> int:
        """Snapshots in a window, "auto" resolved."""
        if self.window != "auto":
            return self.window
        short = self.adaptive or len(self.rehearsed_strides) > 1
        return max(self.least_snapshots, _ADAPTIVE_WINDOW if short else _FIXED_WINDOW)

    @property
    def first_stride(self) -> int:
        """Optimizer steps from one snapshot to the next in the first window, "auto" resolved."""
        if self.stride != "auto":
            return self.stride
        return 1 if self.adaptive else _FIXED_STRIDE

    @functools.cached_property
    def fit_options(self) -> FitOptions:
        """The fields that concern the operator."""
        return FitOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(FitOptions)})

    def partition_of(self, model: nn.Module, parameters: ParameterVector) -> Partition:
        """The blocks of ``parameters``, a part of or all of the model's.

        Raises:
            ConfigError: the Partition given as ``partition`` is of another number of weights.
        """
        if isinstance(self.partition, str):
            return Partition.of(self.partition, model, size=self.node_size, parameters=parameters)
        if self.partition.n != parameters.total:
            raise ConfigError(
                f"partition: expected one of {parameters.total} weights, as the model has, got "
                f"one of {self.partition.n}; make it with Partition.node(model) or the like, after "
                "freezing what is to be frozen"
            )
        return self.partition

    def _store(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def _check_partition(self) -> None:
        if not isinstance(self.partition, Partition):
            if not isinstance(self.partition, str):
                raise ConfigError(
                    f"partition: expected one of {listed(PARTITION_KINDS)} or a Partition, "
                    f"got {type(self.partition).__name__}"
                )
            check_choice("partition", self.partition, PARTITION_KINDS)
        if self.partition == "quasi_node":
            if self.node_size is None:
                raise ConfigError(
                    'node_size: partition="quasi_node" needs the most weights that a block may '
                    "have, got None; pass for example node_size=16"
                )
            self._store("node_size", whole("node_size", self.node_size, 1))
        elif self.node_size is not None:
            raise ConfigError(
                f'node_size: only partition="quasi_node" takes it, got {self.node_size!r} with '
                f"partition={self.partition!r}; leave it out or change the partition"
            )

    def _check_predicts(self) -> None:
        for field, value in (("streaming", True), ("method", "qr"), ("partition", "weight")):
            if getattr(self, field) == value:
                raise ConfigError(
                    'optimizer_state: "predict" combines recorded states as the snapshots of the '
                    f"weights are combined, which {field}={value!r} does not tell; change one"
                )

    def _check_window(self) -> None:
        least = self.least_snapshots
        if self.window != "auto" and self.window < least:
            raise ConfigError(
                f'window: expected at least {least} snapshots for observables="{self.observables}" '
                f"with delays={self.delays}, got {self.window}; take more snapshots or fewer delays"
            )


def _check_fields(names: Iterable[str]) -> None:
    known = tuple(f.name for f in dataclasses.fields(KoopmanConfig))
    for name in names:
        if name not in known:
            raise ConfigError(
                f"unknown field {name!r}{did_you_mean(name, known)}; "
                f"KoopmanConfig has {', '.join(known)}"
            )
