# SPDX-License-Identifier: BSD-3-Clause
"""The page of one experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from koopfast.report import Drawing, Item, Page, Prose, Section, Table, to_svg
from koopfast.reproduce.tables import complexity_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["reproduction_page"]

_TITLES = {"solver": "The differential-equation solver", "digits": "The digits"}
_LEDES = {
    "solver": (
        "Networks that solve the nonlinear oscillator are trained with Adadelta, Adam and Adagrad; "
        "operators are fitted to steps 35,001 to 45,000 of their weights and predict the next."
    ),
    "digits": (
        "A classifier of the MNIST digits is trained by Adadelta in minibatches; operators are "
        "fitted to one epoch of its weights and predict the steps after it."
    ),
}
_PAPER = (
    "After Dogra and Redman, “Optimizing Neural Networks via Koopman Operator Theory” (NeurIPS "
    "2020, arXiv 2006.02361). The row or column “paper” is the paper's method with nothing added."
)


def reproduction_page(
    name: str,
    tables: Mapping[str, Table],
    figures: Mapping[str, tuple[Figure, str]],
    facts: Sequence[str],
) -> Page:
    """What must hold, the figures, every table, and what a predicted step costs."""
    drawings: list[Item] = [
        Drawing(to_svg(figure, stem), caption) for stem, (figure, caption) in figures.items()
    ]
    verdict = tables[f"{name}-verdict"]
    others = [table for table in tables.values() if table is not verdict]
    return Page(
        title=f"The paper's results, reproduced: {_TITLES[name][0].lower()}{_TITLES[name][1:]}",
        lede=_LEDES[name],
        facts=facts,
        sections=[
            Section("What must hold", [Prose(_PAPER), verdict]),
            Section("Figures", drawings),
            Section("All tables", others),
            Section("Complexity", [complexity_table()]),
        ],
    )
