# SPDX-License-Identifier: BSD-3-Clause
"""The demo's figures: a function for each kind of panel, put together for the page and the picture.

Everything here runs inside :func:`koopfast.report.drawing_style`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from koopfast._files import write_whole
from koopfast.demo.race import RaceResult, Run
from koopfast.demo.results import TaskResult, show_error
from koopfast.demo.stretch import StretchResult
from koopfast.demo.tasks import OscillatorTask
from koopfast.report import COLORS, INK, RULE, Drawing, log_scale, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curves", "draw_solutions", "draw_times", "draw_weights", "save_picture"]

_MOST_WEIGHTS = 1500
_NAMES = {"plain": "plain", "koopman": "with koopfast"}


def draw_curves(result: TaskResult) -> Drawing:
    """Score over optimizer steps, an optimizer a panel, kept jumps marked."""
    figure = new_figure(10.0, 3.1)
    axes = figure.subplots(1, len(result.races), squeeze=False)[0]
    for ax, race in zip(axes, result.races, strict=True):
        _curves(ax, race)
    axes[0].set_ylabel(result.task.score_label)
    axes[0].legend()
    caption = (
        f"{_capitalized(result.task.score_label)} over optimizer steps, that is over gradient "
        f"evaluations: the same number for both runs. Triangles mark jumps that were kept, ticks "
        f"at the bottom jumps that were tried and refused."
    )
    return Drawing(to_svg(figure, f"{result.task.name}-curves"), caption)


def draw_solutions(result: TaskResult) -> Drawing:
    """What the trained networks say about x(t), beside the Runge-Kutta solution."""
    figure = new_figure(10.0, 2.7)
    axes = figure.subplots(1, len(result.races), squeeze=False, sharey=True)[0]
    for ax, race in zip(axes, result.races, strict=True):
        _solution(ax, result.task, race)
    axes[0].set_ylabel("x(t)")
    axes[0].legend(ncols=3, fontsize=8, loc="upper right")
    caption = (
        "The trained networks beside a Runge-Kutta solution, which none of them has seen. A wrong "
        "phase or amplitude late in the interval costs little residual, so the curves agree at the "
        "left first; the table has the mean error of each."
    )
    return Drawing(to_svg(figure, f"{result.task.name}-solutions"), caption)


def draw_weights(result: TaskResult) -> Drawing:
    """Predicted against true change of every weight over the stretch."""
    figure = new_figure(10.0, 3.4)
    axes = figure.subplots(1, len(result.stretches), squeeze=False)[0]
    for ax, stretch in zip(axes, result.stretches, strict=True):
        _weights(ax, stretch)
    axes[0].set_ylabel("predicted change")
    caption = (
        "Each dot is a weight: how far the operator predicts it to move over the stretch, against "
        "how far backpropagation moved it. On the diagonal the prediction is exact, on the "
        "horizontal line it is that nothing happens."
    )
    if result.stretches[0].now.numel() > _MOST_WEIGHTS:
        caption += f" An even choice of about {_MOST_WEIGHTS:,} weights is drawn."
    return Drawing(to_svg(figure, f"{result.task.name}-weights"), caption)


def draw_times(results: Sequence[TaskResult]) -> Drawing:
    """Time of the stretch by operator and by backpropagation."""
    figure = new_figure(10.0, 1.0 + 0.36 * sum(len(r.stretches) for r in results))
    times, errors = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _times(times, results)
    times.set_title("Time of a predicted stretch")
    _errors(errors, results)
    errors.set_title("Error of its weights")
    caption = (
        "A stretch of the plain run, predicted by the operator and done by backpropagation. Left: "
        "time of each, the fit included (logarithmic scale; medians of turns taken in one "
        "process). Right: distance of the predicted weights from the true ones, relative to the "
        "distance truly travelled. Minibatch noise and the optimizer's own oscillation "
        "(Adadelta on the full batch) are part of that distance, and the operator foresees "
        "neither: where they prevail, a prediction can lower the loss at an error near 1."
    )
    return Drawing(to_svg(figure, "times"), caption)


def save_picture(results: Sequence[TaskResult], path: Path) -> Path:
    """The report in one PNG: curves of every task, times of the stretches and their errors.

    Raises:
        OSError: the file cannot be written.
    """
    rows = len(results) + 1
    columns = max(len(result.races) for result in results)
    figure = new_figure(4.0 * columns, 3.3 * rows + 0.5)
    figure.suptitle(
        "koopfast: the same training with it and without",
        x=0.012, ha="left", fontsize=14, fontweight="bold",
    )  # fmt: skip
    parts = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    for part, result in zip(parts, results, strict=False):
        axes = part.subplots(1, columns, squeeze=False)[0]
        for ax, race in zip(axes, result.races, strict=False):
            _curves(ax, race)
            ax.set_title(f"{result.task.title}, {race.optimizer}")
        for ax in axes[len(result.races) :]:
            ax.set_axis_off()
        axes[0].set_ylabel(result.task.score_label)
        axes[0].legend()
    times, errors = parts[-1].subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _times(times, results)
    times.set_title("Time of a predicted stretch")
    _errors(errors, results)
    errors.set_title("Error of its weights")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor="white")
    return write_whole(path, picture.getvalue())


def _curves(ax: Axes, race: RaceResult) -> None:
    for name, run in (("plain", race.plain), ("koopman", race.koopman)):
        ax.plot(run.steps, run.scores, color=COLORS[name], label=_NAMES[name])
    log_scale(ax)
    kept = [jump.step for jump in race.history.jumps if jump.accepted]
    refused = [jump.step for jump in race.history.jumps if not jump.accepted]
    heights = [_score_after(race.koopman, step) for step in kept]
    size = 5 if len(kept) < 20 else 3.2
    ax.plot(kept, heights, "v", color=COLORS["jump"], markersize=size, label="jump kept")
    ax.plot(refused, [0.02] * len(refused), "|", color=COLORS["jump"], markersize=6, alpha=0.6,
            transform=ax.get_xaxis_transform(), label="jump refused")  # fmt: skip
    ax.set(title=race.optimizer, xlabel="optimizer steps")


def _score_after(run: Run, step: int) -> float:
    return next(
        (score for k, score in zip(run.steps, run.scores, strict=True) if k >= step), run.score
    )


def _solution(ax: Axes, task: object, race: RaceResult) -> None:
    assert isinstance(task, OscillatorTask)
    t = task.problem.times().numpy()
    ax.plot(t, task.reference[:, 0].numpy(), color=INK, linewidth=1, linestyle=":", label="exact")
    for name, run in (("plain", race.plain), ("koopman", race.koopman)):
        ax.plot(t, task.solution(run.model)[:, 0].numpy(), color=COLORS[name], label=_NAMES[name])
    ax.set(title=race.optimizer, xlabel="t", ylim=(-2.2, 2.9))


def _weights(ax: Axes, stretch: StretchResult) -> None:
    every = math.ceil(stretch.now.numel() / _MOST_WEIGHTS)
    now, true, predicted = (
        w[::every].double() for w in (stretch.now, stretch.true, stretch.predicted)
    )
    farthest = max(float((w - now).abs().nan_to_num().max()) for w in (true, predicted))
    reach = 1.08 * farthest or 1.0
    ax.axline((0, 0), slope=1, color=INK, linewidth=0.7)
    ax.axhline(0, color=RULE, linewidth=0.8)
    ax.scatter(
        (true - now).numpy(), (predicted - now).numpy(),
        s=9, color=COLORS["koopman"], alpha=0.45, linewidth=0,
    )  # fmt: skip
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="true change")
    ax.set_title(f"{stretch.optimizer}, error {show_error(stretch.error)}")
    ax.locator_params(nbins=5)


def _times(ax: Axes, results: Sequence[TaskResult]) -> None:
    stretches = [(r.task.name, s) for r in results for s in r.stretches]
    places = range(len(stretches))
    operator = [1e3 * (s.fit + s.predict) for _, s in stretches]
    backprop = [1e3 * s.backprop for _, s in stretches]
    ax.hlines(places, operator, backprop, color=RULE, linewidth=2.5, zorder=1)
    ax.scatter(operator, places, s=46, color=COLORS["koopman"], zorder=2)
    ax.scatter(backprop, places, s=46, color=COLORS["plain"], zorder=2)
    for place, (_, stretch) in zip(places, stretches, strict=True):
        middle = 1e3 * math.sqrt(stretch.backprop * (stretch.fit + stretch.predict))
        _label(ax, f"{stretch.ratio:.0f}×", middle, place, INK)
    _label(ax, "operator", operator[0], -0.15, COLORS["koopman"])
    _label(ax, "backpropagation", backprop[0], -0.15, COLORS["plain"])
    ax.set_xscale("log")
    ax.margins(x=0.12)
    ax.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    ax.set_yticks(list(places), [f"{name}, {s.optimizer}" for name, s in stretches])
    ax.set(xlabel="milliseconds", ylim=(len(stretches) - 0.4, -1.0))
    ax.grid(visible=False, axis="y")


def _errors(ax: Axes, results: Sequence[TaskResult]) -> None:
    stretches = [s for r in results for s in r.stretches]
    places, errors = range(len(stretches)), [s.error for s in stretches]
    ax.hlines(places, 0, errors, color=RULE, linewidth=2.5, zorder=1)
    ax.scatter(errors, places, s=46, color=COLORS["koopman"], zorder=2)
    ax.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    for place, error in zip(places, errors, strict=True):
        ax.annotate(show_error(error), (error, place), (8, 0), va="center",
                    textcoords="offset points", color=INK, fontsize=9,
                    fontweight="bold", annotation_clip=False)  # fmt: skip
    ax.set(xlabel="relative to the distance travelled")
    ax.set_xlim(0, 1.25 * max(1.0, *(e for e in errors if math.isfinite(e))))
    ax.annotate("standing still", (1, -0.62), (-4, 0), ha="right", va="center",
                textcoords="offset points", color=INK, fontsize=8)  # fmt: skip
    ax.grid(visible=False, axis="y")


def _label(ax: Axes, text: str, x: float, y: float, color: str) -> None:
    ax.annotate(text, (x, y), (0, 5), ha="center", textcoords="offset points",
                color=color, fontsize=9, fontweight="bold")  # fmt: skip


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
