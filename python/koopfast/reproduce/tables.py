# SPDX-License-Identifier: BSD-3-Clause
"""The numbers of both experiments as tables, the same for the page and for the document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median, quantiles
from typing import Any

from koopfast.report import Table

__all__ = ["SHOWN_PARTITION", "complexity_table", "digits_tables", "ratio", "solver_tables"]

# The partition of the headline: one operator for the whole network, which the small form affords.
SHOWN_PARTITION = "network"

# Operators whose networks are shown one by one.
_SPREAD = (
    ("node", "paper"), ("network", "paper"), ("node", "auto"), ("network", "bounded"),
    ("network", "auto"),
)  # fmt: skip

_TARGET_ERROR, _TARGET_FASTER, _TARGET_POINTS = 0.05, 10.0, 0.3


def ratio(
    run: dict[str, Any], kind: str, method: str, at: int, networks: Iterable[int] | None = None
) -> float:
    """median |error| / median |growth| over the networks (all if None) at horizon number ``at``."""
    chosen = range(len(run["growth"])) if networks is None else list(networks)
    error = run["predictions"][kind][method]["error"]
    errors = [math.inf if error[i][at] is None else error[i][at] for i in chosen]
    over: float = median(errors) / median(run["growth"][i][at] for i in chosen)
    return over


def _best(run: dict[str, Any], count: int) -> list[int]:
    """As many networks of the lowest loss at the end of the window."""
    return sorted(range(len(run["growth"])), key=lambda i: run["loss_now"][i][0])[:count]


def _unseen(run: dict[str, Any], settings: dict[str, Any]) -> range:
    """The networks that no choice was made on: neither of the rate nor of the operators."""
    return range(settings["sweep"], len(run["growth"]))


def solver_tables(result: dict[str, Any]) -> dict[str, Table]:
    """Tables of experiment 1 by the names of their markers in the document."""
    settings = result["settings"]
    horizon, shown = settings["horizon"], settings["shown"]
    plain = [run for run in result["runs"] if not run["noise"]]
    noisy = [run for run in result["runs"] if run["noise"]]
    unseen = _unseen(plain[0], settings)
    tables = {
        "solver-verdict": _solver_verdict(plain, settings),
        "solver-errors": _errors(plain, settings, f"{len(plain[0]['growth'])} networks"),
        "solver-errors-best": _errors(
            plain, settings, f"the {shown} of lowest loss when the stretch begins",
            lambda run: _best(run, shown),
        ),
        "solver-noisy": _errors(
            noisy, settings,
            f"points perturbed at every step, {len(noisy[0]['growth'])} networks",
        ),
        "solver-spread": _spread(plain, horizon),
        "solver-horizons": _horizons(plain),
        "solver-losses": _solver_losses(plain),
        "solver-times": _solver_times(plain, horizon),
        "solver-rates": _rates(result),
        "solver-sensitivity": _sensitivity(plain, settings),
        "solver-methods": _methods(result["methods"]),
    }  # fmt: skip
    if unseen:
        tables["solver-errors-unseen"] = _errors(
            plain, settings, f"the {len(unseen)} networks that no choice was made on",
            lambda run: unseen,
        )  # fmt: skip
    return tables


def _solver_verdict(runs: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Table:
    rows = []
    for run in runs:
        at = run["horizons"].index(settings["horizon"])
        error = ratio(run, SHOWN_PARTITION, "auto", at)
        times = run["times"]
        slowest = min(
            (times["backprop"] / seconds["auto"], kind)
            for kind, seconds in times["operator"].items()
        )
        faster = times["backprop"] / times["operator"][SHOWN_PARTITION]["auto"]
        unseen = _unseen(run, settings)
        fair = ratio(run, SHOWN_PARTITION, "auto", at, unseen) if unseen else None
        best = ratio(run, SHOWN_PARTITION, "auto", at, _best(run, settings["shown"]))
        rows.append(
            [
                run["optimizer"],
                f"{run['rate']:g}",
                show(ratio(run, "node", "paper", at)),
                show(error),
                _holds(error <= _TARGET_ERROR),
                "–" if fair is None else show(fair),
                "–" if fair is None else _holds(fair <= _TARGET_ERROR),
                show(best),
                _holds(best <= _TARGET_ERROR),
                f"{faster:.0f}×",
                f"{slowest[0]:.0f}× ({slowest[1]})",
                _holds(slowest[0] >= _TARGET_FASTER),
            ]
        )
    heads = ["optimizer", "rate", "paper's, node", f"auto, {SHOWN_PARTITION}"]
    heads += [f"at most {_TARGET_ERROR:g}", "networks no choice was made on"]
    heads += [f"at most {_TARGET_ERROR:g}", f"the {settings['shown']} of lowest loss"]
    heads += [f"at most {_TARGET_ERROR:g}", f"auto, {SHOWN_PARTITION}: faster"]
    heads += ["auto, slowest partition: faster", f"at least {_TARGET_FASTER:g}×"]
    return Table(
        heads, rows, f"Experiment 1, {settings['horizon']:,} steps predicted",
        words=(0, 4, 6, 8, 11),
        notes=[("Error: median distance from the true weights over median distance truly "
               "travelled; standing still gives 1. Faster: than backpropagation of one network, "
               "fit and prediction included; recording, a copy or a sum a step, is not.")],
    )  # fmt: skip


def _errors(
    runs: Sequence[dict[str, Any]],
    settings: dict[str, Any],
    whose: str,
    select: Callable[[dict[str, Any]], Iterable[int] | None] = lambda run: None,
) -> Table:
    rows = []
    for run in runs:
        at, networks = run["horizons"].index(settings["horizon"]), select(run)
        rows += [
            [run["optimizer"], kind, *(show(ratio(run, kind, m, at, networks)) for m in methods)]
            for kind, methods in run["predictions"].items()
        ]
    heads = ["optimizer", "partition", *runs[0]["predictions"]["node"]]
    caption = f"Error over distance travelled after {settings['horizon']:,} steps: {whose}"
    return Table(heads, rows, caption, words=(0, 1))


def _spread(runs: Sequence[dict[str, Any]], horizon: int) -> Table:
    """How the networks' own errors lie, each over its own distance."""
    rows = []
    for run in runs:
        at, networks = run["horizons"].index(horizon), range(len(run["growth"]))
        for kind, method in _SPREAD:
            own = sorted(ratio(run, kind, method, at, [i]) for i in networks)
            cuts = quantiles(own, n=4, method="inclusive") if len(own) > 1 else own * 3
            good = [
                t for i, t in enumerate(run["horizons"])
                if max(ratio(run, kind, method, j) for j in range(i + 1)) <= _TARGET_ERROR
            ]  # fmt: skip
            share = sum(error <= _TARGET_ERROR for error in own) / len(own)
            rows.append(
                [run["optimizer"], f"{method}, {kind}", *map(show, (own[0], *cuts, own[-1])),
                 f"{100 * share:.0f} %", f"{good[-1]:,}" if good else "–"]
            )  # fmt: skip
    heads = ["optimizer", "operator", "least", "quarter", "median", "three quarters", "most"]
    heads += [f"networks at most {_TARGET_ERROR:g}", f"steps to {_TARGET_ERROR:g}"]
    caption = f"Each network's error over its own distance after {horizon:,} steps"
    return Table(
        heads, rows, caption, words=(0, 1),
        notes=[(f"Steps to {_TARGET_ERROR:g}: the last of the steps looked at up to which median "
               "error over median distance is not above that.")],
    )  # fmt: skip


