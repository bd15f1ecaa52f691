# SPDX-License-Identifier: BSD-3-Clause
"""Any iterative method: the engine of the trainer over a plain fixed-point iteration x -> step(x).

With the increments as observables and an infinite horizon, a prediction is the fixed point of the
fitted affine map: Krylov or minimal-polynomial extrapolation (Sidi 2017, Vector Extrapolation
Methods with Applications).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from koopfast._checks import whole
from koopfast._options import FitOptions
from koopfast.errors import ConfigError
from koopfast.operator import KoopmanOperator
from koopfast.partition import Partition
from koopfast.snapshots import SnapshotBuffer

__all__ = ["Acceleration", "MinimizeCallback", "accelerate"]

_Array = TypeVar("_Array", Tensor, NDArray[Any])
# Windows ahead: the limit first, which is what is wanted, then what a bad fit may still get right.
_WINDOWS = (math.inf, 8.0, 1.0)


@dataclass(frozen=True)
class Acceleration(Generic[_Array]):
    """What became of an accelerated iteration.

    Attributes:
        x: the last iterate, an array or tensor as ``x0`` was.
        converged: whether the last residual is at most the tolerance.
        iterations: steps that were part of the iteration: all evaluations but those of predictions
            that were refused.
        evaluations: calls of ``step``, refused predictions included; the true cost.
        jumps_accepted, jumps_refused: windows after which a prediction was kept, or none was.
        residuals: |step(x) - x| of each evaluation that was kept, in order.
    """

    x: _Array
    converged: bool
    iterations: int
    evaluations: int
    jumps_accepted: int
    jumps_refused: int
    residuals: tuple[float, ...]


def accelerate(
    step: Callable[[_Array], _Array],
    x0: _Array,
    *,
    tolerance: float = 1e-8,
    max_evaluations: int = 10_000,
    window: int = 8,
    partition: Partition | None = None,
    **fit: Any,
) -> Acceleration[_Array]:
    """Iterate x -> ``step(x)`` to its fixed point, with a jump after each ``window`` iterates.

    After each window an operator is fitted to its iterates and the limit is predicted, then
    nearer states. A prediction z is kept if its residual |step(z) - z| is below the last one;
    ``step(z)`` is then the next iterate, so a kept prediction costs no evaluation. Where none is
    kept, the iteration goes on from where it was.

    Args:
        step: one iteration; it returns a new array of the same shape and dtype and leaves its
            argument alone.
        x0: numpy array or torch tensor, float32 or float64, of any shape.
        tolerance: on the Euclidean norm of the residual.
        max_evaluations: calls of ``step`` after which it ends without convergence.
        window: iterates in a fit, at least 3.
        partition: blocks of the flattened x (default: one).
        **fit: options of :meth:`koopfast.KoopmanOperator.fit`; all directions are kept
            (``rank=None, method="qr"``) unless they say otherwise.

    Raises:
        ConfigError: an argument cannot work, or ``step`` returned something of another shape.
        Exception: whatever ``step`` raises.

    Example:
        >>> import numpy as np, koopfast
        >>> a, b = np.array([[0.9, 0.1], [0.0, 0.99]]), np.array([1.0, 1.0])
        >>> result = koopfast.accelerate(lambda x: a @ x + b, np.zeros(2))
        >>> result.converged, result.evaluations < 20
        (True, True)
        >>> np.allclose(result.x, [110.0, 100.0])
        True
    """
    state = _State(x0)
    options = FitOptions(**{"rank": None, "method": "qr", **fit})
    window = whole("window", window, options.least_snapshots, " iterates")
    most = whole("max_evaluations", max_evaluations, 1)
    least: Any = tolerance
    if isinstance(least, bool) or not isinstance(least, (int, float)) or not least >= 0:
        raise ConfigError(f"tolerance: expected a number of 0 or more, got {tolerance!r}")
    iterate = state.flat(x0).clone()
    buffer = SnapshotBuffer([iterate], capacity=window)
    buffer.record()
    residuals: list[float] = []
    evaluations = accepted = refused = 0

    def evaluate(x: Tensor) -> tuple[Tensor, float]:
        nonlocal evaluations
        evaluations += 1
        after = state.flat(step(state.shaped(x)), "step").clone()
        return after, float((after - x).norm())

    while evaluations < most:
        after, residual = evaluate(iterate)
        residuals.append(residual)
        iterate.copy_(after)
        buffer.record()
        if residual <= tolerance or not math.isfinite(residual):
            break
        if not buffer.full:
            continue
        kept = False
        for z in _predictions(buffer, partition, options):
            if evaluations == most:
                break
            after, trial = evaluate(z)
            if trial < residuals[-1]:
                residuals.append(trial)
                buffer.clear()
                iterate.copy_(z)
                buffer.record()
                iterate.copy_(after)
                buffer.record()
                kept = True
                break
        accepted += kept
        refused += not kept
        if not kept:
            buffer.clear()
            buffer.record()
        elif residuals[-1] <= tolerance:
            break
    return Acceleration(
        x=state.shaped(iterate),
        converged=residuals[-1] <= tolerance,
        iterations=len(residuals),
        evaluations=evaluations,
        jumps_accepted=accepted,
        jumps_refused=refused,
        residuals=tuple(residuals),
    )


class MinimizeCallback:
    """Jumps for ``scipy.optimize.minimize``, as its ``callback``, for any method that takes one.

    It records the iterates. After each window it predicts, evaluates ``fun`` at the predictions,
    and stops the method (by StopIteration) if one of them has a lower value; :meth:`run` then
    starts the method again from there. Methods that keep Krylov information themselves (CG, BFGS)
    lose it at each start and rarely gain.

    Args:
        fun: the function that is minimised, x -> float.
        window: iterates in a fit.
        **fit: options of :meth:`koopfast.KoopmanOperator.fit`.

    Attributes:
        evaluations: calls of ``fun`` at predictions; they come on top of the method's own.
        jumps_accepted: how often the method was started again.

    Example:
        >>> from scipy.optimize import minimize, rosen, rosen_der
        >>> callback = MinimizeCallback(rosen)
        >>> method = {"method": "CG", "jac": rosen_der, "options": {"maxiter": 500}}
        >>> start = [-1.2, 1.0]
        >>> result = callback.run(lambda x: minimize(rosen, x, callback=callback, **method), start)
        >>> result.success
        True
    """

    def __init__(self, fun: Callable[[NDArray[Any]], Any], *, window: int = 8, **fit: Any) -> None:
        self._fun = fun
        self._options = FitOptions(**{"rank": None, "method": "qr", **fit})
        self._window = whole("window", window, self._options.least_snapshots, " iterates")
        self._buffer: SnapshotBuffer | None = None
        self._iterate = torch.empty(0, device="cpu")
        self._better: NDArray[Any] | None = None
        self.evaluations = 0
        self.jumps_accepted = 0

    def run(self, minimize: Callable[[NDArray[Any]], Any], x0: Any) -> Any:
        """``minimize(x0)``, begun anew at each better prediction; returns its last result."""
        x = np.array(x0, dtype=np.float64)
        while True:
            self._better, self._buffer = None, None
            result = minimize(x)
            better = self._found()
            if better is None:
                return result
            x = better
            self.jumps_accepted += 1

    def __call__(self, xk: Any) -> None:
        """Record ``xk``; now and then predict."""
        x = torch.from_numpy(np.array(xk, dtype=np.float64).reshape(-1))
        if self._buffer is None:
            self._iterate = x.clone()
            self._buffer = SnapshotBuffer([self._iterate], capacity=self._window)
        self._iterate.copy_(x)
        self._buffer.record()
        if not self._buffer.full:
            return
        lowest = float(self._fun(x.numpy().copy()))
        self.evaluations += 1
        for z in _predictions(self._buffer, None, self._options):
            value = float(self._fun(z.numpy().copy()))
            self.evaluations += 1
            if value < lowest:
                self._better = z.numpy().copy().reshape(np.shape(xk))
                raise StopIteration
        self._buffer.clear()

    def _found(self) -> NDArray[Any] | None:
        return self._better


class _State:
    """The form of x: arrays of the user's kind, and flat float tensors of ours."""

    def __init__(self, x0: object) -> None:
        if not isinstance(x0, (np.ndarray, Tensor)):
            raise ConfigError(
                f"x0: expected a numpy array or a torch tensor, got {type(x0).__name__}; pack "
                "several arrays into one"
            )
        self._numpy = isinstance(x0, np.ndarray)
        tensor = _as_tensor(x0)
        self._dtype, self._shape = tensor.dtype, tensor.shape
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.numel() == 0:
            raise ConfigError(
                f"x0: expected float32 or float64 numbers, got {tuple(tensor.shape)} {tensor.dtype}"
            )

    def flat(self, x: object, source: str = "x0") -> Tensor:
        """(n,) tensor of the user's array."""
        if isinstance(x, np.ndarray) != self._numpy or not isinstance(x, (np.ndarray, Tensor)):
            raise ConfigError(f"{source}: expected what x0 is, got {type(x).__name__}")
        tensor = _as_tensor(x).detach()
        if tensor.shape != self._shape or tensor.dtype != self._dtype:
            raise ConfigError(
                f"{source}: expected {tuple(self._shape)} {self._dtype} as x0, got "
                f"{tuple(tensor.shape)} {tensor.dtype}"
            )
        return tensor.reshape(-1)

    def shaped(self, x: Tensor) -> Any:
        """A copy of ``x``, (n,), as the user's array."""
        copy = x.detach().clone().reshape(self._shape)
        return copy.numpy() if self._numpy else copy


def _as_tensor(x: NDArray[Any] | Tensor) -> Tensor:
    return x if isinstance(x, Tensor) else torch.from_numpy(x)


def _predictions(
    buffer: SnapshotBuffer, partition: Partition | None, options: FitOptions
) -> list[Tensor]:
    """States (n,) to try, the farthest first; none where nothing can be predicted."""
    fields = {name: getattr(options, name) for name in FitOptions.__dataclass_fields__}
    operator = KoopmanOperator.fit(buffer.snapshots, partition, **fields)
    if operator.failure() is not None:
        return []
    span = buffer.count - 1
    rows = operator.predict([windows * span for windows in _WINDOWS])
    return [row for row in rows if bool(torch.isfinite(row).all())]
