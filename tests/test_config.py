# SPDX-License-Identifier: BSD-3-Clause
"""The configuration: its checks, the paper's preset, and the way through a checkpoint."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from koopfast import ConfigError, KoopmanConfig, Partition


def test_the_defaults_pass_their_own_checks() -> None:
    config = KoopmanConfig()
    assert (config.partition, config.observables, config.horizon) == (
        "layer",
        "increments",
        "search",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 1}, 'window: expected an integer of 2 or more, or "auto", got 1'),
        ({"window": 2}, "window: expected at least 3 snapshots for observables="),
        ({"delays": 31, "window": 32}, "at least 33 snapshots .* delays=31, got 32"),
        ({"stride": 0}, 'stride: expected an integer of 1 or more, or "auto", got 0'),
        ({"stride": True}, 'stride: expected an integer of 1 or more, or "auto", got True'),
        ({"delays": 1.5}, "delays: expected an integer"),
        ({"warmup": -1}, "warmup: expected an integer of 0 or more, got -1"),
        ({"cooldown": None}, "cooldown: expected an integer of 0 or more, got None"),
        ({"max_horizon": 0}, "max_horizon: expected an integer of 1 or more"),
        ({"partition": "nodes"}, 'one of "network", .* got \'nodes\'; did you mean "node"'),
        ({"partition": 3}, "partition: expected .* or a Partition, got int"),
        ({"partition": "quasi_node"}, "node_size: .* got None; pass for example node_size=16"),
        ({"partition": "quasi_node", "node_size": 0}, "node_size: expected an integer of 1"),
        ({"node_size": 4}, 'node_size: only partition="quasi_node" takes it, got 4'),
        ({"observables": "states"}, 'did you mean "state"'),
        ({"method": "svd"}, 'method: expected one of "gram", "qr", got \'svd\''),
        ({"unstable": "clipped"}, 'did you mean "clip"'),
        ({"guard": None}, 'guard: expected one of "probe", "finite", got None'),
        ({"optimizer_state": "drop"}, "optimizer_state: expected one of"),
        ({"rank": 0}, 'rank: expected an integer of 1 or more, a .* "auto", .* or None, got 0'),
        ({"rank": 1.0}, "rank: .* a fraction of the energy between 0 and 1, .* got 1.0"),
        ({"rank": "all"}, "rank: expected an integer"),
        ({"horizon": -5}, 'horizon: .* 1 or more optimizer steps, or "search", got -5'),
        ({"tolerance": 1.0}, "tolerance: expected a fraction .* got 1.0"),
        ({"tolerance": float("nan")}, "tolerance: expected a fraction .* got nan"),
        ({"average": "yes"}, 'average: expected True, False or "auto", got'),
        ({"probe_gradients": "yes"}, "probe_gradients: expected True, False or .* got 'yes'"),
        ({"ridge": -1e-3}, "ridge: expected a finite multiple .* at least 0, got -0.001"),
        ({"ridge": float("inf")}, "ridge: .* got inf"),
        ({"estimator": "tls"}, "estimator: expected one of .* got 'tls'"),
        ({"symmetric": True, "estimator": "forward_backward"}, "estimator: .*symmetric=True.* got"),
        ({"ridge": 0.1, "estimator": "forward_backward"}, "ridge: expected 0 .* got 0.1"),
        ({"symmetric": 1}, "symmetric: expected True or False, got 1"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KoopmanConfig(**fields)


def test_a_bad_value_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="window"):
        KoopmanConfig(window=0)


def test_two_snapshots_are_enough_for_states() -> None:
    assert KoopmanConfig(window=2, observables="state").window == 2


def test_numpy_integers_become_integers() -> None:
    config = KoopmanConfig(window=np.int64(8), horizon=np.int32(100), rank=np.int16(3))  # type: ignore[arg-type]
    assert [type(x) for x in (config.window, config.horizon, config.rank)] == [int, int, int]
    assert KoopmanConfig(rank=np.float32(0.5)).rank == 0.5  # type: ignore[arg-type]


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        KoopmanConfig().window = 3  # type: ignore[misc]


def test_replace_checks_anew() -> None:
    config = KoopmanConfig(window=64).replace(partition="quasi_node", node_size=8)
    assert (config.window, config.partition, config.node_size) == (64, "quasi_node", 8)
    with pytest.raises(ConfigError, match="stride"):
        config.replace(stride=0)


def test_replace_suggests_the_field_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="unknown field 'windows'; did you mean \"window\""):
        KoopmanConfig().replace(windows=3)


def test_the_paper_adds_nothing() -> None:
    config = KoopmanConfig.paper(500, window=200, warmup=30)
    assert config == KoopmanConfig(
        partition="node",
        observables="state",
        delays=1,
        window=200,
        stride=1,
        average=False,
        rank=None,
        method="qr",
        ridge=0.0,
        symmetric=False,
        estimator="least_squares",
        unstable="keep",
        horizon=500,
        guard="finite",
        warmup=30,
        cooldown=0,
        optimizer_state="keep",
    )


def test_the_paper_knows_no_search() -> None:
    with pytest.raises(ConfigError, match=r"horizon: .* optimizer steps, got 'search'"):
        KoopmanConfig.paper("search")  # type: ignore[arg-type]


def through_a_checkpoint(fields: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(fields, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize(
    "config",
    [
        KoopmanConfig(),
        KoopmanConfig.paper(100, "quasi_node", node_size=3),
        KoopmanConfig(rank=4, tolerance=1e-6, horizon=64, average=True),
        KoopmanConfig(partition=Partition.from_segments([[(0, 2), (5, 1)], [(2, 3)]], 6)),
        KoopmanConfig(partition=Partition.node(nn.Linear(3, 4))),
        KoopmanConfig(partition=Partition.node(nn.Linear(3, 400))),
        KoopmanConfig(partition=Partition.weight(nn.Linear(30, 40))),
    ],
    ids=lambda config: str(config.partition),
)
def test_a_configuration_survives_a_checkpoint(config: KoopmanConfig) -> None:
    loaded = KoopmanConfig.from_dict(through_a_checkpoint(config.to_dict()))
    assert loaded == config
    if isinstance(config.partition, Partition):
        assert isinstance(loaded.partition, Partition)
        assert loaded.partition.names == config.partition.names
        assert loaded.partition.kind == config.partition.kind


def test_a_small_partition_is_stored_readably() -> None:
    blocks = [[(0, 2), (5, 1)], [(2, 3)]]
    stored = KoopmanConfig(partition=Partition.from_segments(blocks, 6)).to_dict()["partition"]
    assert stored == {
        "kind": "custom",
        "n": 6,
        "names": None,
        "segments": [[[0, 2], [5, 1]], [[2, 3]]],
    }


def test_a_damaged_checkpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown field 'colour'"):
        KoopmanConfig.from_dict({"colour": 1})
    with pytest.raises(ConfigError, match="'names' is missing"):
        KoopmanConfig.from_dict({"partition": {"n": 3}})
    with pytest.raises(ConfigError, match=r"index 2: .* got it in none"):
        KoopmanConfig.from_dict(
            {"partition": {"n": 3, "names": None, "kind": "custom", "segments": [[[0, 2]]]}}
        )
