# SPDX-License-Identifier: BSD-3-Clause
"""What a GPU does with koopfast's kernels: each checked against double precision, then timed.

    python bench/gpu_report.py --out report.json            # needs a CUDA device, about a minute
    python bench/gpu_report.py --device cpu --small          # the same code, to see that it runs

Every time is the median of events around the work; bandwidth is held against that of a copy on
the same device, bytes read plus bytes written. bench/gpu_report.sh builds, tests and calls this.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from koopfast import (
    KoopmanOperator,
    Partition,
    SnapshotBuffer,
    _blocks,
    _native,
    _ops,
    _torch_passes,
)
from trajectories import equal_blocks

HORIZONS = [1.0, 4.0, 16.0, 64.0]


class Report:
    """Rows of the report, printed as they come."""

    def __init__(self, device: torch.device, small: bool, repeats: int) -> None:
        self.device, self.small, self.repeats = device, small, repeats
        self.rows: list[dict[str, Any]] = []
        self.copy = 0.0

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def size(self, full: int, small: int) -> int:
        return small if self.small else full

    def milliseconds(self, work: Callable[[], object]) -> float:
        for _ in range(2):
            work()
        times = []
        for _ in range(self.repeats):
            if self.device.type == "cuda":
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                work()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end))
            else:
                start = time.perf_counter()
                work()
                times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)

    def add(self, work: str, ms: float, **facts: Any) -> None:
        row: dict[str, Any] = {"work": work, "ms": round(ms, 4), **facts}
        if "bytes" in facts:
            row["GB/s"] = round(facts["bytes"] / ms / 1e6, 1)
            row["share of copy"] = round(row["GB/s"] / self.copy, 3) if self.copy else 1.0
        reached = row.get("share of copy", row.get("speed-up", row.get("overhead")))
        if self.device.type == "cuda" and "at least" in row:
            row["holds"] = bool(reached >= row["at least"])
        if self.device.type == "cuda" and "at most" in row:
            row["holds"] = bool(reached <= row["at most"])
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def check(self, name: str, error: float, allowed: float) -> None:
        row = {"check": name, "error": error, "allowed": allowed, "holds": error <= allowed}
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def failed(self, part: str, error: RuntimeError) -> None:
        row = {"check": f"{part} runs to its end", "error": str(error), "holds": False}
        self.rows.append(row)
        print(json.dumps(row), flush=True)


def walk(report: Report, m: int, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Snapshots of smooth motion a thousand times smaller than the weights, made where they are."""
    snapshots = torch.empty(m, n, dtype=dtype, device=report.device)
    generator = torch.Generator(report.device).manual_seed(0)
    weights = torch.randn(n, device=report.device, generator=generator)
    modes = 1e-3 * torch.randn(4, n, device=report.device, generator=generator)
    for t in range(m):
        rates = torch.tensor([0.98, 0.9, 0.7, 0.4], device=report.device) ** t
        snapshots[t] = (weights + rates @ modes).to(dtype)
    return snapshots


def bandwidth(report: Report) -> None:
    a = torch.randn(report.size(1 << 30, 1 << 20), device=report.device)
    b = torch.empty_like(a)
    ms = report.milliseconds(lambda: b.copy_(a))
    report.copy = 2 * a.nbytes / ms / 1e6
    report.add("copy", ms, bytes=2 * a.nbytes)


def passes(report: Report) -> None:
    m, n = 32, report.size(10**8, 10**5)
    snapshots = walk(report, m, n)
    table, blocks = _blocks.BlockTable(equal_blocks(n, n)), torch.zeros(1, dtype=torch.int64)

    def gram() -> Tensor:
        return _ops.snapshot_gram(snapshots, table, blocks, rows="increments")

    expected = _torch_passes.snapshot_gram(snapshots, table, blocks, "increments")
    error = float((gram() - expected).abs().max() / expected.abs().max())
    report.check("Gram of one block", error, 1e-12)
    report.check("Gram, again", float(not torch.equal(gram(), gram())), 0)
    what = f"Gram of {n} x {m} float32, one block"
    report.add(what, report.milliseconds(gram), bytes=snapshots.nbytes, **{"at least": 0.8})

    k = len(HORIZONS)
    values = torch.randn(k * m, dtype=torch.float64)
    powers = (values, torch.zeros(1, dtype=torch.int64), torch.ones(1, k, dtype=torch.float64))
    out, twin = (torch.full((k, n), torch.nan, device=report.device) for _ in range(2))

    def combine() -> None:
        _ops._combine(snapshots, table, blocks, True, powers, out)

    combine()
    _torch_passes.combine(snapshots, table, blocks, True, powers, twin)
    report.check("combine", float((out - twin).abs().max() / twin.abs().max()), 1e-6)
    moved = snapshots.nbytes + out.nbytes
    report.add(
        "combine, 4 horizons", report.milliseconds(combine), bytes=moved, **{"at least": 0.8}
    )


