# SPDX-License-Identifier: BSD-3-Clause
"""Speed-ups of a study: medians and quartiles over seeds, and the document that shows them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from trace import Trace

import numpy as np
from tasks import Experiment

from koopfast.report import machine

_INTRODUCTION = """<!-- SPDX-License-Identifier: BSD-3-Clause -->
# Does training reach the loss sooner?

Written by `{command}`. {machine}.

Every method trains from the same weights on the same batches, in turns, for the same number of
gradient evaluations: a forward and a backward pass over a batch count as one, a probe's forward
pass over as many samples as a third. A speed-up is what the optimizer alone needs until the loss at
which it ends, over what the method needs until then, as median and quartiles over the seeds;
*never* means that the method did not get there within the budget and a quarter of it more. Seeds
from which the optimizer alone *learns nothing*, as it diverges or ends no lower than it began, have
no such loss, and no part in the speed-ups. With minibatches, whose single losses jitter, the median
of the last five of a run's hundred losses counts, at the end as on the way.
KoopmanTrainer has its default settings throughout and is scored at the weights that its
`averaged()` shows: their mean where that was last seen to have the lower loss. *Last weights* are
those of the same run without that. The controls do at the moments of its jumps only one of the
things that come with a jump: they forget the optimizer's state, or go to the mean of the last
snapshots, or shorten the steps that it shortens; these four stop when the budget is spent. *Chance
alone* is the optimizer alone whose weights are moved after twelve steps, each by about a
ten-thousandth of itself: what it gains or loses is luck. Rows may differ in their number of seeds,
and peers may have been trained from fewer than KoopmanTrainer and the controls.

This program's sources have the fingerprint {code}. The last column of the first tables says which
program trained a row, by its fingerprint or its commit: where that is another, an earlier trainer.
"""
_RATIOS = (
    "KoopmanTrainer against each, median of the ratio of evaluations to the target (*only it*: the "
    "other never got there):\n"
)


@dataclass(frozen=True)
class Cell:
    """One row at one rate from one seed, trained by every method, in two races.

    Attributes:
        row: the experiment.
        kind: of the rate, "default" or "tuned".
        rate: the learning rate.
        seed: of weights and batches.
        steps: budget in gradient evaluations.
        races: traces by method, the peers' race (it may be missing) and that of KoopmanTrainer with
            its controls; the optimizer alone runs in both. It trains the same way in both, but
            seconds compare within a race only.
        codes: fingerprints of the programs that ran them.
    """

    row: Experiment
    kind: str
    rate: float
    seed: int
    steps: int
    races: tuple[dict[str, Trace], ...]
    codes: tuple[str, ...]

    @property
    def traces(self) -> dict[str, Trace]:
        """By method."""
        return {name: trace for race in reversed(self.races) for name, trace in race.items()}

    def beside(self, method: str) -> Trace:
        """The optimizer alone, in the race that ``method`` ran in."""
        return next(race for race in self.races if method in race)["plain"]

    def speed_up(self, method: str, against: str = "plain", *, seconds: bool = False) -> float:
        """Cost of ``against`` to the target over that of ``method``; 0 where it never gets there.

        Infinite where only ``method`` gets there, NaN where neither does. ``seconds`` only against
        the optimizer alone.
        """
        plain = self.beside(method)
        other = plain if against == "plain" else self.traces[against]
        goal = target(plain)
        ours, theirs = (
            trace.first_below(goal, jitters=not self.row.full_batch)
            for trace in (self.traces[method], other)
        )
        if ours is None:
            return float("nan") if theirs is None else 0.0
        return float("inf") if theirs is None else theirs[seconds] / ours[seconds]


def target(plain: Trace) -> float:
    """The loss at which the optimizer alone ends; NaN if that is no lower than it began."""
    return plain.end if plain.end < plain.scores[0] else float("nan")


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """First quartile, median, third; by order, so that infinities and zeros take part."""
    known = sorted(v for v in values if v == v)
    if not known:
        return (float("nan"),) * 3
    picked = (known[round(q * (len(known) - 1))] for q in (0.25, 0.75))
    low, high = picked
    middle = (
        known[len(known) // 2]
        if len(known) % 2
        else float(np.mean(known[len(known) // 2 - 1 :][:2]))
    )
    return low, middle, high


def shown(value: float) -> str:
    if value != value:
        return "neither"
    if value == 0:
        return "never"
    if value == float("inf"):
        return "only it"
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def spread(values: Iterable[float]) -> str:
    low, middle, high = quartiles(values)
    return f"{shown(middle)} ({shown(low)} – {shown(high)})"


def grouped(cells: Sequence[Cell], kind: str) -> list[list[Cell]]:
    """The cells of one kind of rate, a list a row."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.kind == kind:
            rows.setdefault(cell.row.name, []).append(cell)
    return list(rows.values())


