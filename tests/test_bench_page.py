# SPDX-License-Identifier: BSD-3-Clause
"""What `make bench` makes of its measurements: exponents with their intervals, and one page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).parents[1] / "bench"
SIZES = [10.0, 100.0, 1000.0, 10_000.0]


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return pytest.importorskip("growth")


def rounds(slope: float, scatter: float) -> np.ndarray:
    """(9, 4): costs that grow with this exponent, each off by a random factor."""
    noise = np.random.default_rng(1).normal(size=(9, len(SIZES)))
    return 1e-4 * np.array(SIZES) ** slope * np.exp(scatter * noise)


@pytest.mark.parametrize("slope", [0.0, 1.0, 1.5])
def test_exponents_are_slopes_of_logarithms(growth: Any, slope: float) -> None:
    found = growth.exponent(SIZES, np.median(rounds(slope, 0.0), axis=0))
    assert float(found) == pytest.approx(slope)


def test_the_interval_holds_the_exponent_and_narrows_with_the_scatter(growth: Any) -> None:
    widths = []
    for scatter in (0.02, 0.2):
        low, high = growth.interval(SIZES, rounds(1.0, scatter))
        assert low < 1 < high
        widths.append(high - low)
    assert widths[0] < widths[1]


def test_a_slope_that_theory_forbids_fails(growth: Any) -> None:
    samples = rounds(1.5, 0.01)
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75], axis=0).tolist()
    done = growth.Study(
        "a fit", "weights", "seconds", SIZES, median, low, high, 1.5, (1.4, 1.6), (1, 1), 0.2, "n"
    )
    with pytest.raises(AssertionError, match=r"grow as weights\^1\.50"):
        done.check()


def result(slope: float) -> dict[str, Any]:
    """As pytest-benchmark saves one study and one plain benchmark."""
    samples = rounds(slope, 0.05)
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75], axis=0).tolist()
    study = {
        "title": "a fit",
        "size": "weights",
        "cost": "seconds",
        "x": SIZES,
        "median": median,
        "low": low,
        "high": high,
        "exponent": slope,
        "interval": (slope - 0.03, slope + 0.04),
        "theory": (1.0, 1.0),
        "tolerance": 0.2,
        "why": "every weight is read once",
    }
    stats = {"median": 1e-3, "q1": 9e-4, "q3": 2e-3, "data": [1e-3] * 1000}
    common = {"stats": stats, "fullname": "bench"}
    return {
        "machine_info": {"node": "a-host-name", "cpu": {}},
        "benchmarks": [
            {"name": "test_weights", "group": "growth", "extra_info": {"study": study}, **common},
            {"name": "test_fit", "group": "peers", "extra_info": {"speed_up": 3.5}, **common},
        ],
    }


def test_the_page_stands_alone_and_raw_samples_are_left_out(tmp_path: Path) -> None:
    raw, folder = tmp_path / "raw.json", tmp_path / "out"
    raw.write_text(json.dumps(result(1.02)))
    command = [sys.executable, str(BENCH / "page.py"), str(raw), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    saved = (folder / "benchmarks.json").read_text()
    assert "a-host-name" not in saved
    assert all("data" not in b["stats"] for b in json.loads(saved)["benchmarks"])
    page = (folder / "report.html").read_text()
    for said in ("exponent", "0.99 to 1.06", "every weight is read once", "speed_up", "<svg"):
        assert said in page
    assert "<script src" not in page
    assert "<link" not in page
    assert (folder / "growth.png").stat().st_size > 10_000


def test_axes_are_logarithmic_and_bars_are_quartiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    page = pytest.importorskip("page")
    from koopfast.report import new_figure

    study = result(1.0)["benchmarks"][0]["extra_info"]["study"]
    ax = new_figure(4.0, 3.0).subplots()
    page._draw(ax, study)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    [bars] = ax.containers[0].lines[2]
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, np.stack([study["low"], study["high"]], axis=1))
