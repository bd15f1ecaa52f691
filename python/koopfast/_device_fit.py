# SPDX-License-Identifier: BSD-3-Clause
"""Operators of many blocks fitted and raised where the snapshots are, on a CUDA device.

For what second moments are enough for and matrices of up to order 64. On the host are: everything
that is chosen by hindcast, QR factors, larger matrices; blocks whose eigenvalues the device's QR
algorithm did not find (their matrices go there and back); fractional horizons and limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from koopfast import _blocks, _device, _native, _ops, _views
from koopfast._device import ChunkPlan
from koopfast._options import FitOptions

# The largest matrices of a block.
_MOST_ORDER = 64
# What the teams of a launch may work in together, and how many of them there are at most.
_WORKSPACE_BYTES, _MOST_TEAMS = 1 << 28, 4096
# kUnbounded of small_fit.h.
_UNBOUNDED = -3


def fits(snapshots: Tensor, table: _blocks.BlockTable, options: FitOptions) -> bool:
    """Whether these blocks can be fitted so."""
    m = snapshots.shape[0]
    if not (_ops.fits_from_moments(options) and options.delays != "auto" and m <= _MOST_ORDER):
        return False
    primal = table.sizes[table.sizes <= m]
    small = len(primal) == 0 or int(primal.max()) * int(options.delays) <= _MOST_ORDER
    return small and _device.usable(snapshots.device)


@dataclass(frozen=True)
class _Selection:
    """The blocks of one form, on the host and on the device."""

    dual: bool
    blocks: Tensor  # int64, host
    plan: ChunkPlan


@dataclass(frozen=True)
class DeviceBlocks:
    """Every block's small form, on the device of the snapshots."""

    snapshots: Tensor  # (m, n), not a copy
    table: _blocks.BlockTable
    fitted: _blocks.FittedBlocks  # on the device
    capacity: Tensor  # int64 (n_blocks,), host
    selections: tuple[_Selection, ...]

    @classmethod
    def fit(cls, snapshots: Tensor, table: _blocks.BlockTable, options: FitOptions) -> DeviceBlocks:
        m, device, sizes = snapshots.shape[0], snapshots.device, table.sizes
        dual = sizes > m
        capacity = _ops.rank_capacity(options, m, sizes)
        rows = torch.where(dual, m, sizes)
        fitted = _blocks.Layout.of(dual, rows, capacity, device=device).room()
        selections = []
        for form in (True, False):
            blocks = torch.nonzero(dual == form).flatten()
            # Gram matrices are dropped once a batch of them is fitted.
            for some in _ops.dual_batches(blocks, m):
                selection = _Selection(form, some, ChunkPlan.of(sizes, some, m, device))
                _fit_selection(snapshots, table, selection, options, fitted)
                selections.append(selection)
        if options.unstable != "keep":
            _bound_spectra(fitted, capacity, options)
            _bound_on_host(fitted, dual, capacity, sizes.clamp(max=m), options)
        return cls(snapshots, table, fitted, capacity, tuple(selections))

    def predict(self, horizons: Sequence[float], out: Tensor) -> None:
        """Write the weights at each horizon (recorded intervals) to the rows of ``out`` (k, n)."""
        if not all(h.is_integer() for h in horizons):  # infinity is none
            _ops.predict(self.snapshots, self.table, self.blocks, horizons, out)
            return
        step = _ops.horizons_at_once(out.shape[1])
        for first in range(0, len(horizons), step):
            wanted = torch.tensor(horizons[first : first + step], dtype=torch.float64, device="cpu")
            for selection in self.selections:
                powers = self._power(selection, _views.sent(wanted, out.device))
                _device.combine(
                    self.snapshots,
                    self.table,
                    selection.plan,
                    selection.dual,
                    powers,
                    out[first : first + step],
                )

    @cached_property
    def status(self) -> Tensor:
        """int32 (n_blocks,), on the host"""
        return self.fitted.status.cpu()

    @cached_property
    def rank(self) -> Tensor:
        """int64 (n_blocks,), on the host"""
        return self.fitted.rank.cpu()

    @cached_property
    def hindcast_error(self) -> Tensor:
        """float64 (n_blocks,), NaN: none was made"""
        return self.fitted.hindcast_error.cpu()

    @property
    def trusted_horizon(self) -> Tensor:
        """float64 (n_blocks,), NaN: none was made"""
        return self.hindcast_error

    @cached_property
    def blocks(self) -> _blocks.FittedBlocks:
        """The same on the host, to look at."""
        fields = dataclasses.fields(self.fitted)
        return dataclasses.replace(
            self.fitted, **{f.name: getattr(self.fitted, f.name).cpu() for f in fields}
        ).repacked()

    def _power(self, selection: _Selection, horizons: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        device, k = horizons.device, len(horizons)
        blocks, count = selection.plan.blocks, len(selection.blocks)
        m = self.snapshots.shape[0]
        rows = self.table.sizes[selection.blocks].clamp(max=m)
        offsets = _views.sent(_blocks.starts(rows * k), device)
        values = torch.empty(int(rows.sum()) * k, dtype=torch.float64, device=device)
        base = torch.empty((count, k), dtype=torch.float64, device=device)
        most = int(self.capacity[selection.blocks].max())
        each = _device.native.cuda_operator_power_workspace(most, k)
        workspace, teams = _workspace(each, count, device)
        own, addresses = self.fitted.selected(blocks)
        row_counts = _views.sent(rows, device)
        with _device.current(device):
            _device.native.cuda_operator_power(
                addresses,
                row_counts.data_ptr(),
                count,
                selection.dual,
                horizons.data_ptr(),
                k,
                offsets.data_ptr(),
                values.data_ptr(),
                base.data_ptr(),
                most,
                workspace.data_ptr(),
                teams,
                _device.stream(device),
            )
        del own
        return values, offsets, base


def _workspace(each: int, count: int, device: torch.device) -> tuple[Tensor, int]:
    """Room for teams that need ``each`` doubles, and how many of them."""
    teams = max(1, min(count, _MOST_TEAMS, _WORKSPACE_BYTES // (8 * max(each, 1))))
    return torch.empty(teams * each, dtype=torch.float64, device=device), teams


def _fit_selection(
    snapshots: Tensor,
    table: _blocks.BlockTable,
    selection: _Selection,
    options: FitOptions,
    fitted: _blocks.FittedBlocks,
) -> None:
    m, device, count = snapshots.shape[0], snapshots.device, len(selection.blocks)
    sizes, delays = table.sizes[selection.blocks], int(options.delays)
    pairs = m - options.increments - delays
    if selection.dual:
        rows = "increments" if options.increments else "states"
        source = _device.snapshot_gram(snapshots, table, selection.plan, _ops.ROWS[rows])
        source_offsets = m * m * torch.arange(count, device="cpu")
        newest = torch.empty(0, dtype=torch.float64, device=device)
        newest_offsets = source_offsets
        most = pairs
    else:
        source, source_offsets, newest, newest_offsets = _moments(
            snapshots, table, selection, sizes, options
        )
        most = int(sizes.max()) * delays
    workspace, teams = _workspace(_device.native.cuda_operator_fit_workspace(most), count, device)
    own, addresses = fitted.selected(selection.plan.blocks)
    index = [_views.sent(t, device) for t in (sizes, source_offsets, newest_offsets)]
    with _device.current(device):
        _device.native.cuda_operator_fit(
            (
                selection.dual,
                count,
                m,
                pairs,
                most,
                index[0].data_ptr(),
                source.data_ptr(),
                index[1].data_ptr(),
                newest.data_ptr(),
                index[2].data_ptr(),
            ),
            _ops.packed_options(options),
            addresses,
            workspace.data_ptr(),
            teams,
            _device.stream(device),
        )
    fitted.keep(selection.plan.blocks, own)


def _moments(
    snapshots: Tensor,
    table: _blocks.BlockTable,
    selection: _Selection,
    sizes: Tensor,
    options: FitOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K of every block and where it begins, and the same of the newest observables."""
    device, delays = snapshots.device, int(options.delays)
    areas, stacked = ((delays + 1) * sizes) ** 2, delays * sizes
    offsets, newest_offsets = _blocks.starts(areas), _blocks.starts(stacked)
    moments = torch.empty(int(areas.sum()), dtype=torch.float64, device=device)
    newest = torch.empty(int(stacked.sum()), dtype=torch.float64, device=device)
    index = [_views.sent(t, device) for t in (offsets, newest_offsets)]
    with _device.current(device):
        _device.native.cuda_snapshot_moments(
            _views.view(snapshots),
            table.addresses(device),
            selection.plan.blocks.data_ptr(),
            len(sizes),
            options.increments,
            delays,
            index[0].data_ptr(),
            moments.data_ptr(),
            index[1].data_ptr(),
            newest.data_ptr(),
            _device.stream(device),
        )
    return moments, offsets, newest, newest_offsets


def _bound_spectra(fitted: _blocks.FittedBlocks, capacity: Tensor, options: FitOptions) -> None:
    """Move eigenvalues into the unit disc."""
    device, count, most = fitted.rank.device, len(capacity), int(capacity.max())
    native = _device.native
    workspace, teams = _workspace(native.cuda_bound_spectra_workspace(most), count, device)
    everything = torch.arange(count, device=device)
    own, addresses = fitted.selected(everything)
    with _device.current(device):
        native.cuda_bound_spectra(
            addresses,
            fitted.rows.data_ptr(),
            count,
            _ops.UNSTABLE[options.unstable],
            most,
            workspace.data_ptr(),
            teams,
            _device.stream(device),
        )
    fitted.keep(everything, own)


def _bound_on_host(
    fitted: _blocks.FittedBlocks, dual: Tensor, capacity: Tensor, rows: Tensor, options: FitOptions
) -> None:
    """The same on the host, for the blocks that were left.

    Waits for the device, as whoever asks for a status would.
    """
    blocks = torch.nonzero(fitted.spectrum.cpu() == _UNBOUNDED).flatten()
    if len(blocks) == 0:
        return
    device, own = fitted.spectrum.device, capacity[blocks]
    host = _blocks.Layout.of(dual[blocks], rows[blocks], own).room()
    places = {
        "operators": _blocks.ragged(_blocks.starts(capacity**2)[blocks], own**2),
        "lifts": _blocks.ragged(_blocks.starts(rows * capacity)[blocks], rows[blocks] * own),
        "start": _blocks.ragged(_blocks.starts(capacity)[blocks], own),
    }
    places |= {"eigenvalues": places["start"], "amplitudes": places["start"]}
    places["eigenvectors"] = places["operators"]
    there = {name: place.to(device) for name, place in places.items()}
    for name in ("operators", "lifts", "start"):
        getattr(host, name).copy_(getattr(fitted, name)[there[name]])
    chosen = blocks.to(device)
    host.rank.copy_(fitted.rank[chosen])
    everything = torch.arange(len(blocks), device="cpu")
    results, addresses = host.selected(everything)
    own_rows = rows[blocks]
    _native.operator_bound(
        addresses,
        own_rows.data_ptr(),
        len(blocks),
        _ops.UNSTABLE[options.unstable],
        _views.thread_count(),
    )
    fitted.spectrum[chosen] = results["spectrum"].to(device)
    for name in ("operators", "lifts", "eigenvalues", "eigenvectors", "amplitudes"):
        getattr(fitted, name)[there[name]] = getattr(host, name).to(device)
