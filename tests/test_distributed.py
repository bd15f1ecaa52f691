# SPDX-License-Identifier: BSD-3-Clause
"""Several processes end as one would, and never decide differently."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import distributed_runs
from compare import SHARDED, relative_error

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)

ALIKE = {
    2: ("ddp", "ddp_nodes", "ddp_weights", "ddp_adaptive", "ddp_streaming", "fsdp", "tp"),
    4: ("hsdp", "tp_fsdp"),
}
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
)
CASES = {2: (*ALIKE[2], *ODD, "nothing_said"), 4: ALIKE[4]}
SECONDS = 240

Results = Callable[[str], list[dict[str, Any]]]


def launch(processes: int, folder: Path, *cases: str) -> subprocess.CompletedProcess[str]:
    """Run the cases under torchrun."""
    script = Path(distributed_runs.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(script), str(folder), *cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
    )


def results_of(processes: int, folder: Path) -> Results:
    run = launch(processes, folder, *CASES[processes])
    assert run.returncode == 0, run.stderr[-4000:]

    def results(case: str) -> list[dict[str, Any]]:
        every = [torch.load(folder / f"{case}.{rank}.pt") for rank in range(processes)]
        for one in every:
            assert "error" not in one, one["error"]
        return every

    return results


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results_of(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results_of(4, tmp_path_factory.mktemp("four"))


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


@pytest.mark.parametrize("case", [case for case in ALIKE[2] if case.startswith("ddp")])
def test_replicas_end_with_the_very_weights_of_one_process(two: Results, case: str) -> None:
    alone, results = getattr(distributed_runs, case)(alone=True), two(case)
    assert_ranks_agree(results)
    assert results[0]["jumps"] == alone["jumps"]
    assert any(jump[1] for jump in alone["jumps"])
    assert torch.equal(flat(results[0]), flat(alone))


@pytest.mark.parametrize("case", ["fsdp", "tp"])
def test_shards_end_with_the_weights_of_one_process(two: Results, case: str) -> None:
    assert_as_alone(two(case), case)


@pytest.mark.parametrize("case", ALIKE[4])
def test_shards_of_a_mesh_end_with_the_weights_of_one_process(four: Results, case: str) -> None:
    assert_as_alone(four(case), case)


def assert_as_alone(results: list[dict[str, Any]], case: str) -> None:
    alone = getattr(distributed_runs, case)(alone=True)
    assert_ranks_agree(results)
    assert decisions(results[0]) == decisions(alone)
    assert sum(jump[1] for jump in alone["jumps"]) > 1
    assert relative_error(flat(results[0])[None], flat(alone)[None]) < SHARDED


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
