# SPDX-License-Identifier: BSD-3-Clause
"""KoopmanOperator: fit once, predict at many horizons."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from koopfast import _blocks, _complex, _device_fit, _ops, _single_weights, _spectrum, _views
from koopfast._device_fit import DeviceBlocks
from koopfast._options import FitOptions
from koopfast._reference import NON_FINITE, OK, STILL
from koopfast._single_weights import SingleWeights
from koopfast.errors import ConfigError
from koopfast.partition import Partition

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Choice", "KoopmanOperator", "Member"]


@dataclass(frozen=True)
class Member:
    """One of the operators whose weighted mean a block's operator is.

    Attributes:
        delays, block_average: what it observes.
        snapshots: how many of the window's last ones it is fitted to.
        weight: what its prediction counts; those of a block's members sum to one.
    """

    delays: int
    block_average: int
    snapshots: int
    weight: float


@dataclass(frozen=True)
class Choice:
    """What a block was fitted with, and how that did in the hindcast.

    Attributes:
        observables: "state" or "increments".
        delays: consecutive observables in one; the heaviest member's, where there are several.
        block_average: snapshots in a group whose mean is observed; likewise.
        estimator: "least_squares", "symmetric", "forward_backward" or "total_least_squares".
        rank: directions kept; 0 for a block that stands still.
        hindcast_error, trusted_horizon: the block's, as :class:`KoopmanOperator` says.
        members: what was fitted to a block for which something was chosen, heaviest first. Of
            several, the block's operator is the mean, in recorded intervals.
    """

    observables: str
    delays: int
    block_average: int
    estimator: str
    rank: int
    hindcast_error: float
    trusted_horizon: float
    members: tuple[Member, ...] = ()


class KoopmanOperator:
    """One linear operator a block of weights, fitted to their recorded evolution.

    Made by :meth:`fit`, or by :meth:`MomentBuffer.fit <koopfast.MomentBuffer.fit>` without a window
    of snapshots; :meth:`predict` applies powers of it. The operator keeps a reference to
    the snapshots, not a copy: they must stay as they are until the last prediction.

    Attributes:
        partition: the blocks.
        m: snapshots in the window.
        n: weights.
        observables: "state", "increments", or "auto" as asked for; see :meth:`chosen`.
    """

    def __init__(
        self,
        snapshots: Tensor,
        partition: Partition,
        table: _blocks.BlockTable | None,
        fitted: SingleWeights | DeviceBlocks | _blocks.FittedBlocks,
        *,
        observables: str,
        m: int,
    ) -> None:
        self.partition = partition
        self.observables = observables
        self.m, self.n = m, snapshots.shape[1]
        self._snapshots = snapshots  # all of them, or only the last where no block is dual
        self._table = table
        self._fit = fitted

    @property
    def status(self) -> Tensor:
        """int32, (n_blocks,): 0 fitted, 1 still (nothing to predict: the block's weights do not
        move, or no operator predicts them better than standing still), 2 a snapshot of the block
        is not finite, or so large that its square overflows."""
        return self._fit.status

    @property
    def rank(self) -> Tensor:
        """int64, (n_blocks,)."""
        return self._fit.rank

    @property
    def hindcast_error(self) -> Tensor:
        """float64, (n_blocks,): relative error of the displacement predicted for the window's last
        third from its first two; 1 where standing still did best, NaN where no hindcast was made
        (nothing is "auto", or the window is too short to split)."""
        return self._fit.hindcast_error

    @property
    def trusted_horizon(self) -> Tensor:
        """float64, (n_blocks,): recorded intervals up to which, in that hindcast, the predicted
        displacement was wrong by at most half of the true one at every single interval; at most
        as many as were predicted, 0 where not even the first, NaN where no hindcast was made."""
        return self._fit.trusted_horizon

    @property
    def _fitted(self) -> _blocks.FittedBlocks:
        return self._fit if isinstance(self._fit, _blocks.FittedBlocks) else self._fit.blocks

    @property
    def coefficients(self) -> dict[str, Tensor]:
        """All that was fitted, by name: with the snapshots it makes the predictions."""
        fit = self._fit.fitted if isinstance(self._fit, DeviceBlocks) else self._fit
        values = {f.name: getattr(fit, f.name) for f in dataclasses.fields(fit)}
        values.pop("snapshots", None)
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @coefficients.setter
    def coefficients(self, values: dict[str, Tensor]) -> None:
        fields: dict[str, Any] = dict(values)
        if isinstance(self._fit, DeviceBlocks):
            device = self._snapshots.device
            moved: dict[str, Any] = {name: value.to(device) for name, value in fields.items()}
            fitted = dataclasses.replace(self._fit.fitted, **moved)
            self._fit = dataclasses.replace(self._fit, fitted=fitted)
        else:
            self._fit = dataclasses.replace(self._fit, **fields)

    @classmethod
    def fit(
        cls,
        snapshots: Tensor | NDArray[np.generic],
        partition: Partition | None = None,
        *,
        auto: bool = False,
        observables: Literal["state", "increments", "auto"] = "increments",
        rank: int | float | Literal["auto", "gavish-donoho"] | None = "auto",
        tolerance: float | None = None,
        delays: int | Literal["auto"] = 1,
        block_average: int | Literal["auto"] = 1,
        ridge: float = 0.0,
        symmetric: bool = False,
        estimator: Literal["least_squares", "forward_backward", "total_least_squares", "auto"] = (
            "least_squares"
        ),
        method: Literal["gram", "qr"] = "gram",
        unstable: Literal["clip", "slow", "damp", "keep"] = "clip",
    ) -> KoopmanOperator:
        """Fit the operator of each block to recorded states.

        Args:
            snapshots: (m, n), a torch tensor or numpy array of float16, bfloat16, float32,
                float64, complex64 or complex128, one recorded state a row, in time order. Rows
                must be contiguous (other layouts are copied), row strides larger than n are fine.
                Complex states get complex operators with Hermitian inner products, fitted block
                after block in plain torch: some milliseconds a block.
            partition: the blocks (default: one block of all weights).
            auto: choose observables, rank, delays, block_average and estimator for each block from
                its own snapshots, as far as they are left at their defaults; each can also be
                "auto" by itself. Candidates are fitted to the window's first half, two thirds and
                five sixths and judged by the displacement they predict for the rest, in the
                small form: no pass over the weights is added, so the cost does not depend on
                their number. The best for each number of delays are combined: the block's
                operator predicts the mean of what they predict, weighted by the inverse of their
                errors and of what bounding their modes adds. docs/auto.md has the rule, what it
                was tested on, and what it costs.
            observables: "state", the weights w_t, as in the paper (U = F' F^+, section 3); or
                "increments", d_t = w_{t+1} - w_t, so that w_{m+T} = w_m + sum_k A^k d_last. The
                second is the same as an affine operator and the more accurate where training is
                smooth. "auto" tries both.
            rank: the most directions a block keeps; None for all above the tolerance; "auto" for
                the number that predicts the window's last third best from its first two, with
                none (the block stands still) where nothing predicts it (with other options "auto"
                as well, the rank is chosen together with them); a float between 0 and 1
                for as few as hold that fraction of the energy (the sum of the squared singular
                values of F); "gavish-donoho" for those above the optimal hard threshold for
                noise of unknown strength, omega(beta) times the median singular value of F, beta
                its aspect ratio, omega by the cubic fit of Gavish & Donoho (2014), IEEE Trans.
                Inf. Theory 60(8). By that rule a single direction is never told from noise: a
                block with one weight or one pair stands still. The tolerance always applies.
            tolerance: directions whose singular value is below this share of the largest are
                noise. Default 1e-7 for "gram", 1e-13 for "qr".
            delays: q >= 1 consecutive observables in one (Hankel DMD); momentum needs q >= 2.
                "auto" tries 1, 2, 4 and 8.
            block_average: a >= 1: observe the means of a consecutive snapshots, against noise.
                Groups are counted from the last snapshot back. A mean stands for the middle of its
                group, so T recorded intervals are (T + (a - 1) / 2) / a groups, and eigenvalues
                are those of a group. "auto" tries powers of two.
            ridge: Tikhonov regularisation: the operator minimises |U F - F'|^2 + alpha |U|^2 with
                alpha = ridge * sigma_1^2, sigma_1 the largest singular value of the block's F. A
                direction of singular value sigma is damped by sigma^2 / (sigma^2 + alpha).
            symmetric: fit a self-adjoint operator (symmetric Procrustes, Higham 1988; Hermitian
                for complex states): real spectrum, as the gradient flow of a loss has near a
                minimum.
            estimator: how the operator is fitted to noisy snapshots. "least_squares" (exact DMD, Tu
                et al. 2014) takes the noise of F for motion, and its eigenvalues shrink.
                "forward_backward" (Dawson, Hemati, Williams & Rowley 2016, Exp. Fluids 57:42)
                cancels that against a fit backwards in time, A = (A_f A_b^-1)^(1/2) with the root
                closest to A_f. "total_least_squares" (Hemati, Rowley, Deem & Cattafesta 2017,
                Theor. Comput. Fluid Dyn. 31) projects F and F' on the leading right singular
                vectors of [F; F'] first. A block where one of them does not exist gets least
                squares: where the backward operator is singular, or has no real root, or more
                than one that fits (A_f has eigenvalues lambda and -lambda, or no eigenbasis);
                where those singular vectors have equals beyond the rank. "auto" tries total least
                squares and the self-adjoint operator beside least squares. Only least squares goes
                with ``symmetric``, and no ``ridge`` with "forward_backward".
            method: "gram" squares the observables into Gram matrices, summed in double: one read
                of the snapshots, and directions below about 1e-7 of the largest are lost. "qr"
                works on orthogonal factors (TSQR, Demmel et al. 2012), exact to about 1e-15, for
                several times the work.
            unstable: "clip" moves eigenvalues from outside the unit circle onto it, so that no
                prediction grows exponentially (where a block's eigenbasis is ill-conditioned, all
                of its operator is scaled by the spectral radius instead); "slow", of operators
                that are chosen ("auto"), lets what grows grow by a factor e over the stretch that
                they are fitted to, and moves what is faster to that; "damp" reflects them inside
                (lambda / |lambda|^2), so that what grew decays; "keep" leaves the least-squares
                operator as it is (the paper's).

        Raises:
            ConfigError: an argument is none of the above, the partition does not fit the
                snapshots, or there are too few snapshots (2 for "state", 3 for "increments", and
                one more for each delay beyond the first; as many times that as are averaged).

        A snapshot that is not finite is no error here: see ``status``.

        >>> import torch, koopfast
        >>> halving = 2.0 ** -torch.arange(6, dtype=torch.float64)
        >>> snapshots = torch.stack((halving, 3 - halving), dim=1)
        >>> operator = koopfast.KoopmanOperator.fit(snapshots)
        >>> operator.predict([1, float("inf")])
        tensor([[0.0156, 2.9844],
                [0.0000, 3.0000]], dtype=torch.float64)
        """
        if not isinstance(auto, bool):
            raise ConfigError(f"auto: expected True or False, got {auto!r}")
        if auto:
            observables = "auto" if observables == "increments" else observables
            delays = "auto" if delays == 1 else delays
            block_average = "auto" if block_average == 1 else block_average
            if estimator == "least_squares" and not symmetric:
                estimator = "auto"
        options = FitOptions(
            observables=observables,
            delays=delays,
            block_average=block_average,
            rank=rank,
            tolerance=tolerance,
            method=method,
            ridge=ridge,
            symmetric=symmetric,
            estimator=estimator,
            unstable=unstable,
        )
        states = _views.as_snapshots(snapshots)
        m, n = states.shape
        if partition is None:
            partition = Partition.from_segments([[(0, n)]], n)
        elif not isinstance(partition, Partition):
            raise ConfigError(
                f"partition: expected a Partition or None, got {type(partition).__name__}"
            )
        elif partition.n != n:
            raise ConfigError(
                f"partition: it covers {partition.n} weights, but the snapshots have {n} (shape "
                f"({m}, {n})); make both from the same parameters"
            )
        if m < options.least_snapshots:
            raise ConfigError(
                f"snapshots: observables={observables!r} with delays={delays} and "
                f"block_average={block_average} need at least {options.least_snapshots} recorded "
                f"states, got {m}"
            )
        table: _blocks.BlockTable | None = None
        fitted: SingleWeights | DeviceBlocks | _blocks.FittedBlocks
        if states.is_complex():
            fitted = _complex.operator_fit(states, partition, options)
        elif _single_weights.fits(states, partition, options):
            fitted = SingleWeights.fit(states, partition, options)
        else:
            table = _blocks.BlockTable.of(partition)
            on_device = _device_fit.fits(states, table, options)
            fit = DeviceBlocks.fit if on_device else _ops.operator_fit
            fitted = fit(states, table, options)
        return cls(states, partition, table, fitted, observables=options.observables, m=m)

    def predict(self, horizons: ArrayLike, *, out: Tensor | None = None) -> Tensor:
        """Weights at each horizon, (len(horizons), n), in the snapshots' dtype and on their device.

        Args:
            horizons: one or several numbers of recorded intervals after the last snapshot (steps =
                horizon x stride), at most 2**53. 0 is the last snapshot itself, to the last bit;
                fractions take the principal power, ``math.inf`` the limit.
            out: a tensor of that shape, dtype and device to write to, with contiguous rows and
                memory of its own.

        Whole blocks are NaN where a snapshot was not finite, at ``math.inf`` where there is no
        limit (an eigenvalue within 1e-9 of the unit circle or outside; for "state" and a block
        with a well-conditioned eigenbasis, 1 itself is a limit), and where a power overflows.
        Fractional horizons are linear between the whole ones in a block without a
        well-conditioned eigenbasis, and for "state" up to the first interval.

        Raises:
            ConfigError: a horizon is negative, NaN or too large, or ``out`` does not fit.
        """
        wanted = _ops.check_horizons(horizons)
        shape, like = (len(wanted), self.n), self._snapshots
        if out is None:
            out = torch.empty(shape, dtype=like.dtype, device=like.device)
        elif (out.shape, out.dtype, out.device) != (torch.Size(shape), like.dtype, like.device):
            raise ConfigError(
                f"out: expected {shape} {like.dtype} on {like.device}, "
                f"got {tuple(out.shape)} {out.dtype} on {out.device}"
            )
        elif (self.n > 1 and out.stride(1) != 1) or (len(out) > 1 and out.stride(0) < self.n):
            raise ConfigError(f"out: expected contiguous rows, got strides {out.stride()}")
        elif out.requires_grad or out.is_neg() or out.is_conj():
            raise ConfigError("out: expected a plain tensor; pass out.detach() or a new one")
        elif out.untyped_storage().data_ptr() == like.untyped_storage().data_ptr():
            raise ConfigError("out: it shares its memory with the snapshots; pass a new tensor")
        self._write(wanted, out)
        return out

    def _write(self, wanted: list[float], out: Tensor) -> None:
        """The weights at horizons in recorded intervals, to the rows of ``out``."""
        like = self._snapshots
        if not isinstance(self._fit, _blocks.FittedBlocks):
            self._fit.predict(wanted, out)
        elif like.is_complex():
            _complex.predict(
                like, self.partition, self._fit, wanted, out, observables=self.observables
            )
        else:
            table = _blocks.BlockTable.of(self.partition) if self._table is None else self._table
            _ops.predict(like, table, self._fit, wanted, out)

    @property
    def n_blocks(self) -> int:
        """How many blocks there are."""
        return self.partition.n_blocks

    @property
    def ok(self) -> bool:
        """Whether every block was fitted or stands still."""
        return not bool((self._statuses == NON_FINITE).any())

    @property
    def still(self) -> bool:
        """Whether no block has anything to predict."""
        return not bool((self._statuses == OK).any())

    @property
    def _statuses(self) -> NDArray[np.int32]:
        """The status of each block as numpy has it, which looks at a few sooner than torch."""
        statuses: NDArray[np.int32] = self.status.cpu().numpy()
        return statuses

    def failure(self) -> str | None:
        """One sentence on why the operator cannot be used, or None where it can."""
        bad = np.flatnonzero(self._statuses == NON_FINITE)
        if len(bad) > 0:
            first = int(bad[0])
            names = self.partition.names
            which = f" ({names[first]})" if names is not None else ""
            return (
                f"the snapshots of {len(bad)} of {self.n_blocks} blocks are not finite (or their "
                f"squares overflow), the first of them block {first}{which}"
            )
        if self.still:
            return "no block moves in a way that any operator predicts"
        return None

    def chosen(self, block: int) -> Choice:
        """What one block was fitted with, chosen from its snapshots or given."""
        fitted = self._fitted
        members = tuple(
            Member(int(delays), int(average), int(snapshots), weight)
            for delays, average, snapshots, weight in fitted.mixture[block].tolist()
            if weight > 0
        )
        return Choice(
            observables="increments" if fitted.increments[block] else "state",
            delays=int(fitted.delays[block]),
            block_average=members[0].block_average if members else int(fitted.block_average[block]),
            estimator=_ops.ESTIMATOR_NAMES[int(fitted.estimator[block])],
            rank=int(self.rank[block]),
            hindcast_error=float(self.hindcast_error[block]),
            trusted_horizon=float(self.trusted_horizon[block]),
            members=members,
        )

    @property
    def eigenvalues(self) -> Tensor:
        """Eigenvalues of all blocks, one block after another, (sum of ranks,) complex128.

        They are per recorded interval, or per group of ``block_average`` of them, after clipping
        where asked for.
        """
        fitted = self._fitted.with_spectrum
        return fitted.eigenvalues[_blocks.ragged(fitted.vector_offsets, self.rank)]

    def eigenvalues_of(self, block: int) -> Tensor:
        """Eigenvalues of one block, (rank,) complex128."""
        start = int(self._fitted.vector_offsets[block])
        return self._fitted.with_spectrum.eigenvalues[start : start + int(self.rank[block])]

    @property
    def singular_values(self) -> Tensor:
        """Singular values of all blocks' observables F, one block after another, float64.

        Each block has as many as its rank can be at most (see :meth:`singular_values_of`).
        """
        return self._fitted.with_singular_values.singular_values

    def singular_values_of(self, block: int) -> Tensor:
        """The leading singular values of a block's observables, descending, float64."""
        first, end = self._fitted.singular_offsets[block : block + 2].tolist()
        return self._fitted.with_singular_values.singular_values[first:end]

    def modes_of(self, block: int, *, expand: bool = False) -> Tensor:
        """Koopman modes of one block, a column each, complex128; NaN without an eigenbasis.

        With eigenvalues lambda_i and :meth:`amplitudes_of` a_i, mode i contributes
        ``mode_i a_i lambda_i^(T-1)`` to "state" predictions, and
        ``mode_i a_i (1 + lambda_i + ... + lambda_i^(T-1))`` to the displacement that is predicted
        from "increments". Modes are Phi W (exact DMD, Tu et al. 2014), the columns of W of unit
        length.

        Args:
            block: which one.
            expand: give weights, (n_b, rank), in the order of the block's segments. Otherwise a
                block of more weights than snapshots gives (m, rank) coefficients, with which the
                snapshots are to be summed; reading no snapshot, that costs nothing of their size.
                A smaller block keeps weights, and gives them in either case.
        """
        own = _spectrum.modes(self._fitted.with_spectrum, block)
        if not expand or not self._fitted.dual[block]:
            return own
        return _spectrum.expanded(own, self._snapshots, self.partition.block(block))

    def amplitudes_of(self, block: int) -> Tensor:
        """How much of each mode the last snapshot holds, (rank,) complex128.

        NaN where the block has no well-conditioned eigenbasis. See :meth:`modes_of`.
        """
        return _spectrum.amplitudes(self._fitted.with_spectrum, block)

    def time_constants_of(self, block: int) -> Tensor:
        """Recorded intervals in which each mode falls to 1/e, -1 / log |lambda|, (rank,) float64.

        Infinite on the unit circle; outside it negative, the time in which the mode grows by e.
        """
        groups = _spectrum.time_constants(self.eigenvalues_of(block))
        return groups * int(self._fitted.block_average[block])

    def plot(self) -> Figure:
        """A new matplotlib figure of all eigenvalues and the unit circle.

        It belongs to nobody: save it with ``savefig``, or show it by returning it in a notebook.

        Raises:
            KoopfastError: matplotlib is not installed (``pip install 'koopfast[plots]'``).
        """
        from koopfast import report

        with report.drawing_style():
            figure = report.new_figure(4.2, 4.2)
            ax = figure.subplots()
            thinned = report.plot_eigenvalues(ax, self)
            ax.set(ylabel="imaginary part", title=f"{self.n_blocks} blocks, {self.observables}")
            if thinned:
                ax.set_title(f"{self.n_blocks} blocks, {self.observables}, not all drawn")
        return figure

    def __repr__(self) -> str:
        still = int((self.status == STILL).sum())
        return (
            f"KoopmanOperator({self.m} snapshots of {self.n} weights, {self.n_blocks} blocks "
            f"({still} still), {self.observables}, ranks {int(self.rank.min())} to "
            f"{int(self.rank.max())})"
        )
