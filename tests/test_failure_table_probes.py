# SPDX-License-Identifier: BSD-3-Clause
"""The failure table, rows 17 and 18: probes, threads and forked workers.

Each test fails without its protection; docs/safety.md lists row, protection and test.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from koopfast import SnapshotBuffer
from test_failure_table import one_warning, watched
from training_runs import Run, assert_same, everything, noisy_run, smooth_run

pytestmark = pytest.mark.usefixtures("on_device")

# Row 17


def _raises(run: Run) -> Tensor:
    raise LookupError("the probe's own")


def _returns_nan(run: Run) -> float:
    run.loss()
    return float("nan")


def _leaves_gradients(run: Run) -> Tensor:
    loss = run.loss()
    loss.backward()
    return loss.detach() * 0


def _moves_the_rng(run: Run) -> float:
    torch.rand(7)
    random.random()
    np.random.random()  # noqa: NPY002 - the stream that users share
    torch.manual_seed(99)
    return 1.0


@pytest.mark.parametrize("probe", [_raises, _returns_nan, _leaves_gradients, _moves_the_rng])
def test_probe_that_raises_returns_nan_leaves_gradients_or_moves_the_rng(
    probe: Callable[[Run], Any],
) -> None:
    run = noisy_run("adam")
    trainer = watched(run)
    run.train(trainer, 5)
    run.step()
    before = everything(run)
    if probe is _raises:
        with pytest.raises(LookupError, match="the probe's own"):
            trainer.after_step(lambda: probe(run))
    elif probe is _returns_nan:
        with one_warning("jump refused at step 6: the loss before the jump is nan"):
            trainer.after_step(lambda: probe(run))
    else:
        trainer.after_step(lambda: probe(run))
    assert_same(everything(run), before)


def test_probe_that_moves_a_data_iterator() -> None:
    """A probe may go through its own loader: the order of the training data is what it was."""
    data = torch.utils.data.TensorDataset(torch.arange(12.0))

    def order(probed: bool) -> list[float]:
        run = smooth_run()
        trainer = watched(run, window=3)
        loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
        seen = []
        torch.manual_seed(3)
        for _ in range(4):
            for (batch,) in loader:
                seen += batch.tolist()
                run.step()
                trainer.after_step(
                    (lambda: sum(float(b.sum()) for (b,) in loader)) if probed else lambda: 1.0
                )
        assert trainer.history.counters.probe_evaluations > 0
        return seen

    assert order(probed=True) == order(probed=False)


# Row 18


def test_training_in_threads() -> None:
    """Four runs at once end as each alone: trainers share nothing."""

    def train(seed: int, ends: dict[int, list[Tensor]]) -> None:
        run = runs[seed]
        run.train(watched(run, window=6 + seed, partition="node"), 60)
        ends[seed] = run.weights()

    alone: dict[int, list[Tensor]] = {}
    runs = [smooth_run("adam") for _ in range(4)]
    for seed in range(4):
        train(seed, alone)
    together: dict[int, list[Tensor]] = {}
    runs = [smooth_run("adam") for _ in range(4)]
    threads = [threading.Thread(target=train, args=(seed, together)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same([together[seed] for seed in range(4)], [alone[seed] for seed in range(4)])


FORKED = """
import os, sys, torch
from koopfast import KoopmanOperator, KoopmanTrainer, MomentBuffer, Partition
from training_runs import assert_same, smooth_run
def predicted():
    snapshots = torch.linspace(1, 2, 60, dtype=torch.float64).view(6, 10).exp()
    parts = Partition.from_segments([[(0, 5)], [(5, 5)]], 10)
    single = Partition.from_segments([[(i, 1)] for i in range(10)], 10)
    uneven = Partition.from_segments([[(0, 3)], [(3, 7)]], 10)
    buffer = MomentBuffer(None, parts, dtype=torch.float64)
    for row in snapshots:
        buffer.record(row)
    fits = [KoopmanOperator.fit(snapshots, p, rank=1) for p in (parts, single, uneven)]
    fits += [KoopmanOperator.fit(snapshots, parts), buffer.fit(rank=1)]
    return [fit.predict([1, 2.5]) for fit in fits]
def train():
    run = smooth_run("adam")
    run.train(KoopmanTrainer(run.model, run.optimizer, window=6, stride=1, partition="node"), 20)
    return run.weights()
torch.set_num_threads(2)
expected = predicted(), train()
child = os.fork()
if child == 0:
    prediction = predicted()  # with as many threads as torch is told to use
    torch.set_num_threads(1)  # without this torch's own layers wait for ever
    assert_same((prediction, train()), expected)
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_training_in_forked_workers() -> None:
    """The parent's OpenMP threads are not there in its child, and must not be waited for."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        try:
            _, errors = parent.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(parent.pid, signal.SIGKILL)
            raise
    assert parent.returncode == 7, errors


def test_a_buffer_says_beforehand_what_it_will_take() -> None:
    for average in (False, True):
        model = nn.Linear(3, 2, dtype=torch.bfloat16)
        buffer = SnapshotBuffer(model, capacity=4, stride=2, average=average)
        needed = buffer.nbytes_needed
        buffer.record()
        buffer.record()
        assert buffer.nbytes == needed
