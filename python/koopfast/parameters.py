# SPDX-License-Identifier: BSD-3-Clause
"""Parameters of a model as one flat vector of numbers, and back.

The flat vector lists the parameters in the order of ``model.named_parameters()``, each in logical
row-major order whatever its memory format (a ``channels_last`` weight too), so that an index means
the same weight on every device and in every checkpoint.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from koopfast.errors import ConfigError, ParameterChangedError, UnsupportedParameterError

__all__ = [
    "ParameterVector",
    "as_named",
    "check_supported",
    "is_sharded",
    "trainable_parameters",
]

_Tensors: TypeAlias = "list[Tensor] | tuple[Tensor, ...]"

_SUPPORTED = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)


def trainable_parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, sharded: bool = False
) -> list[tuple[str, nn.Parameter]]:
    """The parameters that training moves, named, in the order of ``model.named_parameters()``.

    A tied parameter comes once, under its first name. Frozen parameters (``requires_grad`` false)
    and those without elements are left out, and, where an ``optimizer`` is given, those that it
    does not hold.

    Args:
        model: whose.
        optimizer: steps them.
        sharded: let distributed tensors (DTensor) pass, unchecked.

    Raises:
        ConfigError: nothing is left, or the optimizer holds a parameter that the model does not.
        UnsupportedParameterError: a parameter is not a dense tensor with data of float16, bfloat16,
            float32, float64, complex64 or complex128, or the parameters lie on more than one
            device.

    Example:
        >>> from torch import nn
        >>> [name for name, _ in trainable_parameters(nn.Linear(3, 2))]
        ['weight', 'bias']
    """
    named = [(_plain(name), p) for name, p in model.named_parameters() if p.requires_grad]
    if optimizer is not None:
        stepped = _optimizer_parameter_ids(model, optimizer)
        named = [(name, p) for name, p in named if id(p) in stepped]
    for name, p in named:
        if not (sharded and is_sharded(p)):
            check_supported(name, p)
    named = [(name, p) for name, p in named if p.numel() > 0]
    if not named:
        held = (
            "to train" if optimizer is None else "that requires gradients and is in the optimizer"
        )
        raise ConfigError(
            f"model: expected at least one parameter {held}, got none in {type(model).__name__}; "
            "check requires_grad and the parameters given to the optimizer"
        )
    _check_one_device(named)
    return named


def _plain(name: str) -> str:
    """The name without what torch.compile puts into it: a checkpoint serves both models."""
    return name.replace("_orig_mod.", "")


def as_named(
    parameters: ParameterVector | nn.Module | Iterable[Tensor | tuple[str, Tensor]],
) -> list[tuple[str, Tensor]]:
    """Named parameters out of what callers may give: a vector, a model, named or bare parameters.

    Bare ones are named by their position. A parameter that comes twice is kept once, at its first
    place, and those without elements are left out.

    Raises:
        ConfigError: nothing is left, or an item is not a parameter.
        UnsupportedParameterError: as :func:`trainable_parameters`.
    """
    if isinstance(parameters, ParameterVector):
        return list(zip(parameters.names, parameters.parameters, strict=True))
    if isinstance(parameters, nn.Module):
        return list(trainable_parameters(parameters))
    named: list[tuple[str, Tensor]] = []
    seen: set[int] = set()
    items: Iterable[Any] = (parameters,) if isinstance(parameters, Tensor) else parameters
    for position, item in enumerate(items):
        name, p = item if isinstance(item, tuple) else (str(position), item)
        if not isinstance(p, Tensor) or not isinstance(name, str):
            raise ConfigError(
                f"parameters: expected tensors or (name, tensor) pairs, got {type(p).__name__} "
                f"at position {position}; pass model.named_parameters() or a model"
            )
        check_supported(name, p)
        if id(p) not in seen and p.numel() > 0:
            seen.add(id(p))
            named.append((name, p))
    if not named:
        raise ConfigError("parameters: expected at least one with elements, got none")
    _check_one_device(named)
    return named


class ParameterVector:
    """A list of parameters read and written as one flat vector of ``n`` numbers.

    Args:
        named_parameters: (name, parameter) pairs, as :func:`trainable_parameters` returns them.

    Attributes:
        names: one a parameter.
        parameters: the parameters themselves, never copies.
        starts: index of each one's first number in the flat vector.
        lengths: how many numbers each one has.
        n: how many there are together.
        dtype: what all their dtypes promote to: a complex one, where any of them is.
        device: where they all lie.

    Raises:
        ConfigError: no parameter with elements is given.
        UnsupportedParameterError: as :func:`trainable_parameters`.

    Example:
        >>> from torch import nn
        >>> vector = ParameterVector(nn.Linear(3, 2).named_parameters())
        >>> vector.n, vector.starts, vector.lengths
        (8, (0, 6), (6, 2))
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        named = as_named(named_parameters)
        self._lay_out(named, [p for _, p in named])

    def _lay_out(self, named: Sequence[tuple[str, Tensor]], tensors: Sequence[Tensor]) -> None:
        """Set the attributes; ``tensors`` hold the numbers of the parameters ``named``."""
        self.names: tuple[str, ...] = tuple(name for name, _ in named)
        self.parameters: tuple[Tensor, ...] = tuple(p for _, p in named)
        self.lengths: tuple[int, ...] = tuple(t.numel() for t in tensors)
        ends = tuple(itertools.accumulate(self.lengths))
        self.starts: tuple[int, ...] = (0, *ends[:-1])
        self.n: int = ends[-1]
        dtype = self.parameters[0].dtype
        for p in self.parameters:
            dtype = torch.promote_types(dtype, p.dtype)
        self.dtype: torch.dtype = dtype
        self.device: torch.device = tensors[0].device
        self._split = list(self.lengths)
        self._shapes = tuple(t.shape for t in tensors)
        self._expected = [_signature(p) for p in self.parameters]

    def __len__(self) -> int:
        return len(self.parameters)

    def __repr__(self) -> str:
        return f"ParameterVector({len(self)} parameters, n={self.n}, {self.dtype}, {self.device})"

    @property
    def total(self) -> int:
        """How many weights there are, those on other ranks too."""
        return self.n

    @property
    def layout(self) -> str:
        """Which part of the parameters this is, in a checkpoint: all of them."""
        return ""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What holds the numbers that are read and written: the parameters themselves."""
        return self.parameters

    def views(self, row: Tensor) -> list[Tensor]:
        """Views into ``row``, (n,), one shaped like each parameter; they share its memory.

        Raises:
            ConfigError: ``row`` does not have the shape (n,).
        """
        self._check_row(row, "row")
        pieces = torch.split(row, self._split)
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def values(self, row: Tensor) -> list[Tensor]:
        """As :meth:`views`, of a complex row the real parts where the parameter is real."""
        views = self.views(row)
        if not row.is_complex():
            return views
        pairs = zip(views, self.parameters, strict=True)
        return [view if p.is_complex() else view.real for view, p in pairs]

    def read(self) -> Tensor:
        """A copy of the parameters as a new flat vector, (n,), of :attr:`dtype`."""
        row = torch.empty(self.n, dtype=self.dtype, device=self.device)
        self.read_into(row)
        return row

    def read_into(self, row: Tensor) -> None:
        """Copy the parameters into ``row``, (n,), converted to its dtype and device.

        Raises:
            ConfigError: ``row`` does not have the shape (n,).
        """
        self.read_into_views(self.views(row))

    def read_into_views(self, views: list[Tensor]) -> None:
        """As :meth:`read_into`, into what :meth:`views` gave: the fast way for a row used often."""
        _copy(views, self.tensors)

    def add_to_views(self, views: list[Tensor]) -> None:
        """Add the parameters to what is in such views."""
        _without_gradients(torch._foreach_add_, views, self.tensors)

    def lerp_views(self, views: list[Tensor], weight: float) -> None:
        """Move what is in such views that share of the way to the parameters, all of one dtype."""
        _without_gradients(torch._foreach_lerp_, views, self.tensors, weight)

    def write(self, flat: Tensor, *, backup: bool = True) -> None:
        """Copy ``flat``, (n,), into the parameters, converted to each one's dtype and device.

        Of complex numbers, a real parameter takes the real part.

        All or nothing: should anything go wrong on the way (an interrupt from the keyboard too),
        every parameter is restored bit for bit and the exception goes on. The parameters are
        changed in place, so optimizer state, hooks and other references to them stay good.

        Args:
            flat: the numbers.
            backup: False leaves the way back to a caller who has a copy of all parameters.

        Raises:
            ConfigError: ``flat`` is not a floating-point tensor of shape (n,), or complex where
                no parameter is.
            ParameterChangedError: as :meth:`check_unchanged`.
        """
        self._check_row(flat, "flat")
        if not flat.is_floating_point() and not (flat.is_complex() and self.dtype.is_complex):
            raise ConfigError(f"flat: expected a floating-point tensor, got {flat.dtype}")
        self.check_unchanged()
        sources = self.values(flat.detach())
        if not backup:
            _copy(self.tensors, sources)
            return
        # Clones, not one flat backup: a round trip through a wider dtype need not keep the bits
        # of a NaN, and a clone keeps the memory format, which makes the way back a plain memcpy.
        before = [t.detach().clone() for t in self.tensors]
        try:
            _copy(self.tensors, sources)
        except BaseException:
            self._restore(before)
            raise

    def _restore(self, before: list[Tensor]) -> None:
        restored = False
        while not restored:  # a second interrupt must not leave half of each
            with contextlib.suppress(KeyboardInterrupt):
                _copy(self.tensors, before)
                restored = True

    def check_unchanged(self, model: nn.Module | None = None) -> None:
        """Check that the parameters still are what they were when this vector was made.

        New *values* are what training is about and are fine, as are gradients that come and go and
        another memory format. What may not change is shape, dtype, device and ``requires_grad``,
        and, where a ``model`` is given, which parameter it has under each name (a
        ``load_state_dict(assign=True)`` puts new ones in place of the old). Takes time in the
        number of parameters, not of weights.

        Raises:
            ParameterChangedError: names the parameter, what was expected and what came.
        """
        # As _signature, without a call for each: this is done at every step.
        now = [(p.shape, p.dtype, p.device, p.requires_grad) for p in self.parameters]
        if now != self._expected:
            self._raise_changed()
        if model is not None:
            everything = model.named_parameters(remove_duplicate=False)
            current = {_plain(name): p for name, p in everything}
            for name, p in zip(self.names, self.parameters, strict=True):
                if current.get(name) is not p:
                    what = "another parameter object" if name in current else "none"
                    raise ParameterChangedError(
                        f"parameter '{name}': expected the one that was there when recording "
                        f"began, the model now has {what} under this name (replaced by "
                        "load_state_dict(assign=True) or by an assignment); make a new "
                        "KoopmanTrainer and optimizer for the new parameters"
                    )

    def _raise_changed(self) -> NoReturn:
        fields = ("shape", "dtype", "device", "requires_grad")
        for name, p, expected in zip(self.names, self.parameters, self._expected, strict=True):
            for field, was, now in zip(fields, expected, _signature(p), strict=True):
                if was != now:
                    raise ParameterChangedError(
                        f"parameter '{name}': expected {field} {_shown(was)} as when recording "
                        f"began, got {_shown(now)}; resize, cast, move or (un)freeze "
                        "parameters before making the KoopmanTrainer, or make a new one afterwards"
                    )
        raise AssertionError("no parameter changed")

    def _check_row(self, row: object, argument: str) -> None:
        if not isinstance(row, Tensor) or row.shape != (self.n,):
            came = tuple(row.shape) if isinstance(row, Tensor) else type(row).__name__
            raise ConfigError(f"{argument}: expected a tensor of shape ({self.n},), got {came}")


def _copy(destinations: _Tensors, sources: _Tensors) -> None:
    """Copy each source into its destination, converting dtypes where they differ."""
    _without_gradients(torch._foreach_copy_, destinations, sources)


def _without_gradients(work: Callable[..., object], *arguments: Any) -> None:
    """As under ``torch.no_grad()``, which takes as long as the work on a small network."""
    with_gradients = torch.is_grad_enabled()
    try:
        torch._C._set_grad_enabled(False)
        work(*arguments)
    finally:
        torch._C._set_grad_enabled(with_gradients)


def _shown(value: object) -> object:
    return tuple(value) if isinstance(value, torch.Size) else value


def _signature(p: Tensor) -> tuple[torch.Size, torch.dtype, torch.device, bool]:
    return p.shape, p.dtype, p.device, p.requires_grad


def check_supported(name: str, p: Tensor) -> None:
    """Raise UnsupportedParameterError for what is no dense tensor of numbers that train."""
    if torch.nn.parameter.is_lazy(p):
        came, advice = "an uninitialized (lazy) parameter", "run one forward pass first"
    elif p.is_meta:
        came, advice = "a parameter on the meta device", "materialise it (model.to_empty) first"
    elif p.is_quantized:
        came, advice = f"quantized {p.dtype}", "leave it out or freeze it"
    elif p.layout != torch.strided:
        came, advice = f"layout {p.layout}", "make it dense, leave it out or freeze it"
    elif p.dtype not in _SUPPORTED:
        came, advice = f"dtype {p.dtype}", "leave it out or freeze it"
    elif hasattr(p, "__tensor_flatten__"):
        came, advice = f"the wrapper tensor {type(p).__name__}", "use plain local tensors"
    elif any(step == 0 < size - 1 for step, size in zip(p.stride(), p.shape, strict=True)):
        came, advice = "an expanded tensor, whose elements share memory", "clone() it first"
    else:
        return
    raise UnsupportedParameterError(
        f"parameter '{name}': expected a dense float16, bfloat16, float32, float64, complex64 or "
        f"complex128 tensor, got {came}; {advice}"
    )


def is_sharded(p: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process holds a part or a copy."""
    return hasattr(p, "device_mesh") and hasattr(p, "placements")


def _check_one_device(named: Sequence[tuple[str, Tensor]]) -> None:
    first, p0 = named[0]
    for name, p in named:
        if p.device != p0.device:
            raise UnsupportedParameterError(
                f"parameter '{name}': expected all parameters on one device, got {p.device} "
                f"while '{first}' is on {p0.device}; one operator needs them together"
            )


def _optimizer_parameter_ids(model: nn.Module, optimizer: torch.optim.Optimizer) -> set[int]:
    known = {id(p) for p in model.parameters()}
    ids: set[int] = set()
    for g, group in enumerate(optimizer.param_groups):
        for k, p in enumerate(group["params"]):
            if id(p) not in known:
                raise ConfigError(
                    f"optimizer: expected only parameters of {type(model).__name__}, got one of "
                    f"shape {tuple(p.shape)} in param_groups[{g}]['params'][{k}] that is not the "
                    "model's; register it on the model, or make the optimizer from "
                    "model.parameters() after the model was changed"
                )
            ids.add(id(p))
    return ids
