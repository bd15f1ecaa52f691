# SPDX-License-Identifier: BSD-3-Clause
"""Several processes end as one would, and never decide differently."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import distributed_runs
from compare import SHARDED, assert_rows_close, relative_error

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)

DDP = ("ddp", "ddp_nodes", "ddp_weights", "ddp_adaptive", "ddp_streaming")
ODD = (
    "ddp_other_data",
    "ddp_nan_probe",
    "fsdp_nan_probe",
    "ddp_raising_probe",
    "ddp_failing_fit",
    "ddp_failing_prediction",
    "fsdp_failing_gram",
    "fsdp_failing_fit",
    "fsdp_failing_prediction",
    "ddp_slow_clock",
    "ddp_written",
    "fsdp_written",
    "frameworks",
)
AVERAGED = ("ddp_averaged", "fsdp_averaged")
OTHERS = (
    *AVERAGED,
    "nothing_said",
    "traffic",
    "judged_traffic",
    "elsewhere",
    "refusals",
    "resumed",
)
CASES = {
    2: (*DDP, "fsdp", "tp", "dcp", *ODD, *OTHERS),
    4: ("hsdp", "tp_fsdp", "operators", "operators_of_meshes", "dcp_loaded"),
}
SECONDS = 240
SCRIPT = Path(distributed_runs.__file__)

Results = Callable[[str], list[dict[str, Any]]]


def environment(**others: Any) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in others.items()}}


def launched(processes: int, folder: Path) -> Results:
    """Run the cases under torchrun; what comes gives the ranks' results of one of them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(SCRIPT), str(folder), *CASES[processes]]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, env=environment(), check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]

    def results(case: str) -> list[dict[str, Any]]:
        every = [torch.load(folder / f"{case}.{processes}.{rank}.pt") for rank in range(processes)]
        for one in every:
            assert "error" not in one, one["error"]
        return every

    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def survivor(folder: Path) -> dict[str, Any]:
    """What the other of two processes is left with when one is killed in a jump."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), "killed"],
            env=environment(RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    codes = [process.wait(timeout=SECONDS) for process in both]
    assert codes == [0, -signal.SIGKILL]
    result: dict[str, Any] = torch.load(folder / "killed.2.0.pt")
    assert "error" not in result, result["error"]
    return result


@pytest.fixture(scope="module")
def two(folder: Path, survivor: dict[str, Any]) -> Results:
    return launched(2, folder)


@pytest.fixture(scope="module")
def four(folder: Path, two: Results) -> Results:
    return launched(4, folder)


def flat(result: dict[str, Any]) -> torch.Tensor:
    return torch.cat([p.flatten() for p in result["weights"].values()])


def assert_ranks_agree(results: list[dict[str, Any]]) -> None:
    for other in results[1:]:
        assert other["jumps"] == results[0]["jumps"]
        assert other["reasons"] == results[0]["reasons"]
        assert torch.equal(flat(other), flat(results[0]))


def decisions(result: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Step, accepted or not, horizon and kind of each jump."""
    return [tuple(jump[:4]) for jump in result["jumps"]]


@pytest.mark.parametrize("case", DDP)
def test_replicas_end_with_the_very_weights_of_one_process(two: Results, case: str) -> None:
    alone, results = getattr(distributed_runs, case)(alone=True), two(case)
    assert_ranks_agree(results)
    assert results[0]["jumps"] == alone["jumps"]
    assert any(jump[1] for jump in alone["jumps"])
    assert torch.equal(flat(results[0]), flat(alone))


@pytest.mark.parametrize("case", ["fsdp", "tp", "dcp"])
def test_shards_end_with_the_weights_of_one_process(two: Results, case: str) -> None:
    assert_as_alone(two(case), case)


@pytest.mark.parametrize("case", ["hsdp", "tp_fsdp"])
def test_shards_of_a_mesh_end_with_the_weights_of_one_process(four: Results, case: str) -> None:
    assert_as_alone(four(case), case)


def assert_as_alone(results: list[dict[str, Any]], case: str) -> None:
    alone = getattr(distributed_runs, case)(alone=True)
    assert_ranks_agree(results)
    assert decisions(results[0]) == decisions(alone)
    assert sum(jump[1] for jump in alone["jumps"]) > 1
    assert relative_error(flat(results[0])[None], flat(alone)[None]) < SHARDED


@pytest.mark.parametrize("case", AVERAGED)
def test_the_mean_of_the_weights_is_that_of_one_process(two: Results, case: str) -> None:
    alone = getattr(distributed_runs, case)(alone=True)
    for result in two(case):
        assert result["shown"]
        assert result["same"]
        assert not result["again"]
        for one, other in zip(result["mean"], alone["mean"], strict=True):
            assert relative_error(one.flatten()[None], other.flatten()[None]) < SHARDED


@pytest.mark.parametrize("case", ODD)
def test_ranks_decide_alike_whatever_one_of_them_sees(two: Results, case: str) -> None:
    results = two(case)
    assert_ranks_agree(results)
    assert any(jump[1] for jump in results[0]["jumps"])


@pytest.mark.parametrize("case", ["ddp_nan_probe", "fsdp_nan_probe"])
def test_a_nan_on_one_rank_is_a_nan_on_all(two: Results, case: str) -> None:
    first, second, *_ = two(case)[0]["jumps"]
    assert first[3] == "non_finite_loss"
    assert "nan" in second[4]


