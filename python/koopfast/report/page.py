# SPDX-License-Identifier: BSD-3-Clause
"""A page of sections of paragraphs, numbers, tables and drawings; and its HTML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from koopfast._files import write_whole
from koopfast.report._needed import needed


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
    with needed("jinja2"):
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return write_whole(path, environment.get_template("page.html.j2").render(page=page).encode())
