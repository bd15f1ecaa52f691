# SPDX-License-Identifier: BSD-3-Clause
"""``koopfast doctor``: would jumps help this training, and how far ahead?

The first part of a trajectory is fitted, the rest is predicted and compared with what came. A
script that says how to compute its loss is trained under a trainer's dry run.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koopfast.commands import add_output_arguments, add_seed, lines, show
from koopfast.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Diagnosis", "add_arguments", "diagnose", "read_trajectory", "run"]

# Fits to try, as fields of KoopmanConfig. The best of them on the later part is named.
_TREATMENTS: dict[str, dict[str, Any]] = {
    "increments": {},
    "increments, delays=2": {"delays": 2},
    "increments, rank=1": {"rank": 1},
    "state": {"observables": "state"},
}
# A prediction that misses by half of the true motion is still nearer than standing still.
_GOOD = 0.5
# The trainer's shortest jump is a quarter of its window.
_SHORTEST = 0.25
_USELESS = 3  # the exit code
_LEAST = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "what", metavar="SCRIPT_OR_TRAJECTORY", type=Path,
        help="snapshots (m, n), one state a row, as .npy, .npz or .pt; or a Python script with a "
        "function make_training() that returns (model, optimizer, step) or (model, optimizer, "
        "step, loss), where step() does one optimizer step and loss() returns the loss of samples "
        "that stay the same",
    )  # fmt: skip
    parser.add_argument(
        "--fit", type=float, default=0.5, metavar="SHARE",
        help="of the snapshots to fit, the rest is predicted (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=int, default=256, help="of a script's training (default: %(default)s)"
    )
    parser.add_argument(
        "--stride", type=int,
        help="steps from snapshot to snapshot (default: 4; with a loss 1, 4 and 16 in turn)",
    )  # fmt: skip
    add_seed(parser, "a script's training")
    add_output_arguments(parser)


@dataclass(frozen=True)
class Diagnosis:
    """How well the later part of a trajectory follows from the earlier one.

    Attributes:
        snapshots, weights: shape of the trajectory.
        fitted: snapshots that the fit saw.
        treatment: the fit that predicted best; a key of ``errors``.
        errors: for each fit and each predicted interval, the distance between predicted and true
            state, as a multiple of the distance that the true state had moved: 1 is no better
            than standing still.
        trusted: intervals up to which every error of the best fit is at most one half.
        windows: the same as a multiple of the intervals that were fitted.
        helps: whether that is as far as the shortest jump that a trainer tries.
    """

    snapshots: int
    weights: int
    fitted: int
    treatment: str
    errors: dict[str, list[float]]
    trusted: int
    windows: float
    helps: bool

    def in_words(self) -> str:
        """The verdict as a sentence."""
        intervals = "interval" if self.trusted == 1 else "intervals"
        if self.helps:
            every = " (all that there were to compare with)"
            rest = every if self.trusted == self.snapshots - self.fitted else ""
            return (
                f"jumps would help: up to {self.trusted} recorded {intervals}{rest}, "
                f"{self.windows:.2g} windows, are predicted to within half of the motion"
            )
        return (
            f"jumps would not help: only {self.trusted} recorded {intervals} are predicted to "
            "within half of the motion; record further apart (stride), average, or train smoother"
        )


def run(options: argparse.Namespace) -> int:
    """Print the diagnosis; the exit code is 0 where jumps would help and 3 where not."""
    if options.what.suffix == ".py":
        made = _made(options)
        if len(made) == 4:
            return _rehearsed(options, *made)
        snapshots = _trained(options, *made)
    else:
        snapshots = read_trajectory(options.what)
    found = diagnose(snapshots, options.fit)
    ahead = sorted({h for h in (1, 2, 4, 8, 16, 32, 64) if h <= len(found.errors[found.treatment])})
    text = [
        *lines(
            [
                ("snapshots", f"{found.snapshots} of {found.weights} weights"),
                ("fitted", f"the first {found.fitted}"),
                ("best fit", found.treatment),
            ]
        ),
        "",
        "error of the prediction, by recorded intervals ahead (1: no better than standing still)",
        f"{'':<22}" + "".join(f"{h:>8}" for h in ahead),
        *(
            f"{name:<22}" + "".join(f"{errors[h - 1]:8.3f}" for h in ahead)
            for name, errors in found.errors.items()
        ),
        "",
        found.in_words(),
    ]
    show(options, {**asdict(found), "verdict": found.in_words()}, text)
    return 0 if found.helps else _USELESS


def diagnose(snapshots: Tensor, fit: float = 0.5) -> Diagnosis:
    """Fit the first part of ``snapshots``, (m, n), and compare the rest with its prediction.

    Args:
        snapshots: a trajectory of at least eight states, one a row, in time order.
        fit: the share of it that is fitted.

    Raises:
        ConfigError: there are too few snapshots, or ``fit`` is no share.
    """
    from koopfast._rehearsal import relative_error
    from koopfast.operator import KoopmanOperator

    if not 0 < fit < 1:
        raise ConfigError(f"--fit: expected a share between 0 and 1, got {fit}")
    m, n = snapshots.shape
    fitted = min(max(round(fit * m), _LEAST // 2), m - 1)
    if m < _LEAST:
        raise ConfigError(f"snapshots: expected {_LEAST} or more, got {m}; record more of them")
    head, tail = snapshots[:fitted].contiguous(), snapshots[fitted:].double()
    errors = {}
    for name, options in _TREATMENTS.items():
        predicted = KoopmanOperator.fit(head, **options).predict(range(1, m - fitted + 1))
        errors[name] = [
            relative_error(row, real, head[-1]) for row, real in zip(predicted, tail, strict=True)
        ]
    best = max(errors, key=lambda name: (_trusted(errors[name]), -errors[name][0]))
    trusted = _trusted(errors[best])
    windows = trusted / (fitted - 1)
    return Diagnosis(m, n, fitted, best, errors, trusted, windows, windows >= _SHORTEST)


def _trusted(errors: list[float]) -> int:
    return next((h for h, error in enumerate(errors) if not error <= _GOOD), len(errors))


def read_trajectory(path: Path) -> Tensor:
    """The snapshots in a file of numpy or torch, (m, n).

    Raises:
        ConfigError: it cannot be read, or holds no such array.
    """
    import numpy as np
    import torch

    from koopfast.commands.inspect import load

    if path.suffix not in (".npy", ".npz", ".pt"):
        raise ConfigError(
            f"{path}: expected a trajectory (.npy, .npz, .pt) or a script (.py), got "
            f"{path.suffix!r}"
        )
    try:
        data = load(path) if path.suffix == ".pt" else np.load(path, allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: expected an array of numbers ({error})") from error
    if not isinstance(data, (np.ndarray, torch.Tensor)):
        names = list(data)
        name = "snapshots" if "snapshots" in names else names[0] if len(names) == 1 else None
        if name is None:
            raise ConfigError(f'{path}: expected one array or one named "snapshots", got {names}')
        data = data[name]
    snapshots = torch.as_tensor(data)
    if snapshots.dim() != 2 or not snapshots.is_floating_point():
        raise ConfigError(
            f"{path}: expected floating-point snapshots of shape (m, n), one state a row, got "
            f"{snapshots.dtype} of shape {tuple(snapshots.shape)}"
        )
    return snapshots


def _made(options: argparse.Namespace) -> tuple[Any, ...]:
    """What a script's ``make_training()`` returned."""
    import torch

    if not options.what.is_file():
        raise ConfigError(f"{options.what}: expected a script, there is no such file")
    torch.manual_seed(options.seed)
    # Not "__main__": what a script does when it is run is not what is wanted of it here.
    make: Callable[[], Any] | None = runpy.run_path(
        str(options.what), run_name="koopfast_doctor"
    ).get("make_training")
    advice = (
        "return (model, optimizer, step), where step() does one optimizer step, or (model, "
        "optimizer, step, loss)"
    )
    if make is None:
        raise ConfigError(
            f"{options.what}: expected a function make_training(), got none; {advice}"
        )
    made = make()
    well = isinstance(made, tuple) and len(made) in (3, 4) and all(map(callable, made[2:]))
    if not well:
        raise ConfigError(f"make_training: got {type(made).__name__}; {advice}")
    return tuple(made)


