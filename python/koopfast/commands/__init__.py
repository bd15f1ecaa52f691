# SPDX-License-Identifier: BSD-3-Clause
"""The subcommands of ``koopfast``, a module each: ``add_arguments(parser)`` and ``run(options)``.

Modules here import nothing heavy before ``run``, so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from koopfast._files import jsonable

__all__ = ["add_output_arguments", "add_seed", "lines", "show"]


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """``--json`` and ``--quiet``."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as one JSON object")
    how.add_argument("--quiet", action="store_true", help="the last line only")


def add_seed(parser: argparse.ArgumentParser, of: str) -> None:
    """``--seed``."""
    parser.add_argument("--seed", type=int, default=0, help=f"of {of} (default: %(default)s)")


def show(options: argparse.Namespace, facts: dict[str, Any], text: Sequence[str]) -> None:
    """Print ``facts`` as JSON, or ``text``, or its last line, as the options say."""
    if options.json:
        print(json.dumps(jsonable(facts), indent=2, allow_nan=False))
    else:
        print("\n".join(text[-1:] if options.quiet else text))


def lines(rows: Sequence[tuple[str, object]]) -> list[str]:
    """``name  value`` in two columns."""
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]
