# SPDX-License-Identifier: BSD-3-Clause
"""Where a trainer keeps what it recorded."""

from __future__ import annotations

from typing import Any, Protocol

from koopfast.config import KoopmanConfig
from koopfast.errors import ConfigError
from koopfast.moments import DEFAULT_MAX_BYTES, MomentBuffer
from koopfast.parameters import ParameterVector
from koopfast.partition import Partition
from koopfast.snapshots import SnapshotBuffer

__all__ = ["Schedule", "new_buffer"]

# Of a stride that sets itself, so many states make a mean: each costs a pass over the weights, and
# beside a step of a small network that is not little.
_SAMPLES = 4


class Schedule(Protocol):
    """How to record from one window to the next, where that varies."""

    @property
    def stride(self) -> int: ...

    @property
    def average(self) -> bool: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> None: ...


def new_buffer(
    config: KoopmanConfig,
    parameters: ParameterVector,
    partition: Partition,
    schedule: Schedule | None,
) -> SnapshotBuffer | MomentBuffer:
    """An empty window as ``config`` wants it, with the stride that ``schedule`` begins with.

    Raises:
        ConfigError: it would take more memory than ``config`` allows.
    """
    if parameters.dtype.is_complex:
        config.check_given("of complex parameters")
    if config.streaming:
        return MomentBuffer(
            parameters,
            partition,
            observables="increments" if config.increments else "state",
            delays=int(config.delays),
            stride=config.first_stride,
            average=config.average is True,
            capacity=config.snapshots,
            max_bytes=DEFAULT_MAX_BYTES if config.max_bytes is None else config.max_bytes,
        )
    window, varies = config.snapshots, schedule is not None
    # Where the stride varies it may come to average, which takes a row more.
    stride = 2 if varies else config.first_stride
    average = varies or config.average is True
    buffer = SnapshotBuffer(
        parameters,
        window,
        stride=stride,
        average=average,
        samples=_SAMPLES if varies else None,
        offload=config.offload,
    )
    needed, most = buffer.nbytes_needed, config.max_bytes
    if most is not None and needed > most:
        row = parameters.n * parameters.dtype.itemsize
        fits = window + (most - needed) // row
        fewer = f"record fewer snapshots (window={fits}) or "
        raise ConfigError(
            f"max_bytes: expected room for {window} snapshots of {parameters.n} "
            f"weights, {needed} bytes, got {most}; "
            f"{fewer if fits >= config.least_snapshots else ''}"
            "freeze parameters that need no prediction"
        )
    if schedule is not None:
        buffer.clear(stride=schedule.stride, average=schedule.average)
    return buffer
