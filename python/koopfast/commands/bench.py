# SPDX-License-Identifier: BSD-3-Clause
"""``koopfast bench``: what recording, fitting and predicting cost on this machine.

The repository's ``make bench`` compares with peers and studies growth; this measures the installed
package alone, in a minute, after checking that what it computes is right.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from koopfast.commands import add_output_arguments, add_seed, show
from koopfast.errors import ConfigError, KoopfastError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["add_arguments", "run"]

_RATES = (0.97, 0.9, 0.6)
_BLOCKS = {"network": 1, "layer": 16, "node": 2048}
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--weights", type=int, default=1_000_000, help="of the network (default: %(default)s)"
    )
    parser.add_argument(
        "--snapshots", type=int, default=32, help="in the window (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="of the weights (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="cpu", help="where the weights are (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=7, help="timings of each, the median counts (%(default)s)"
    )
    add_seed(parser, "the trajectory")
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Check, time in turns, print medians in ms and as multiples of a copy of the weights."""
    import torch

    from koopfast import KoopmanOperator, Partition, SnapshotBuffer

    for name, least in (("weights", 8192), ("snapshots", 4), ("repeats", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name}: expected {least} or more, got {getattr(options, name)}")
    n, m = options.weights, options.snapshots
    device = torch.device(options.device)
    snapshots, later = _trajectory(options, device)
    weights = snapshots[-1].clone()
    other = torch.empty_like(weights)
    buffer = SnapshotBuffer([weights], capacity=2)
    work: dict[str, Callable[[], object]] = {
        "copy of the weights": lambda: other.copy_(weights),
        "record a snapshot": lambda: _record(buffer),
    }
    for kind, blocks in _BLOCKS.items():
        parts = Partition.from_segments(_equal_parts(n, blocks), n)
        operator = KoopmanOperator.fit(snapshots, parts)
        _check(kind, operator.predict([m]), later, snapshots[-1])
        work[f"fit, {kind} ({blocks} blocks)"] = partial(KoopmanOperator.fit, snapshots, parts)
        work[f"predict 8 horizons, {kind}"] = partial(operator.predict, range(1, 9))
    times = _timed(work, options.repeats, device)
    unit = times["copy of the weights"]
    facts: dict[str, Any] = {
        "weights": n,
        "snapshots": m,
        "dtype": options.dtype,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "milliseconds": {name: 1e3 * seconds for name, seconds in times.items()},
    }
    width = max(map(len, times))
    text = [
        f"{m} snapshots of {n} weights, {options.dtype}, {device}, {facts['threads']} threads",
        f"medians of {options.repeats}, after checking what is computed",
        f"{'':<{width}}  {'ms':>9}  {'copies':>7}",
        *(
            f"{name:<{width}}  {1e3 * seconds:9.3f}  {seconds / unit:7.1f}"
            for name, seconds in times.items()
        ),
    ]
    show(options, facts, text)
    return 0


def _trajectory(options: argparse.Namespace, device: Any) -> tuple[Tensor, Tensor]:
    """Snapshots (m, n) of three decaying modes, and the state one window after the last."""
    import torch

    n, m = options.weights, options.snapshots
    generator = torch.Generator().manual_seed(options.seed)
    modes = torch.randn(len(_RATES), n, generator=generator)
    powers = torch.tensor(
        [[rate**t for rate in _RATES] for t in (*range(m), 2 * m - 1)], dtype=torch.float32
    )
    states = (1.0 + powers @ modes).to(getattr(torch, options.dtype)).to(device)
    return states[:-1], states[-1:]


def _equal_parts(n: int, blocks: int) -> list[list[tuple[int, int]]]:
    ends = [n * b // blocks for b in range(blocks + 1)]
    return [[(a, b - a)] for a, b in itertools.pairwise(ends)]


def _check(kind: str, predicted: Tensor, later: Tensor, last: Tensor) -> None:
    """Nothing is timed that is wrong."""
    away = (later.double() - last.double()).norm()
    error = float((predicted.double() - later.double()).norm() / away)
    # Half precision leaves few digits of a displacement.
    allowed = 0.02 if last.element_size() >= 4 else 0.5
    if not error <= allowed:
        raise KoopfastError(
            f"bench: {kind}: expected the state one window ahead to within {allowed}, got "
            f"{error:.3g}; this build computes wrong results"
        )


def _record(buffer: Any) -> None:
    buffer.clear()
    buffer.record()


def _timed(work: dict[str, Callable[[], object]], repeats: int, device: Any) -> dict[str, float]:
    """Median seconds of each, timed in turns."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(repeats + 1):  # the first warms up
        for name, do in work.items():
            seconds = _seconds(do, device)
            if round_:
                times[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _seconds(do: Callable[[], object], device: Any) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = perf_counter()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - started
