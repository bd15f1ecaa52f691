# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from integration_runs import FAST, data, example, network, weights

pytest.importorskip("skorch")


def net(*callbacks: Any) -> Any:
    """A net with the Koopman callback, and others after it."""
    from skorch import NeuralNetRegressor

    from koopfast.integrations import SkorchKoopman

    return NeuralNetRegressor(
        network,
        optimizer=torch.optim.Adam,
        lr=1e-2,
        train_split=None,
        verbose=0,
        iterator_train__shuffle=False,
        callbacks=[("koopman", SkorchKoopman(**FAST)), *callbacks],
    )


def koopman(net: Any) -> Any:
    return dict(net.callbacks_)["koopman"].trainer


def test_the_example_jumps() -> None:
    trainer = koopman(example("skorch_callback.py")["net"])
    assert trainer.history.counters.jumps_accepted > 0


def test_resumed_from_a_pickle_in_mid_window_the_run_is_the_same() -> None:
    whole = net().partial_fit(*data(), epochs=9)
    resumed = pickle.loads(pickle.dumps(whole))
    for one in (whole, resumed):
        one.partial_fit(*data(), epochs=21)
        assert [jump.step for jump in koopman(one).history.jumps] == [12, 24]
    assert torch.equal(weights(resumed.module_), weights(whole.module_))


def test_resumed_by_skorchs_checkpoint_in_mid_window_the_run_is_the_same(tmp_path: Path) -> None:
    from skorch.callbacks import Checkpoint, LoadInitState

    saving = Checkpoint(dirname=str(tmp_path), monitor=lambda net: len(net.history) == 9)
    whole = net(("saving", saving)).partial_fit(*data(), epochs=30)

    resumed = net(("loading", LoadInitState(Checkpoint(dirname=str(tmp_path)))))
    resumed.partial_fit(*data(), epochs=21)
    assert [jump.step for jump in koopman(resumed).history.jumps] == [12, 24]
    assert torch.equal(weights(resumed.module_), weights(whole.module_))


def test_it_can_be_cloned_and_its_fields_set() -> None:
    from sklearn.base import clone

    twin = clone(net()).set_params(callbacks__koopman__window=5)
    twin.fit(*data())
    assert koopman(twin).config.window == 5
    assert koopman(twin).config.stride == 2