def _rehearsed(
    options: argparse.Namespace, model: Any, optimizer: Any, step: Any, loss: Any
) -> int:
    """Train under a dry run and print what it says."""
    from koopfast.trainer import KoopmanTrainer

    stride = "auto" if options.stride is None else options.stride
    trainer = KoopmanTrainer(model, optimizer, dry_run=True, stride=stride)
    for _ in range(options.steps):
        step()
        trainer.after_step(probe=loss)
    found = trainer.history.outlook()
    heads = ("stride", "ahead", "windows", "count", "error", "predicted", "real")
    text = [
        f"{options.steps} steps; medians of error (1: standing still) and loss (1: as before)",
        "".join(f"{head:>10}" for head in heads),
        *("".join(f"{_short(value):>10}" for value in asdict(row).values()) for row in found.rows),
        "",
        found.in_words(),
    ]
    show(options, {**asdict(found), "verdict": found.in_words()}, text)
    return 0 if found.helps else _USELESS


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _trained(options: argparse.Namespace, model: Any, optimizer: Any, step: Any) -> Tensor:
    """The trajectory of a script's training."""
    from koopfast.parameters import ParameterVector, trainable_parameters
    from koopfast.snapshots import SnapshotBuffer

    stride = 4 if options.stride is None else options.stride
    capacity = options.steps // max(stride, 1)
    if capacity < _LEAST:
        raise ConfigError(
            f"--steps: expected {_LEAST} strides or more, got {options.steps} steps with a stride "
            f"of {stride}"
        )
    vector = ParameterVector(trainable_parameters(model, optimizer))
    buffer = SnapshotBuffer(vector, capacity, stride=stride)
    while not buffer.full:
        step()
        buffer.record()
    return buffer.snapshots
