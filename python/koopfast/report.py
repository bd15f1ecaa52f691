# SPDX-License-Identifier: BSD-3-Clause
"""Reports as one self-contained HTML page: text, tables and inline SVG; no scripts, no links out.

A :class:`Page` is a list of sections, a section a list of items (:class:`Prose`, :class:`Tiles`,
:class:`Table`, :class:`Drawing`); ``templates/`` turns it into HTML. matplotlib and jinja2 are
imported when a report is written, never by ``import koopfast``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import math
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from koopfast._files import write_whole
from koopfast.errors import KoopfastError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from koopfast.config import KoopmanConfig
    from koopfast.history import Counters, History, JumpRecord
    from koopfast.operator import KoopmanOperator
    from koopfast.partition import Partition

__all__ = [
    "COLORS",
    "INK",
    "RULE",
    "Drawing",
    "Item",
    "Page",
    "Prose",
    "Section",
    "Table",
    "Tiles",
    "block_table",
    "draw_eigenvalues",
    "drawing_style",
    "jump_table",
    "log_scale",
    "machine",
    "new_figure",
    "plot_eigenvalues",
    "save_page",
    "settings_table",
    "to_svg",
    "write_trainer_report",
]

# Mid tones that read on white and on near-black alike.
COLORS = {"plain": "#7c8aa0", "koopman": "#0f8a7e", "jump": "#e07a1f", "refused": "#b8bfca"}

# Ink and rules of a drawing: on the page they follow the page's own colours, light or dark.
INK, RULE = "#1f2733", "#d9dee6"
_ON_PAGE = {INK: "var(--ink)", RULE: "var(--rule)"}

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's own font
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.dpi": 160,
}

# Points in one scatter; beyond that an even choice is drawn, and the caption says so.
_MOST_POINTS = 3000
_MOST_BLOCKS = 24


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    kind: ClassVar[str] = "prose"
    text: str


@dataclass(frozen=True)
class Tiles:
    """A row of large numbers: (value, label) each."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of text under column heads.

    Attributes:
        columns: heads.
        rows: as many cells each as there are heads.
        caption: what the table says, above it.
        words: the columns set as text, to the left; the others are numbers, to the right.
        folded: hide the rows behind the caption until it is opened.
        notes: lines in small print below.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: Sequence[int] = (0,)
    folded: bool = False
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Drawing:
    """An inline SVG (made by :func:`to_svg`) and what to see in it."""

    kind: ClassVar[str] = "drawing"
    svg: str
    caption: str


Item = Prose | Tiles | Table | Drawing


@dataclass(frozen=True)
class Section:
    title: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Page:
    """Title, a sentence or two below it, facts in small print, and the sections."""

    title: str
    lede: str
    facts: Sequence[str]
    sections: Sequence[Section]


def save_page(page: Page, path: str | os.PathLike[str]) -> Path:
    """Write the page as UTF-8 HTML, making its folder, and return where it is.

    The file appears whole or not at all.

    Raises:
        ConfigError: `path` is a folder, a device, a pipe or a socket.
        KoopfastError: jinja2 is not installed.
        OSError: the file cannot be written.
    """
    with _needed("jinja2"):
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return write_whole(path, environment.get_template("page.html.j2").render(page=page).encode())