@pytest.mark.parametrize("case", [case for case in ODD if "failing" in case])
def test_a_failure_on_one_rank_refuses_the_jump_on_all(two: Results, case: str) -> None:
    for result in two(case):
        assert result["jumps"][0][3] == "operator"
        assert result["reasons"][0] == "the fit failed: MemoryError: no room"


def test_a_probe_that_raises_on_one_rank_raises_on_all(two: Results) -> None:
    fine, raising = two("ddp_raising_probe")
    assert raising["errors"] == ["ValueError: no data left"]
    (error,) = fine["errors"]
    assert error.startswith("DistributedError: rank 1 failed")
    assert error.endswith("ValueError: no data left")


@pytest.mark.parametrize("case", ["ddp_written", "fsdp_written"])
def test_a_write_that_one_rank_saw_splits_the_window_of_all(two: Results, case: str) -> None:
    assert [result["splits"] for result in two(case)] == [1, 1]


def test_processes_of_which_nothing_is_known_are_refused(two: Results) -> None:
    results = two("nothing_said")
    assert "process_group=torch.distributed.group.WORLD" in results[0]["message"]
    assert_ranks_agree([result["given"] for result in results])
    first, second = (result["lonely"] for result in results)
    assert not torch.equal(flat(first), flat(second))


@pytest.mark.parametrize("case", ["operators", "operators_of_meshes"])
def test_every_layout_gives_the_operator_of_one_process(four: Results, case: str) -> None:
    """Uneven and empty shards, replicas, tied, frozen and plain parameters, rows in parts."""
    alone, results = getattr(distributed_runs, case)(alone=True), four(case)
    for name, expected in alone.items():
        parts = [result[name] for result in results]
        for own in parts:
            assert torch.equal(own["rank"], expected["rank"]), name
            assert torch.equal(own["status"], expected["status"]), name
            assert_rows_close(flat(own)[None], flat(expected)[None], condition=100, steps=20)
            # Weights that two ranks hold count once, or these would be larger.
            leading, wanted = own["sigma"][:2], expected["sigma"][:2]
            assert_rows_close(leading[None], wanted[None], condition=100)
        assert min(own["local"] for own in parts) < expected["total"], name


def test_a_rank_may_hold_nothing(four: Results) -> None:
    assert [result["row-layer"]["local"] for result in four("operators")] == [10, 0, 0, 0]


def test_a_sharded_jump_sends_triangles_of_gram_matrices_and_flags(two: Results) -> None:
    for result in two("traffic"):
        for name, (blocks, m, calls) in result.items():
            if name.startswith("shards"):
                assert sum(size for _, size in calls) == 4 * blocks * m * (m + 1) + 72, name


def test_what_a_jump_of_replicas_sends_does_not_grow_with_the_weights(two: Results) -> None:
    for result in two("traffic"):
        small, large = (sum(s for _, s in result[f"replicas {w} layer"][2]) for w in (16, 160))
        assert small == large


def test_judging_sends_a_few_numbers_a_candidate(two: Results) -> None:
    for result in two("judged_traffic"):
        sent, probed, count = (result[key] for key in ("sent", "probed", "evaluations"))
        own = sum(size for _, size in sent) - count * sum(size for _, size in probed)
        # An agreement, how many losses, and the loss; of each candidate, whether it is finite.
        assert own == 4 * 3 * 6 * 7 + 56 + 32 * count + 8 * (count - 1)


def test_a_sharded_window_goes_on_in_another_number_of_processes(four: Results) -> None:
    assert_as_alone(four("dcp_loaded"), "dcp")
    assert all(result["recorded"] == 5 for result in four("dcp_loaded"))


def test_the_state_of_another_shard_begins_the_window_anew(two: Results) -> None:
    for result in two("elsewhere"):
        assert result["recorded"] == 0
        (message,) = result["warnings"]
        assert "other parts of the parameters" in message
    assert_ranks_agree(two("elsewhere"))


def test_a_killed_rank_leaves_an_error_and_the_weights_before_the_jump(
    survivor: dict[str, Any],
) -> None:
    assert "could not reach the others" in survivor["message"]
    assert survivor["kept"]
    assert survivor["probes"] == 3


def test_a_run_goes_on_from_the_checkpoint_before_the_loss_of_a_rank(two: Results) -> None:
    results, whole = two("resumed"), distributed_runs.ddp(alone=True)
    assert_ranks_agree(results)
    assert results[0]["jumps"] == whole["jumps"]
    assert torch.equal(flat(results[0]), flat(whole))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("Partial", "UnsupportedParameterError: parameter 'last.bias': expected placements"),
        ("FSDP1", "UnsupportedParameterError: model: .* FullyShardedDataParallel"),
        ("ZeRO", "UnsupportedParameterError: model: .* DeepSpeed ZeRO"),
        ("False", "ConfigError: process_group: .* 'first.weight' is sharded"),
        ("no group", "ConfigError: process_group: .* got str"),
        ("streaming", "ConfigError: streaming: "),
        ("qr", "ConfigError: method: "),
        ("weight", "ConfigError: partition: "),
        ("complex", "ConfigError: parameters: expected real ones"),
        ("other models", "ConfigError: parameters: expected the same on all 2 ranks"),
        ("other options", "ConfigError: config: expected the same on all 2 ranks"),
    ],
)
def test_what_cannot_work_is_refused_on_every_rank(two: Results, case: str, words: str) -> None:
    for result in two("refusals"):
        assert re.match(words, result[case])
