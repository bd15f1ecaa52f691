# SPDX-License-Identifier: BSD-3-Clause
"""The same stretch of training twice: predicted by the operator, and done by backpropagation.

Dogra and Redman, arXiv 2006.02361, compare the two times; here the error is measured beside them.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor
from tqdm import tqdm

from koopfast.config import KoopmanConfig
from koopfast.demo.race import OPTIMIZERS, Checkpoint
from koopfast.demo.tasks import Task
from koopfast.operator import KoopmanOperator
from koopfast.parameters import ParameterVector, trainable_parameters
from koopfast.snapshots import SnapshotBuffer

__all__ = ["StretchResult", "measure_stretch"]


@dataclass(frozen=True)
class StretchResult:
    """One stretch of a plain run, `steps` long. Times in seconds, medians over the repeats.

    Attributes:
        optimizer: name.
        first: optimizer steps done before the watched window.
        watched: steps of the window that the operator is fitted on.
        steps: steps predicted, and done.
        backprop: time of doing them.
        record, fit, predict: time of recording the window, of fitting the operator, and of
            predicting the weights and writing them into the model.
        error: |predicted - true| / |true - now|, all weights together, Euclidean.
        score_now, score_predicted, score_true: the task's score before the stretch, at the
            predicted weights and at the true ones.
        now, predicted, true: the weights (n,).
        operator: the one that predicted.
    """

    optimizer: str
    first: int
    watched: int
    steps: int
    backprop: float
    record: float
    fit: float
    predict: float
    error: float
    score_now: float
    score_predicted: float
    score_true: float
    now: Tensor
    predicted: Tensor
    true: Tensor
    operator: KoopmanOperator

    @property
    def ratio(self) -> float:
        """How many times faster than backpropagation, fit included."""
        return self.backprop / (self.fit + self.predict)

    @property
    def ratio_predict(self) -> float:
        """How many times faster, with the operator already fitted."""
        return self.backprop / self.predict


class _Replay:
    """The plain run again, from a checkpoint."""

    def __init__(self, task: Task, optimizer: str, middle: Checkpoint) -> None:
        self.task = task
        self.model = task.build(0)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.vector = ParameterVector(trainable_parameters(self.model))
        self.restore(middle)

    def restore(self, state: Checkpoint) -> None:
        self.model.load_state_dict(state.model)
        # Loading keeps tensors of the given dict, which the optimizer then changes in place.
        self.optimizer.load_state_dict(copy.deepcopy(state.optimizer))
        self.step = state.step

    def checkpoint(self) -> Checkpoint:
        state = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
        return Checkpoint(self.step, *state)

    def train(self, count: int) -> float:
        """Seconds for this many optimizer steps."""
        begin = perf_counter()
        for step in range(self.step, self.step + count):
            self.optimizer.zero_grad()
            self.task.loss(self.model, step).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self.step += count
        return perf_counter() - begin


def measure_stretch(
    task: Task, optimizer: str, middle: Checkpoint, config: KoopmanConfig, *, repeats: int = 7
) -> StretchResult:
    """Watch one window from `middle` on, then race operator against backpropagation.

    The stretch is as long as the window that was watched. Both sides are repeated in turns after a
    first turn that is not counted, and both begin from the same weights each time.
    """
    replay = _Replay(task, optimizer, middle)
    # A stretch has one window, which nothing adapts.
    config = config.replace(stride=4) if config.stride == "auto" else config
    stride = config.first_stride
    watched = config.snapshots * stride
    buffer = SnapshotBuffer(replay.vector, config.snapshots, stride, config.average is True)
    recording = 0.0
    for _ in range(watched):
        replay.train(1)
        begin = perf_counter()
        buffer.record()
        recording += perf_counter() - begin
    start = replay.checkpoint()
    now, score_now = replay.vector.read(), task.score(replay.model)
    partition = config.partition_of(replay.model, replay.vector)
    options = dataclasses.asdict(config.fit_options)

    backprop, fit, predict = [], [], []
    label = f"{task.name:<10} {optimizer:<8} stretch"
    for repeat in tqdm(range(repeats + 1), desc=label, unit="turn", leave=False):
        replay.restore(start)
        done = replay.train(watched)
        true, score_true = replay.vector.read(), task.score(replay.model)

        replay.restore(start)
        begin = perf_counter()
        operator = KoopmanOperator.fit(buffer.snapshots, partition, **options)
        fitted = perf_counter()
        predicted = operator.predict(watched / stride)[0]
        replay.vector.write(predicted)
        end = perf_counter()
        if repeat:
            backprop.append(done)
            fit.append(fitted - begin)
            predict.append(end - fitted)
    moved = torch.linalg.vector_norm((true - now).double())
    missed = torch.linalg.vector_norm((predicted - true).double())
    return StretchResult(
        optimizer=optimizer,
        first=middle.step,
        watched=watched,
        steps=watched,
        backprop=statistics.median(backprop),
        record=recording,
        fit=statistics.median(fit),
        predict=statistics.median(predict),
        error=float(missed / moved),
        score_now=score_now,
        score_predicted=task.score(replay.model),
        score_true=score_true,
        now=now,
        predicted=predicted.clone(),
        true=true,
        operator=operator,
    )
