# SPDX-License-Identifier: BSD-3-Clause
"""Operators of one weight each: two numbers a block, all fitted and raised in one pass.

A million blocks would be a million of everything in :class:`koopfast._blocks.FittedBlocks`. Here
what follows from the two numbers is made when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from koopfast import _blocks, _device, _native, _ops, _views
from koopfast._options import FitOptions
from koopfast._reference import NON_FINITE, OK, STILL
from koopfast.partition import Partition


def fits(snapshots: Tensor, partition: Partition, options: FitOptions) -> bool:
    """Whether these blocks can be fitted so: least squares of single weights."""
    return (
        partition.n_blocks == partition.n
        and (snapshots.device.type == "cpu" or _device.usable(snapshots.device))
        and options.method == "gram"
        and options.delays == 1
        and options.block_average == 1
        and options.observables != "auto"
        and options.estimator == "least_squares"
        and options.rank not in ("auto", "gavish-donoho")
    )


@dataclass(frozen=True)
class SingleWeights:
    """One factor a weight: o_{t+1} = factor o_t."""

    snapshots: Tensor  # (m, n), not a copy
    partition: Partition
    increments: bool
    estimator: int  # of operator_fit.h
    squares: Tensor  # float64 (n,), by weight: the sum of o_t^2 over the pairs; with the snapshots
    factors: Tensor  # float64 (n,), by weight, likewise

    @classmethod
    def fit(cls, snapshots: Tensor, partition: Partition, options: FitOptions) -> SingleWeights:
        n, device = snapshots.shape[1], snapshots.device
        squares, factors = (torch.empty(n, dtype=torch.float64, device=device) for _ in range(2))
        arguments = (
            _views.view(snapshots),
            options.increments,
            options.ridge,
            _ops.UNSTABLE[options.unstable],
            squares.data_ptr(),
            factors.data_ptr(),
        )
        if _device.usable(device):
            with _device.current(device):
                _device.native.cuda_single_weight_fit(*arguments, _device.stream(device))
        else:
            _native.single_weight_fit(*arguments, _views.thread_count())
        code = _ops.estimator_code(options)
        return cls(snapshots, partition, options.increments, code, squares, factors)

    def predict(self, horizons: Sequence[float], out: Tensor) -> None:
        """Write the weights at each horizon (recorded intervals) to the rows of ``out`` (k, n)."""
        device = self.snapshots.device
        wanted = _views.sent(torch.tensor(horizons, dtype=torch.float64, device="cpu"), device)
        arguments = (
            _views.view(self.snapshots),
            self.increments,
            self.squares.data_ptr(),
            self.factors.data_ptr(),
            wanted.data_ptr(),
            len(wanted),
            out.data_ptr(),
            max(out.shape[1], out.stride(0)),
        )
        if _device.usable(device):
            with _device.current(device):
                _device.native.cuda_single_weight_predict(*arguments, _device.stream(device))
        else:
            _native.single_weight_predict(*arguments, _views.thread_count())

    @cached_property
    def status(self) -> Tensor:
        """int32 (n_blocks,)"""
        still = torch.where(self.squares == 0, STILL, OK)
        status = torch.where(self.squares.isfinite(), still, NON_FINITE).to(torch.int32)
        return self._by_block(status)

    @cached_property
    def rank(self) -> Tensor:
        """int64 (n_blocks,)"""
        return (self.status == OK).long()

    @cached_property
    def hindcast_error(self) -> Tensor:
        """float64 (n_blocks,), NaN: none was made"""
        return torch.full((len(self.squares),), math.nan, dtype=torch.float64, device="cpu")

    @property
    def trusted_horizon(self) -> Tensor:
        """float64 (n_blocks,), NaN: none was made"""
        return self.hindcast_error

    @cached_property
    def blocks(self) -> _blocks.FittedBlocks:
        """The same as any other blocks, to look at."""
        index = torch.arange(len(self.squares), device="cpu")
        factors, usable = self._by_block(self.factors), self.rank.bool()
        latest = self.snapshots[-1].double()
        if self.increments:
            latest = latest - self.snapshots[-2].double()
        start = self._by_block(latest)
        values = torch.where(usable, factors, torch.zeros_like(factors))
        sigma = torch.where(usable, self._by_block(self.squares).sqrt(), torch.zeros_like(start))
        ones = torch.ones_like(index)
        return _blocks.FittedBlocks(
            dual=torch.zeros_like(usable),
            rows=ones,
            capacity=ones,
            vector_offsets=index,
            matrix_offsets=index,
            lift_offsets=index,
            status=self.status,
            rank=self.rank,
            spectrum=torch.full_like(self.status, _blocks.USABLE_SPECTRUM),
            hindcast_error=self.hindcast_error,
            trusted_horizon=self.trusted_horizon,
            increments=torch.full_like(self.status, int(self.increments)),
            delays=ones,
            block_average=ones,
            estimator=torch.full_like(self.status, self.estimator),
            mixture=torch.zeros((len(index), 0, 4), dtype=torch.float64, device="cpu"),
            origin_offsets=torch.zeros_like(index),
            singular_values=sigma,
            singular_offsets=torch.arange(len(index) + 1, device="cpu"),
            operators=values,
            start=start,
            lifts=values,
            grams=values.new_empty(0),
            origins=values.new_empty(0),
            eigenvalues=values.to(torch.complex128),
            eigenvectors=torch.ones_like(values, dtype=torch.complex128),
            amplitudes=start.to(torch.complex128),
        )

    def _by_block(self, by_weight: Tensor) -> Tensor:
        return by_weight.cpu()[self.partition.segment_starts]
