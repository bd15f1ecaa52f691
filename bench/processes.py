# SPDX-License-Identifier: BSD-3-Clause
"""What sharded training sends and stores: python bench/processes.py [--document docs/scaling.md]

Counts the bytes of every collective of a jump in 1, 2 and 4 processes (gloo, on this machine) and
holds them against the formulas, which it then takes to models that fit no machine.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from koopfast import KoopmanTrainer
from koopfast.report import Table
from koopfast.reproduce.document import markdown, update

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from distributed_runs import Traffic

PROCESSES = (1, 2, 4)
WIDTHS = (64, 256, 1024)
WINDOWS = (8, 16, 32)
FLAGS = 72  # bytes
RANK = 4  # of the projected operators


def triangles(blocks: int, m: int) -> int:
    """Bytes of the lower triangles of one Gram matrix a block, in double."""
    return 4 * blocks * m * (m + 1)


def model_of(width: int) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, width), nn.Tanh(), nn.Linear(width, 16))
    fully_shard(model)
    return model


def measured(width: int, window: int, partition: str) -> dict[str, Any]:
    """One jump, taken if it is finite: bytes given to collectives, and those of the window."""
    model = model_of(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"stride": 1, "guard": "finite", "horizon": 10, "partition": partition, "rank": 2}
    trainer = KoopmanTrainer(model, optimizer, window=window, **options)
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    for step in range(window):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if step + 1 < window:
            trainer.after_step()
    with Traffic() as sent:
        trainer.after_step()
    assert trainer.operator is not None
    return {
        "n": sum(p.numel() for p in model.parameters()),
        "blocks": trainer.operator.n_blocks,
        "sent": sent.bytes,
        "stored": trainer._snapshots.nbytes,
    }


def worker(rank: int, size: int, store: str, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    cases = [(width, 8, "layer") for width in WIDTHS]
    cases += [(WIDTHS[-1], window, "layer") for window in WINDOWS[1:]]
    cases += [(WIDTHS[-1], 8, "node")]
    for case in cases:
        results.put((size, rank, case, measured(*case)))
    dist.barrier()
    dist.destroy_process_group()


def run(size: int) -> list[tuple[Any, ...]]:
    """What every rank found, for each case."""
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        mp.spawn(worker, args=(size, store, results), nprocs=size)
    found = []
    while not results.empty():
        found.append(results.get())
    return found


def measured_table() -> Table:
    found = [entry for size in PROCESSES for entry in run(size)]
    rows = []
    by_case = sorted(found, key=lambda entry: (entry[2][2], entry[2][0], entry[2][1], entry[0]))
    for (case, size), group in itertools.groupby(by_case, key=lambda entry: (entry[2], entry[0])):
        own = [entry[3] for entry in group]
        first = own[0]
        sent = {one["sent"] for one in own}
        assert sent == {triangles(first["blocks"], case[1]) + FLAGS}, (case, size, sent)
        stored = max(one["stored"] for one in own)
        rows.append(
            (
                case[2],
                f"{first['n']:,}",
                str(case[1]),
                f"{first['blocks']:,}",
                str(size),
                f"{first['sent']:,}",
                f"{stored:,}",
            )
        )
    return Table(
        caption="One jump of a network sharded by fully_shard, float32: bytes that each rank gives "
        "to collectives (asserted equal to the formula), and those of the fullest rank's window",
        columns=("partition", "n", "m", "B", "processes", "sent", "window"),
        rows=rows,
    )


def decoder(layers: int, width: int, words: int) -> tuple[int, dict[str, int]]:
    """Weights and blocks of a transformer decoder: attention and an MLP of four times the width."""
    linear = {"qkv": (3, 1), "out": (1, 1), "up": (4, 1), "down": (1, 4)}
    rows = width * sum(out for out, _ in linear.values())
    inner = width * width * sum(out * inputs for out, inputs in linear.values())
    n = layers * (inner + rows + 4 * width) + words * width
    nodes = layers * (rows + 2 * width) + words
    return n, {"network": 1, "layer": layers * (len(linear) + 2) + 1, "node": nodes}


def projected_table() -> Table:
    n, blocks = decoder(80, 10_240, 50_000)
    rows = []
    for partition, m, ranks in itertools.product(blocks, (12, 32), (256, 1024)):
        sent = triangles(blocks[partition], m) + FLAGS
        window, step = 2 * m * n / ranks, 2 * n
        rows.append(
            (
                partition,
                f"{blocks[partition]:,}",
                str(m),
                f"{ranks:,}",
                _short(sent),
                f"{sent / step:.1e}",
                _short(window),
                _short(8 * blocks[partition] * (m * RANK + 3 * RANK**2 + 6 * RANK)),
            )
        )
    return Table(
        caption=f"A decoder of {n:.3g} weights in bfloat16 (80 layers of width 10,240), by the "
        f"formulas; operators of rank {RANK}",
        columns=(
            "partition",
            "B",
            "m",
            "ranks",
            "sent a jump",
            "of a step's gradients",
            "window a rank",
            "operator a rank",
        ),
        rows=rows,
    )


def _short(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--document", type=Path, help="Markdown to write the tables to")
    document = parser.parse_args().document
    parts = {"measured": markdown(measured_table()), "projected": markdown(projected_table())}
    if document is None:
        print("\n\n".join(parts.values()))
    else:
        update(document, parts)


if __name__ == "__main__":
    main()