def methods_of(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(name for cell in cells for name in cell.traces))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _summary(group: list[Cell]) -> list[str]:
    first = group[0]
    plain, ours = [c.beside("koopman") for c in group], [c.traces["koopman"] for c in group]
    ends = [o.end / p.end for o, p in zip(ours, plain, strict=True)]
    seconds = [
        o.seconds[o.within - 1] / p.seconds[p.within - 1] for o, p in zip(ours, plain, strict=True)
    ]
    show = first.row.task(0, 1).show_outcome
    outcomes = (statistics.median(t.outcome for t in traces) for traces in (plain, ours))
    known = [end for end in ends if end == end]
    stuck = sum(math.isnan(target(p)) for p in plain)
    jumps = statistics.median(len(o.jumps) for o in ours)
    return [
        first.row.name,
        f"{first.rate:g}",
        f"{first.steps:,}",
        f"{len(group)}" + (f" ({stuck} learn nothing)" if stuck else ""),
        spread(c.speed_up("koopman") for c in group),
        spread(c.speed_up("koopman", seconds=True) for c in group),
        f"{first.row.floor:g}",
        f"{statistics.median(known):.2f}" if known else "–",
        f"{statistics.median(seconds):.2f}",
        f"{jumps:g}",
        " → ".join(show(outcome) for outcome in outcomes),
        ", ".join(sorted({cell.codes[-1] for cell in group})),
    ]


def _against(groups: list[list[Cell]], names: list[str], against: bool) -> str:
    def entry(group: list[Cell], name: str) -> str:
        cells = [cell for cell in group if name in cell.traces]
        if not cells:
            return "–"
        if against:
            return shown(quartiles(c.speed_up("koopman", name) for c in cells)[1])
        return spread(c.speed_up(name) for c in cells)

    def seeds(group: list[Cell]) -> str:
        return str(sum(len(cell.races) > 1 for cell in group))

    rows = ([g[0].row.name, seeds(g), *(entry(g, name) for name in names)] for g in groups)
    return _table(["", "peers' seeds", *names], rows)


def markdown(cells: Sequence[Cell], command: str, code: str) -> str:
    """The document of a study, made by a program of that fingerprint."""
    facts = "; ".join(machine())
    parts = [_INTRODUCTION.format(command=command, machine=facts, code=code)]
    titles = {
        "default": "At the default learning rate",
        "tuned": "At the rate that is best for the optimizer alone",
    }
    for kind, title in titles.items():
        groups = grouped(cells, kind)
        if not groups:
            continue
        names = methods_of([cell for group in groups for cell in group])
        peers = [name for name in names if name != "plain"]
        heads = [
            "",
            "rate",
            "budget",
            "seeds",
            "speed-up, evaluations",
            "speed-up, seconds",
            "aim",
            "final loss / plain",
            "time of the whole run / plain",
            "jumps",
            "outcome, plain → koopman",
            "program",
        ]
        parts += [
            f"## {title}\n",
            _table(heads, map(_summary, groups)),
            "Speed-up of each method over the optimizer alone, in gradient evaluations:\n",
            _against(groups, peers, against=False),
            _RATIOS,
            _against(groups, [name for name in peers if name != "koopman"], against=True),
        ]
    return "\n".join(parts)
