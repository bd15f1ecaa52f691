# SPDX-License-Identifier: BSD-3-Clause
"""The look of all figures, and figures as SVG that takes the colours of the page."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from koopfast.report._needed import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


@contextlib.contextmanager
def drawing_style() -> Iterator[None]:
    """The look of all figures; build and save them inside.

    Raises:
        KoopfastError: matplotlib is not installed.
    """
    with needed("matplotlib"):
        import matplotlib as mpl
    with mpl.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches, outside pyplot's global state."""
    with needed("matplotlib"):
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