def _horizons(runs: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for run in runs:
        for kind, method in (("node", "paper"), ("node", "auto"), (SHOWN_PARTITION, "auto")):
            values = [show(ratio(run, kind, method, i)) for i in range(len(run["horizons"]))]
            rows.append([run["optimizer"], f"{method}, {kind}", *values])
    heads = ["optimizer", "operator", *(f"{t:,}" for t in runs[0]["horizons"])]
    return Table(heads, rows, "The same over the steps predicted", words=(0, 1))


def _solver_losses(runs: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for run in runs:
        sources = {"true": run["loss_true"]}
        for kind, method in (("node", "paper"), (SHOWN_PARTITION, "auto")):
            sources[f"{method}, {kind}"] = run["predictions"][kind][method]["loss"]
        now = show(median(loss[0] for loss in run["loss_now"]))
        for name, losses in sources.items():
            columns = zip(*losses, strict=True)
            values = [show(_median(column)) for column in columns]
            rows.append([run["optimizer"], name, now, *values])
    heads = ["optimizer", "weights", "0", *(f"{t:,}" for t in runs[0]["horizons"])]
    return Table(heads, rows, "Median loss along the stretch", words=(0, 1))


def _solver_times(runs: Sequence[dict[str, Any]], horizon: int) -> Table:
    rows = []
    for run in runs:
        times = run["times"]
        for kind, seconds in times["operator"].items():
            row = [run["optimizer"], kind, f"{times['backprop']:.2f}"]
            for method in ("paper", "auto"):
                took = seconds[method]
                row += [f"{1e3 * took:.1f}", f"{times['backprop'] / took:.0f}×"]
            row.append(f"{times['stacked_share'] / seconds['auto']:.0f}×")
            rows.append(row)
    heads = ["optimizer", "partition", "backprop, s", "paper's, ms", "faster", "auto, ms", "faster"]
    heads.append("auto, against a stack's share")
    return Table(
        heads, rows, f"Time of {horizon:,} steps, fit included", words=(0, 1),
        notes=[("Medians of turns taken in one process on one thread. A stack's share: several "
               "networks trained at once, their gradients written out instead of autograd's, "
               "divided by their number: the least that a step costs here.")],
    )  # fmt: skip


def _rates(result: dict[str, Any]) -> Table:
    rows = [
        [
            optimizer,
            f"{entry['rate']:g}",
            "taken" if entry["rate"] == result["chosen"][optimizer] else "",
            show(entry["loss"]),
            show(entry["worst"]),
            f"{100 * entry['falling']:.1f} %",
        ]
        for optimizer, entries in result["rates"].items()
        for entry in entries
    ]  # fmt: skip
    settings = result["settings"]
    heads = ["optimizer", "rate", "", "loss at the end", "highest loss in the stretch"]
    heads.append("steps at which the loss falls")
    return Table(
        heads, rows, f"Learning rates, medians over {settings['sweep']} networks", words=(0, 1, 2),
        notes=[("Taken: the lowest loss at the end, of the rates at which the loss falls at 95 % "
               "of the steps or more. No prediction enters.")],
    )  # fmt: skip


def _sensitivity(runs: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Table:
    rows = []
    for run in runs:
        at = run["horizons"].index(settings["horizon"])
        growth = median(g[at] for g in run["growth"])
        rows.append(
            [run["optimizer"], *(show(_median(e["error"]) / growth) for e in run["sensitivity"])]
        )
    heads = [f"means of {e['stride']}, {e['window']:,} steps" for e in runs[0]["sensitivity"]]
    caption = f"auto, {SHOWN_PARTITION}: other means, and the recent half of the window"
    return Table(["optimizer", *heads], rows, caption, words=(0,))


def digits_tables(result: dict[str, Any]) -> dict[str, Table]:
    """Tables of experiment 2 by the names of their markers in the document."""
    settings, runs = result["settings"], result["runs"]
    horizons = settings["horizons"]
    at = horizons.index(settings["headline"])
    rows = []
    for kind, methods in runs[0]["predictions"].items():
        for method in methods:
            found = [run["predictions"][kind][method] for run in runs]
            pairs = list(zip(found, runs, strict=True))
            rows.append(
                [
                    kind.replace("_", "-"),
                    method,
                    show(_median(_over(f["error"][at], r["growth"][at]) for f, r in pairs)),
                    f"{100 * _median(f['scores'][at]['test_accuracy'] for f in found):.2f} %",
                    f"{points_off(runs, kind, method, at):.2f}",
                    show(_median(f["scores"][at]["train_loss"] for f in found)),
                    show(_median(f["scores"][at]["test_loss"] for f in found)),
                    f"{_median(1e3 * f['seconds'] for f in found):.0f}",
                    f"{median(r['backprop'] / f['seconds'] for f, r in pairs):.1f}×",
                ]
            )
    true = [run["true"][at] for run in runs]
    rows.append(
        ["–", "true training", "0", f"{100 * median(s['test_accuracy'] for s in true):.2f} %",
         "0", show(median(s["train_loss"] for s in true)),
         show(median(s["test_loss"] for s in true)),
         f"{median(1e3 * run['backprop'] for run in runs):.0f}", "1×"]
    )  # fmt: skip
    heads = ["partition", "operator", "error", "test accuracy", "points off", "training loss"]
    heads += ["test loss", "ms", "faster"]
    main = Table(
        heads, rows,
        f"Experiment 2, {settings['headline']} steps predicted: medians over "
        f"{settings['seeds']} seeds", words=(0, 1),
        notes=[("Points off: |test accuracy − true training's|, in points of 100. Error: distance "
               "from the true weights over the distance truly travelled. Accuracy and loss of "
               f"training on {settings['evaluated']:,} digits.")],
    )  # fmt: skip
    tables = {
        "digits-verdict": _digits_verdict(runs, settings),
        "digits-methods": _methods(result["methods"]),
        "digits-errors": main,
    }
    for part, caption in _STRETCH.items():
        tables[f"digits-{part.replace('_', '-')}"] = _digits_stretch(runs, settings, part, caption)
    return tables


def points_off(
    runs: Sequence[dict[str, Any]], kind: str, method: str, at: int, true: str = "true"
) -> float:
    """Median over the seeds of |predicted - true test accuracy|, in points."""
    points: float = 100 * median(
        abs(run["predictions"][kind][method]["scores"][at]["test_accuracy"]
            - run[true][at]["test_accuracy"])
        for run in runs
    )  # fmt: skip
    return points


def _digits_verdict(runs: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Table:
    stops = [i for i, t in enumerate(settings["horizons"]) if t <= settings["headline"]]
    rows = []
    for method in _JUDGED:
        for kind in runs[0]["predictions"]:
            worst = max(points_off(runs, kind, method, i) for i in stops)
            smooth = max(points_off(runs, kind, method, i, "true_mean") for i in stops)
            faster = median(
                run["backprop"] / run["predictions"][kind][method]["seconds"] for run in runs
            )
            rows.append(
                [method, kind.replace("_", "-"), f"{worst:.2f}", _holds(worst <= _TARGET_POINTS),
                 f"{smooth:.2f}", f"{faster:.1f}×", _holds(faster >= _TARGET_FASTER)]
            )  # fmt: skip
    heads = ["operator", "partition", f"most points off within {settings['headline']} steps"]
    heads += [f"at most {_TARGET_POINTS:g}", "the same, off the mean of true steps", "faster"]
    heads.append(f"at least {_TARGET_FASTER:g}×")
    return Table(
        heads, rows, f"Experiment 2, what must hold: medians over {settings['seeds']} seeds",
        words=(0, 1, 3, 6),
        notes=[("Points off: at each of the steps of the tables below, the median over the seeds "
               "of the distance in test accuracy; of these the largest.")],
    )  # fmt: skip


# operators of the verdict and of the tables along the stretch
_JUDGED = ("auto", "fixed")
_STRETCH = {
    "test_accuracy": "Test accuracy",
    "train_accuracy": "Training accuracy",
    "test_loss": "Test loss",
    "train_loss": "Training loss",
}


def _digits_stretch(
    runs: Sequence[dict[str, Any]], settings: dict[str, Any], part: str, caption: str
) -> Table:
    count = range(len(settings["horizons"]))

    def shown(scores: Sequence[dict[str, Any]]) -> str:
        middle = _median(s[part] for s in scores)
        return f"{100 * middle:.2f} %" if part.endswith("accuracy") else show(middle)

    rows = [
        [label, *(shown([run[true][i] for run in runs]) for i in count)]
        for label, true in (
            ("true training", "true"),
            ("true training, mean of the last 20 steps", "true_mean"),
        )
    ]
    still = shown([run["mean"] for run in runs])
    rows.append(["standing still at the mean of the window's last 20", *([still] * len(count))])
    for method in _JUDGED:
        for kind in runs[0]["predictions"]:
            scores = [run["predictions"][kind][method]["scores"] for run in runs]
            label = f"{method}, {kind.replace('_', '-')}"
            rows.append([label, *(shown([s[i] for s in scores]) for i in count)])
    heads = ["weights", *(f"{t} steps" for t in settings["horizons"])]
    return Table(heads, rows, f"{caption} along the stretch, medians", words=(0,))


def complexity_table() -> Table:
    """Operations of a predicted step, as docs/complexity.md derives them."""
    rows = [
        ["network", "n", "2 n²", "O(h⁴)"],
        ["layer", "h² + h", "2 n h²", "O(h⁴)"],
        ["node", "h + 1", "2 n h", "O(h³)"],
        ["quasi-node of size q", "q", "2 n q", "O(h²)"],
        ["weight", "1", "2 n", "O(h²)"],
        ["any, small form", "any", "((m² + 3 m) n + c B m³) / T", "O(h²), less with T"],
        ["backpropagation", "–", "6 n β", "O(β h²)"],
    ]
    return Table(
        ["partition", "weights a block", "operations a step", "layers of width h"], rows,
        "What a predicted step costs", words=(0, 1, 2, 3),
        notes=[("n weights, m snapshots, B blocks, T steps predicted at once, batches of β, c some "
               "tens. The first five are operators written out and applied step by step, as the "
               "paper counts.")],
    )  # fmt: skip


def show(value: float) -> str:
    """A number with as many digits as mean something."""
    if not math.isfinite(value) or value >= 1e4:
        return "diverges"
    return f"{value:.3f}" if 0.01 <= value < 10 else f"{value:.3g}"


def _methods(methods: dict[str, str]) -> Table:
    rows = [[name, says] for name, says in methods.items()]
    return Table(["operator", "how it is fitted"], rows, "Operators", words=(0, 1))


def _median(values: Any) -> float:
    middle: float = median(math.inf if value is None else value for value in values)
    return middle


def _over(value: float | None, by: float) -> float:
    return math.inf if value is None else value / by


def _holds(holds: bool) -> str:
    return "holds" if holds else "does not hold"
