# SPDX-License-Identifier: BSD-3-Clause
"""Tables in a Markdown document: what stands between two markers is written by the command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from koopfast._files import write_whole
from koopfast.report import Table

__all__ = ["markdown", "update"]


def markdown(table: Table) -> str:
    """Caption, rows and notes as Markdown."""
    lines = [f"*{table.caption}*", ""] if table.caption else []
    lines.append(f"| {' | '.join(table.columns)} |")
    marks = ["---" if i in table.words else "---:" for i in range(len(table.columns))]
    lines.append(f"| {' | '.join(marks)} |")
    lines += [f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |" for row in table.rows]
    for note in table.notes:
        lines += ["", note]
    return "\n".join(lines)


def update(path: Path, parts: Mapping[str, str]) -> Path:
    """Put each part between its markers ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.

    A part whose markers are not there is put at the end with them; all other text stays.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else "# Reproduction\n"
    for name, content in parts.items():
        block = f"<!-- begin {name} -->\n{content}\n<!-- end {name} -->"
        pattern = rf"<!-- begin {re.escape(name)} -->.*?<!-- end {re.escape(name)} -->"
        pieces = re.split(pattern, text, maxsplit=1, flags=re.DOTALL)
        text = block.join(pieces) if len(pieces) == 2 else f"{text.rstrip()}\n\n{block}\n"
    return write_whole(path, text.encode())
