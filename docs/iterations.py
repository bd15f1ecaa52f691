# SPDX-License-Identifier: BSD-3-Clause
"""The table of docs/iterations.md: evaluations of accelerate() and of SciPy's Anderson."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize

from koopfast import accelerate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_iterate import PROBLEMS, TOLERANCE, Counted

_MEMORY = 12


def anderson(problem: Counted, **options: Any) -> str:
    """Calls of the step that SciPy's Anderson makes, or that it fails."""
    try:
        optimize.anderson(
            lambda x: problem(x) - x, problem.start, M=_MEMORY, f_tol=TOLERANCE,
            tol_norm=np.linalg.norm, maxiter=3000, **options,
        )  # fmt: skip
    except (optimize.NoConvergence, ValueError):
        return f"fails ({problem.calls})"
    return str(problem.calls)


def main() -> None:
    """Print the table in Markdown."""
    warnings.simplefilter("ignore")
    rows = [
        "| | plain | accelerate | Anderson, default | Anderson, undamped |",
        "|---|---|---|---|---|",
    ]
    for name, (make, _) in PROBLEMS.items():
        ours = accelerate(make(), make().start, tolerance=TOLERANCE, window=_MEMORY)
        undamped = anderson(make(), alpha=1.0, line_search=None)
        rows.append(
            f"| {name} | {make().plain()} | {ours.evaluations} | {anderson(make())} | {undamped} |"
        )
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