@contextlib.contextmanager
def _needed(package: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise KoopfastError(
            f"reports and figures need {package}, which cannot be imported ({error}); "
            f"pip install 'koopfast[plots]'"
        ) from error


@contextlib.contextmanager
def drawing_style() -> Iterator[None]:
    """The look of all figures; build and save them inside.

    Raises:
        KoopfastError: matplotlib is not installed.
    """
    with _needed("matplotlib"):
        import matplotlib as mpl
    with mpl.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches, outside pyplot's global state."""
    with _needed("matplotlib"):
        from matplotlib.figure import Figure as NewFigure
    return NewFigure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element that scales with the page and takes its font and colours.

    `name` is put before every id in it, so that several drawings can share a page.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)\sheight="[^"]*"', r'\1 role="img"', svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"'DejaVu Sans'(?:, [^;\"]*)?", "var(--sans)", svg)
    for color, variable in _ON_PAGE.items():
        svg = svg.replace(color, variable)
    return svg


def write_trainer_report(
    history: History,
    config: KoopmanConfig,
    path: str | os.PathLike[str],
    operator: KoopmanOperator | None = None,
) -> Path:
    """The page of one training run: counts, probed losses, jump log, spectrum, settings.

    Args:
        history: what the trainer did.
        config: what it was told.
        path: the HTML file to write; its folder is made.
        operator: the last operator fitted, for its eigenvalues and blocks.

    Returns:
        Where the page is.

    Raises:
        ConfigError: `path` is a folder, a device, a pipe or a socket.
        KoopfastError: matplotlib or jinja2 is not installed (``pip install koopfast[plots]``).
        OSError: the file cannot be written.
    """
    c = history.counters
    tried = c.jumps_accepted + c.jumps_refused
    overhead = c.seconds_record + c.seconds_fit + c.seconds_predict + c.seconds_probe
    run: list[Item] = [
        Tiles(
            [
                (f"{c.optimizer_steps:,}", "optimizer steps"),
                (f"{c.predicted_steps:,}", "predicted steps"),
                (f"{c.jumps_accepted} of {tried}", "jumps accepted"),
                (f"{c.probe_evaluations:,}", "probe evaluations"),
                (f"{overhead:.3g} s", "spent on Koopman training"),
                *_gained(c),
            ]
        )
    ]
    with drawing_style():
        if any(jump.loss_before is not None for jump in history.jumps):
            run.append(_draw_jumps(history.jumps))
        if history.epochs:
            run.append(_draw_epochs(history))
        run.append(_stages_table(history))
        sections = [Section("The run", run)]
        if operator is not None:
            spectrum: list[Item] = [
                draw_eigenvalues([("last operator", operator)], "trainer"),
                block_table(operator),
            ]
            sections.append(Section("The last operator", spectrum))
    if history.forecasts:
        sections.append(Section("Dry run", [outlook_table(history)]))
    sections.append(Section("Jump log", [jump_table(history.jumps, "Every jump that was tried")]))
    sections.append(Section("Settings", [settings_table(config)]))
    page = Page(
        title="Koopman training report",
        lede=f"{tried} jumps were tried in {c.optimizer_steps:,} optimizer steps and "
        f"{c.jumps_accepted} of them kept.",
        facts=machine(),
        sections=sections,
    )
    return save_page(page, path)


def _gained(counters: Counters) -> list[tuple[str, str]]:
    """Tiles of what was gained, where the trainer could estimate it."""
    if counters.evaluations_gained == 0:
        return []
    return [
        (f"{counters.evaluations_gained:,.0f}", "gradient evaluations gained (estimate)"),
        (f"{counters.seconds_gained:.3g} s", "gained by that, all costs deducted (estimate)"),
    ]


def machine() -> list[str]:
    """What ran it: processor, cores, system, Python and torch (no names of hosts or users)."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        processor = found[1] if found else processor
    # Containers and batch systems often give fewer cores than the machine has.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    facts = [
        f"{processor}, {_counted(cores, 'core')}",
        f"{platform.system()} {platform.machine()}",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}, {_counted(torch.get_num_threads(), 'thread')}",
    ]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        facts.append(f"koopfast {importlib.metadata.version('koopfast')}")
    return facts


def jump_table(jumps: Sequence[JumpRecord], caption: str, *, folded: bool = False) -> Table:
    """The jump log, one row a jump."""
    rows = [
        [
            f"{jump.step:,}",
            "kept" if jump.accepted else "refused",
            f"{jump.horizon:,}" if jump.accepted else "–",
            _number(jump.loss_before),
            _number(jump.loss_after),
            f"{jump.probe_evaluations}",
            f"{1e3 * (jump.seconds_fit + jump.seconds_predict):.2f}",
            f"{1e3 * jump.seconds_probe:.2f}",
            f"{jump.rank.median:g}" if jump.rank is not None else "–",
            jump.reason,
        ]
        for jump in jumps
    ]
    heads = ["at step", "jump", "horizon", "loss before", "loss after", "probes"]
    heads += ["fit + predict, ms", "probe, ms", "median rank", "reason"]
    notes = ["Horizons in optimizer steps; losses as probed."] if rows else ["No jump was tried."]
    return Table(heads, rows, caption, words=(1, 9), folded=folded, notes=notes)


def outlook_table(history: History) -> Table:
    """What a dry run predicted and what came, one row a stride and horizon."""
    outlook = history.outlook()
    rows = [
        [
            f"{row.stride}",
            f"{row.horizon:,}",
            f"{row.windows:.2g}",
            f"{row.count}",
            _number(row.error),
            _number(row.predicted),
            _number(row.real),
        ]
        for row in outlook.rows
    ]
    heads = ["stride", "steps ahead", "windows ahead", "predictions", "error of the weights"]
    heads += ["loss at the prediction", "loss of training then"]
    notes = [
        f"{outlook.in_words().capitalize()}.",
        "Medians. Errors: 1 is no better than standing still. Losses: multiples of that before.",
    ]
    return Table(heads, rows, "Predictions and what came of them", words=(), notes=notes)


def settings_table(config: KoopmanConfig) -> Table:
    """The fields of the configuration."""
    rows = []
    for name, value in config.to_dict().items():
        own_partition = name == "partition" and not isinstance(value, str)
        rows.append([name, repr(config.partition) if own_partition else _setting(value)])
    return Table(["field", "value"], rows, "Configuration of the trainer", words=(0, 1))


def block_table(operator: KoopmanOperator) -> Table:
    """Size, rank, largest eigenvalue and hindcast error of the first blocks."""
    partition: Partition | None = getattr(operator, "partition", None)
    shown = min(operator.n_blocks, _MOST_BLOCKS)
    states = {0: "fitted", 1: "still", 2: "not finite"}
    rows = []
    for i in range(shown):
        names = partition.names if partition is not None else None
        size = int(partition.block_sizes[i]) if partition is not None else operator.n
        eigenvalues = operator.eigenvalues_of(i)
        error = float(operator.hindcast_error[i])
        rows.append(
            [
                names[i] if names is not None else f"block {i}",
                states.get(int(operator.status[i]), "?"),
                f"{size:,}",
                f"{int(operator.rank[i])}",
                f"{float(eigenvalues.abs().max()):.6f}" if eigenvalues.numel() else "–",
                _number(error),
            ]
        )
    heads = ["block", "state", "weights", "rank", "largest |λ|", "hindcast error"]
    rest = operator.n_blocks - shown
    notes = ["Hindcast error: relative error on the end of the window, fitted on its beginning."]
    if rest:
        notes.append(f"{rest:,} further blocks are not listed.")
    return Table(heads, rows, "Blocks of the operator", words=(0, 1), notes=notes)


def draw_eigenvalues(operators: Sequence[tuple[str, KoopmanOperator]], name: str) -> Drawing:
    """Eigenvalues of each operator in the complex plane with the unit circle, side by side."""
    columns = max(len(operators), 3)
    figure = new_figure(3.3 * columns, 3.3)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    thinned = False
    for ax, (label, operator) in zip(axes, operators, strict=False):
        thinned |= plot_eigenvalues(ax, operator)
        ax.set_title(label)
    for ax in axes[len(operators) :]:
        ax.set_axis_off()
    axes[0].set_ylabel("imaginary part")
    caption = (
        "Eigenvalues λ of the operator in the complex plane, all blocks together. On the circle a "
        "motion goes on, inside it dies out; an eigenvalue of 1 is a motion that keeps its pace."
    )
    if thinned:
        caption += f" An even choice of at most {_MOST_POINTS:,} is drawn."
    return Drawing(to_svg(figure, f"{name}-eigenvalues"), caption)


def plot_eigenvalues(ax: Axes, operator: KoopmanOperator) -> bool:
    """The unit circle and the eigenvalues; returns True if not all of them were drawn."""
    values = operator.eigenvalues.detach().cpu()
    values = values[torch.isfinite(values.real) & torch.isfinite(values.imag)]
    every = math.ceil(len(values) / _MOST_POINTS) or 1
    drawn = values[::every].numpy()
    angle = torch.linspace(0, 2 * math.pi, 361).numpy()
    circle = torch.polar(torch.ones(361), torch.from_numpy(angle)).numpy()
    ax.plot(circle.real, circle.imag, color=INK, linewidth=0.8)
    ax.axhline(0, color=RULE, linewidth=0.6)
    ax.axvline(0, color=RULE, linewidth=0.6)
    ax.scatter(drawn.real, drawn.imag, s=22, color=COLORS["koopman"], alpha=0.75, linewidth=0)
    reach = 1.12 * max(1.0, float(values.abs().max()) if len(values) else 1.0)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="real part")
    ax.grid(visible=False)
    return every > 1


def _draw_jumps(jumps: Sequence[JumpRecord]) -> Drawing:
    figure = new_figure(9.0, 3.2)
    ax = figure.subplots()
    before = [(j.step, j.loss_before) for j in jumps if j.loss_before is not None]
    kept = [
        (j.step, j.loss_before, j.loss_after)
        for j in jumps
        if j.accepted and j.loss_before is not None and j.loss_after is not None
    ]
    ax.plot(
        *zip(*before, strict=True),
        color=COLORS["plain"],
        marker="o",
        markersize=3,
        label="before a jump",
    )
    if kept:
        steps, froms, tos = zip(*kept, strict=True)
        ax.vlines(steps, froms, tos, color=COLORS["jump"], linewidth=1)
        ax.plot(steps, tos, "v", color=COLORS["jump"], markersize=5, label="after a kept jump")
    _log_if_positive(ax, [loss for _, loss in before] + [after for _, _, after in kept])
    ax.set(xlabel="optimizer steps", ylabel="probed loss")
    ax.legend()
    caption = "Loss as probed where a jump was tried, and what each kept jump made of it."
    return Drawing(to_svg(figure, "jumps"), caption)


def _draw_epochs(history: History) -> Drawing:
    figure = new_figure(9.0, 3.0)
    ax = figure.subplots()
    steps, losses = [e.step for e in history.epochs], [e.loss for e in history.epochs]
    ax.plot(steps, losses, color=COLORS["koopman"], marker="o", markersize=3, label="training loss")
    validation = history.validation
    if validation:
        ax.plot(
            *zip(*validation, strict=True),
            color=COLORS["jump"],
            marker="s",
            markersize=3,
            label="validation",
        )
    _log_if_positive(ax, losses + [value for _, value in validation])
    ax.set(xlabel="optimizer steps", ylabel="mean over the epoch")
    ax.legend()
    return Drawing(to_svg(figure, "epochs"), "Training loss of each epoch, and validation if any.")


def _log_if_positive(ax: Axes, values: Sequence[float]) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > 5 * min(finite):
        log_scale(ax)


def log_scale(ax: Axes) -> None:
    """A logarithmic y axis whose labels are plain text (10⁻³), as the page's font needs."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(numticks=8))
    low, high = ax.get_ylim()
    if math.log10(high / low) < 2:
        # Less than two powers of ten: label a few numbers between them too.
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(_log_label))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _log_label(value: float, position: int | None = None) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    power = math.floor(math.log10(value) + 1e-9)
    digits = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = round(value / 10**power)
    return f"10{digits}" if factor == 1 else f"{factor}·10{digits}"


def _stages_table(history: History) -> Table:
    c = history.counters
    stages = {
        "record": c.seconds_record,
        "fit": c.seconds_fit,
        "predict": c.seconds_predict,
        "probe": c.seconds_probe,
    }
    rows = [[name, f"{seconds:.4f}"] for name, seconds in stages.items()]
    return Table(["stage", "seconds"], rows, "Time spent on Koopman training")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
