# SPDX-License-Identifier: BSD-3-Clause
"""Reports as one self-contained HTML page: text, tables and inline SVG; no scripts, no links out.

A :class:`Page` is a list of sections, a section a list of items (:class:`Prose`, :class:`Tiles`,
:class:`Table`, :class:`Drawing`); ``templates/`` turns it into HTML. matplotlib and jinja2 are
imported when a report is written, never by ``import koopfast``.
"""

from __future__ import annotations

from koopfast.report._machine import machine
from koopfast.report.drawing import (
    COLORS,
    INK,
    RULE,
    drawing_style,
    log_scale,
    new_figure,
    to_svg,
)
from koopfast.report.operator import block_table, draw_eigenvalues, plot_eigenvalues
from koopfast.report.page import Drawing, Item, Page, Prose, Section, Table, Tiles, save_page
from koopfast.report.trainer import jump_table, settings_table, write_trainer_report

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