def batched_torch(snapshots: Tensor, blocks: int, rank: int) -> Tensor:
    """Fit and prediction of equal blocks by batched torch.linalg, in float64."""
    m, n = snapshots.shape
    states = snapshots.double().view(m, blocks, n // blocks).permute(1, 2, 0)
    steps = states.diff(dim=2)
    gram = steps.mT @ steps
    values, vectors = torch.linalg.eigh(gram[:, :-1, :-1])
    v, sigma = vectors[..., -rank:], values[..., -rank:].clamp(min=1e-300).sqrt()
    projected = v.mT @ gram[:, :-1, 1:] @ v
    operator = projected / sigma[..., :, None] / sigma[..., None, :]
    start = (v.mT @ gram[:, :-1, -1:])[..., 0] / sigma
    # w + Phi (I + A + ... ) z by powers of [[A, z], [0, 1]].
    both = torch.zeros(blocks, rank + 1, rank + 1, dtype=torch.float64, device=states.device)
    both[:, :rank, :rank], both[:, :rank, rank], both[:, rank, rank] = operator, start, 1
    sums = torch.stack(
        [torch.linalg.matrix_power(both, int(h))[:, :rank, rank] for h in HORIZONS], dim=2
    )
    change = steps[..., 1:] @ (v @ (sums / sigma[..., None]))
    return (states[..., -1:] + change).permute(2, 0, 1).reshape(len(HORIZONS), n)


def fits(report: Report) -> None:
    rank = 3
    for blocks, size, target in (
        (report.size(10_000, 50), 1_000, 10.0),
        (1, report.size(10**6, 10**4), 5.0),
    ):
        n = blocks * size
        snapshots, partition = walk(report, 32, n), equal_blocks(n, size)

        def ours(
            snapshots: Tensor = snapshots, partition: Partition = partition
        ) -> tuple[KoopmanOperator, Tensor]:
            operator = KoopmanOperator.fit(snapshots, partition, rank=rank)
            return operator, operator.predict(HORIZONS)

        def theirs(snapshots: Tensor = snapshots, blocks: int = blocks) -> Tensor:
            return batched_torch(snapshots, blocks, rank)

        predicted = ours()[1].double()
        scale = (predicted - snapshots[-1].double()).abs().max()
        error = float((predicted - theirs()).abs().max() / scale)
        report.check(f"fit and predict, {blocks} blocks", error, 1e-2)
        ms, torch_ms = report.milliseconds(ours), report.milliseconds(theirs)
        report.add(
            f"fit + predict, {blocks} blocks of {size} x 32",
            ms,
            torch_ms=round(torch_ms, 4),
            **{"speed-up": round(torch_ms / ms, 2), "at least": target},
        )


def recording(report: Report) -> None:
    n = report.size(10**8, 10**6)
    weights = [torch.randn(n // 100, device=report.device) for _ in range(100)]
    buffer = SnapshotBuffer(weights, capacity=8)
    buffer.reserve()

    def record() -> None:
        if buffer.full:
            buffer.clear()
        buffer.record()

    record()
    report.check("record", float((buffer.snapshots[0] - torch.cat(weights)).abs().max()), 0)
    ms = report.milliseconds(record)
    report.add(f"record {n} float32", ms, bytes=8 * n, **{"at least": 0.85})


def overhead(report: Report) -> None:
    width = report.size(1_800, 64)
    torch.manual_seed(0)
    layers = [m for _ in range(3) for m in (nn.Linear(width, width), nn.Tanh())]
    model = nn.Sequential(*layers).to(report.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(1024, width, device=report.device)
    n = sum(p.numel() for p in model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    plain = report.milliseconds(step)
    for offload in (False, True):
        buffer = SnapshotBuffer(model, capacity=16, offload=offload)
        buffer.reserve()

        def recorded(buffer: SnapshotBuffer = buffer) -> None:
            step()
            if buffer.full:
                buffer.clear()
            buffer.record()

        ms = report.milliseconds(recorded)
        where = "pinned host memory" if offload else "the device"
        target = {} if offload else {"at most": 0.03}
        report.add(
            f"training step and record to {where}, {n} weights",
            ms,
            plain_ms=round(plain, 4),
            overhead=round(ms / plain - 1, 4),
            **target,
        )


def small_blocks(report: Report) -> None:
    n = report.size(10**7, 10**4)
    snapshots = walk(report, 32, n)
    single = equal_blocks(n, 1)

    def by_weight() -> KoopmanOperator:
        return KoopmanOperator.fit(snapshots, single, rank=1)

    report.add("fit, one weight a block", report.milliseconds(by_weight), bytes=snapshots.nbytes)
    few = report.size(10**6, 10**4) // 11 * 11
    nodes = equal_blocks(few, 11)
    some = snapshots[:, :few]
    ms = report.milliseconds(lambda: KoopmanOperator.fit(some, nodes, rank=3).predict(HORIZONS))
    report.add(f"fit + predict, {few // 11} blocks of 11 x 32", ms)


def write(report: Report, out: Path) -> None:
    build = _native.build_info()
    whole = {
        "device": report.name,
        "command": " ".join(sys.argv),
        "torch": torch.__version__,
        "cuda_architectures": build["cuda_architectures"],
        "cuda_version": build["cuda_version"],
        "repeats": report.repeats,
        "rows": report.rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(whole, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    options = parser.parse_args()
    device = torch.device(options.device)
    report = Report(device, options.small, options.repeats)
    for part in (bandwidth, passes, fits, recording, overhead, small_blocks):
        try:
            part(report)
        except RuntimeError as error:  # the other parts may work
            report.failed(part.__name__, error)
        if options.out is not None:  # what is known so far: a run may be cut short
            write(report, options.out)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    missed = [row for row in report.rows if row.get("holds") is False]
    wrong = [row for row in missed if "check" in row]
    print(
        f"{report.name}: {len(report.rows)} rows, {len(wrong)} wrong, "
        f"{len(missed) - len(wrong)} missed"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
