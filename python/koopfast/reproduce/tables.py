# SPDX-License-Identifier: BSD-3-Clause
"""The numbers of both experiments as tables, the same for the page and for the document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from koopfast.report import Table

__all__ = ["SHOWN_PARTITION", "complexity_table", "digits_tables", "ratio", "solver_tables"]

# The partition of the headline: one operator for the whole network, which the small form affords.
SHOWN_PARTITION = "network"

_TARGET_ERROR, _TARGET_FASTER, _TARGET_POINTS = 0.05, 10.0, 0.3


def ratio(run: dict[str, Any], kind: str, method: str, at: int, best: int | None = None) -> float:
    """median |error| / median |growth| over the networks at horizon number ``at``; with ``best``
    over that many networks of the lowest loss at the end of the window."""
    networks = range(len(run["growth"]))
    order = sorted(networks, key=lambda i: run["loss_now"][i][0])
    chosen = order[:best] if best else order
    error = run["predictions"][kind][method]["error"]
    errors = [math.inf if error[i][at] is None else error[i][at] for i in chosen]
    over: float = median(errors) / median(run["growth"][i][at] for i in chosen)
    return over


def solver_tables(result: dict[str, Any]) -> dict[str, Table]:
    """Tables of experiment 1 by the names of their markers in the document."""
    settings = result["settings"]
    horizon, shown = settings["horizon"], settings["shown"]
    plain = [run for run in result["runs"] if not run["noise"]]
    noisy = [run for run in result["runs"] if run["noise"]]
    return {
        "solver-verdict": _solver_verdict(plain, settings),
        "solver-errors": _errors(plain, settings, None, f"{settings['networks']} networks"),
        "solver-errors-best": _errors(
            plain, settings, shown, f"the {shown} of lowest loss when the stretch begins"
        ),
        "solver-noisy": _errors(
            noisy, settings, None, "points perturbed at every step, all networks"
        ),
        "solver-horizons": _horizons(plain),
        "solver-losses": _solver_losses(plain),
        "solver-times": _solver_times(plain, horizon),
        "solver-rates": _rates(result),
        "solver-sensitivity": _sensitivity(plain, settings),
        "solver-methods": _methods(result["methods"]),
    }


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
        rows.append(
            [
                run["optimizer"],
                f"{run['rate']:g}",
                show(ratio(run, "node", "paper", at)),
                show(error),
                _holds(error <= _TARGET_ERROR),
                f"{faster:.0f}×",
                f"{slowest[0]:.0f}× ({slowest[1]})",
                _holds(slowest[0] >= _TARGET_FASTER),
            ]
        )
    heads = ["optimizer", "rate", "paper's, node", f"auto, {SHOWN_PARTITION}"]
    heads += [f"at most {_TARGET_ERROR:g}", f"auto, {SHOWN_PARTITION}: faster"]
    heads += ["auto, slowest partition: faster", f"at least {_TARGET_FASTER:g}×"]
    return Table(
        heads, rows, f"Experiment 1, {settings['horizon']:,} steps predicted", words=(0, 4, 7),
        notes=[("Error: median distance from the true weights over median distance truly "
               "travelled; standing still gives 1. Faster: than backpropagation of one network, "
               "fit and prediction included; recording, a copy or a sum a step, is not.")],
    )  # fmt: skip


def _errors(
    runs: Sequence[dict[str, Any]], settings: dict[str, Any], best: int | None, whose: str
) -> Table:
    rows = []
    for run in runs:
        at = run["horizons"].index(settings["horizon"])
        rows += [
            [run["optimizer"], kind, *(show(ratio(run, kind, m, at, best)) for m in methods)]
            for kind, methods in run["predictions"].items()
        ]
    heads = ["optimizer", "partition", *runs[0]["predictions"]["node"]]
    caption = f"Error over distance travelled after {settings['horizon']:,} steps: {whose}"
    return Table(heads, rows, caption, words=(0, 1))


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
        notes=[("Medians of turns taken in one process on one thread. A stack's share: all "
               "networks trained at once in one graph, divided by their number, which is the "
               "least that backpropagation costs here.")],
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
    return {
        "digits-verdict": _digits_verdict(runs, settings),
        "digits-methods": _methods(result["methods"]),
        "digits-errors": main,
        "digits-horizons": _digits_horizons(runs, settings),
    }


def points_off(runs: Sequence[dict[str, Any]], kind: str, method: str, at: int) -> float:
    """Median over the seeds of |predicted - true test accuracy|, in points."""
    points: float = 100 * median(
        abs(run["predictions"][kind][method]["scores"][at]["test_accuracy"]
            - run["true"][at]["test_accuracy"])
        for run in runs
    )  # fmt: skip
    return points


def _digits_verdict(runs: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Table:
    stops = [i for i, t in enumerate(settings["horizons"]) if t <= settings["headline"]]
    rows = []
    for kind in runs[0]["predictions"]:
        worst = max(points_off(runs, kind, "auto", i) for i in stops)
        faster = median(
            run["backprop"] / run["predictions"][kind]["auto"]["seconds"] for run in runs
        )
        rows.append(
            [kind.replace("_", "-"), f"{worst:.2f}", _holds(worst <= _TARGET_POINTS),
             f"{faster:.1f}×", _holds(faster >= _TARGET_FASTER)]
        )  # fmt: skip
    heads = ["auto, partition", f"most points off within {settings['headline']} steps"]
    heads += [f"at most {_TARGET_POINTS:g}", "faster", f"at least {_TARGET_FASTER:g}×"]
    return Table(heads, rows, "Experiment 2, what must hold", words=(0, 2, 4))


def _digits_horizons(runs: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Table:
    count = range(len(settings["horizons"]))

    def accuracy(scores: Sequence[dict[str, Any]]) -> str:
        return f"{100 * median(s['test_accuracy'] for s in scores):.2f} %"

    rows = [["true training", *(accuracy([run["true"][i] for run in runs]) for i in count)]]
    still = accuracy([run["mean"] for run in runs])
    rows.append(
        ["mean of the last 20 steps, standing still", *([still] * len(count))]
    )  # fmt: skip
    for kind in runs[0]["predictions"]:
        scores = [run["predictions"][kind]["auto"]["scores"] for run in runs]
        rows.append(
            [f"auto, {kind.replace('_', '-')}", *(accuracy([s[i] for s in scores]) for i in count)]
        )
    heads = ["weights", *(f"{t} steps" for t in settings["horizons"])]
    return Table(heads, rows, "Test accuracy along the stretch, medians", words=(0,))


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
