# SPDX-License-Identifier: BSD-3-Clause
"""Where a trainer keeps what it recorded."""

from __future__ import annotations

from koopfast.config import KoopmanConfig
from koopfast.controller import Controller
from koopfast.errors import ConfigError
from koopfast.moments import DEFAULT_MAX_BYTES, MomentBuffer
from koopfast.parameters import ParameterVector
from koopfast.partition import Partition
from koopfast.snapshots import SnapshotBuffer

__all__ = ["new_buffer"]


def new_buffer(
    config: KoopmanConfig,
    parameters: ParameterVector,
    partition: Partition,
    controller: Controller | None,
) -> SnapshotBuffer | MomentBuffer:
    """An empty window as ``config`` wants it, with the stride that ``controller`` begins with.

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
    window, adaptive = config.snapshots, controller is not None
    # A stride that sets itself may come to average, which takes a row more.
    stride = 2 if adaptive else config.first_stride
    average = adaptive or config.average is True
    buffer = SnapshotBuffer(
        parameters, window, stride=stride, average=average, offload=config.offload
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
    if controller is not None:
        buffer.clear(stride=controller.stride, average=controller.average)
    return buffer
