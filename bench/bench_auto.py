# SPDX-License-Identifier: BSD-3-Clause
"""`auto=True` against every fixed choice, on recorded trainings: what both predict, and the cost.

The error of a choice on a case (a training and a partition) is that of the predicted displacement,
relative to the true one, over all weights; the mean of a quarter, one and two windows ahead.
"""

from __future__ import annotations

import statistics
from functools import cache

import pytest

from koopfast import ConfigError, KoopmanOperator
from recorded import ALSO_TUNED, HELD_OUT, TUNED, displacement_errors, recorded
from trajectories import decaying, equal_blocks

CHOICES = [
    *(
        {"block_average": a, "delays": q, "rank": rank}
        for a in (1, 2, 4)
        for q in (1, 2, 4, 8)
        for rank in (8, 16, None)
    ),
    *({"rank": rank} for rank in (1, 2, 4, "auto")),
    *({"observables": "state", "rank": rank} for rank in (2, 4, 8, 16, "auto")),
    *({"observables": "state", "delays": 2, "rank": rank} for rank in (4, 8)),
    *({"symmetric": True, "rank": rank} for rank in (4, 16)),
    *(
        {"estimator": estimator, "block_average": a, "rank": 8}
        for estimator in ("forward_backward", "total_least_squares")
        for a in (1, 4)
    ),
]


def name_of(choice):
    return ", ".join(f"{key} {value}" for key, value in choice.items())


def error(training, kind, choice):
    case = recorded(training)
    try:
        operator = KoopmanOperator.fit(case.window, case.partitions[kind], **choice)
    except ConfigError:
        return 1.0  # more delays and averages than the window has snapshots: stand still
    errors = displacement_errors(operator.predict(case.horizons), case)
    # A prediction that overflows is as bad as any.
    return statistics.mean(e if e < 1e3 else 1e3 for e in errors)


@cache
def compared(trainings):
    """Errors of auto, {case: error}, and of every choice, {name: {case: error}}."""
    cases = [(t, kind) for t in trainings for kind in recorded(t).partitions]
    own = {case: error(*case, {"auto": True}) for case in cases}
    fixed = {name_of(c): {case: error(*case, c) for case in cases} for c in CHOICES}
    return own, fixed


def by_training(errors):
    """Means over the partitions of each training."""
    trainings = dict.fromkeys(training for training, _ in errors)
    return {
        t.name: statistics.mean(e for (own, _), e in errors.items() if own is t) for t in trainings
    }


def median_ratios(own, fixed):
    """Median over the cases of auto's error over that of each fixed choice."""
    return {
        name: statistics.median(own[case] / max(errors[case], 1e-9) for case in own)
        for name, errors in fixed.items()
    }


def worst_ratios(own, fixed):
    """auto's error over that of the best fixed choice for each training, chosen in hindsight."""
    best = {name: by_training(errors) for name, errors in fixed.items()}
    return {
        name: (e / min(errors[name] for errors in best.values()), e)
        for name, e in by_training(own).items()
    }


@pytest.mark.benchmark(group="auto against every fixed choice")
@pytest.mark.parametrize(
    "trainings", [TUNED, ALSO_TUNED, HELD_OUT], ids=["tuned", "also tuned", "held out"]
)
def test_auto_is_near_the_best_fixed_choice(benchmark, trainings):
    own, fixed = compared(trainings)
    medians, worst = median_ratios(own, fixed), worst_ratios(own, fixed)
    case = recorded(trainings[0])
    benchmark.pedantic(
        lambda: KoopmanOperator.fit(case.window, case.partitions["node"], auto=True), rounds=3
    )
    beaten = sum(ratio < 1 for ratio in medians.values())
    hardest = max(medians, key=lambda name: medians[name])
    benchmark.extra_info.update(
        choices=len(fixed),
        cases=len(own),
        beaten_in_median=beaten,
        hardest_choice=hardest,
        median_ratio_to_it=round(medians[hardest], 3),
        ratio_to_best_in_hindsight={name: round(ratio, 2) for name, (ratio, _) in worst.items()},
        error={name: round(e, 3) for name, (_, e) in worst.items()},
    )
    print(
        f"\n{len(fixed)} fixed choices, {beaten} worse than auto in the median of {len(own)} cases"
    )
    for name, ratio in sorted(medians.items(), key=lambda item: -item[1])[:8]:
        print(f"  median error of auto / {name}: {ratio:.2f}")
    for name, (ratio, e) in worst.items():
        print(f"  {name}: error {e:.3f}, {ratio:.2f} of the best fixed choice for it")
    # On what nothing was tuned on, one choice may be as good in the median by chance.
    assert max(medians.values()) <= (1.05 if trainings is HELD_OUT else 1)
    assert max(ratio for ratio, _ in worst.values()) <= 1.5


@pytest.mark.benchmark(group="auto against every fixed choice")
@pytest.mark.parametrize(("blocks", "size"), [(200, 20), (200, 100)])
def test_microseconds_a_block(benchmark, blocks, size):
    snapshots = decaying(32, blocks * size)
    partition = equal_blocks(blocks * size, size)
    fit = benchmark.pedantic(
        lambda: KoopmanOperator.fit(snapshots, partition, auto=True), rounds=3, warmup_rounds=1
    )
    assert fit.ok
    benchmark.extra_info["microseconds_a_block"] = 1e6 * benchmark.stats.stats.median / blocks
