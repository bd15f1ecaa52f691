# SPDX-License-Identifier: BSD-3-Clause
"""Operators from moments that are summed as snapshots arrive: the same as from all snapshots."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import cases
from compare import assert_same_spectrum, on_threads, relative_error
from koopfast import (
    CheckpointError,
    ConfigError,
    KoopmanConfig,
    KoopmanOperator,
    KoopmanTrainer,
    MomentBuffer,
    Partition,
    SnapshotBuffer,
    _reference,
)
from training_runs import smooth_run

OBSERVABLES = ("state", "increments")
HORIZONS = [0.0, 1.0, 2.5, 10.0]
N = 30
PARTITIONS = {
    "one block": Partition.from_segments([[(0, N)]], N),
    "weights": Partition.from_segments([[(i, 1)] for i in range(N)], N),
    "interleaved": cases.interleaved(N, 4),
    "mixed": cases.mixed(N),
    "nodes of two segments": Partition.from_segments(
        [[(5 * i, 5), (25 + i, 1)] for i in range(5)], N
    ),
}


def recorded(snapshots, partition, **options):
    """A buffer that has seen the rows one by one."""
    buffer = MomentBuffer(None, partition, dtype=snapshots.dtype, **options)
    for row in snapshots:
        buffer.record(row)
    return buffer


def assert_same_fit(buffer, snapshots, partition, *, limit, **options):
    """Rank, status, hindcast, spectrum and predictions are those of the whole window."""
    streamed = buffer.fit(**options)
    kinds = {"observables": buffer.observables, "delays": buffer.delays}
    whole = KoopmanOperator.fit(snapshots, partition, **kinds, **options)
    assert torch.equal(streamed.status, whole.status)
    assert torch.equal(streamed.rank, whole.rank)
    for b in range(partition.n_blocks):
        values = streamed.eigenvalues_of(b), whole.eigenvalues_of(b)
        assert_same_spectrum(*values, tolerance=max(1e-5, 10 * limit))
    got, expected = streamed.predict(HORIZONS), whole.predict(HORIZONS)
    assert torch.equal(got[0], snapshots[-1])
    assert relative_error(got, expected) < limit


@pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS)
@pytest.mark.parametrize("delays", [1, 2, 3])
@pytest.mark.parametrize("observables", OBSERVABLES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_moments_fit_what_the_whole_window_does(dtype, observables, delays, partition):
    snapshots = cases.random_walk(150, N, dtype)
    buffer = recorded(snapshots, partition, observables=observables, delays=delays)
    limit = {torch.float64: 1e-7, torch.float32: 1e-6}.get(dtype, 1e-2)
    assert_same_fit(buffer, snapshots, partition, limit=limit, rank=None, tolerance=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 3},
        {"rank": 0.9},
        {"rank": "gavish-donoho"},
        {"rank": None, "ridge": 1e-2},
        {"rank": 3, "symmetric": True},
        {"rank": 3, "estimator": "forward_backward"},
        {"rank": 3, "estimator": "total_least_squares"},
        {"rank": None, "unstable": "keep"},
    ],
    ids=str,
)
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_every_option_of_a_fit_is_one_of_moments(observables, options):
    partition = cases.interleaved(N, 4)
    snapshots = cases.random_walk(150, N) + cases.SYSTEMS[2].states(N, range(150))
    buffer = recorded(snapshots, partition, observables=observables, delays=2)
    assert_same_fit(buffer, snapshots, partition, limit=1e-7, tolerance=1e-4, **options)


@pytest.mark.parametrize("count", [3, 4, 5, 8, 20, 47, 48, 49, 50, 51, 81, 82, 83, 130])
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_any_number_of_snapshots_can_be_fitted(observables, count):
    # Before, at and after the moments at which snapshots are folded.
    partition = cases.interleaved(12, 3)
    system = cases.LinearSystem("slow", (cases.pair(0.999, 0.05), cases.real(0.99)))
    snapshots = system.states(12, range(count)) + cases.noise(count, 12, 1e-4)
    buffer = recorded(snapshots, partition, observables=observables)
    assert buffer.count == len(buffer) == count
    buffer.fit(rank="auto")
    assert_same_fit(buffer, snapshots, partition, limit=1e-6, rank=2, tolerance=1e-5)


@pytest.mark.parametrize("count", [20, 75, 140])
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_the_hindcast_is_of_the_snapshots_held_out(observables, count):
    # By hand: fit all but the last intervals, with each rank, and predict these.
    snapshots = cases.random_walk(count, 6) + cases.SYSTEMS[4].states(6, range(count))
    partition = Partition.from_segments([[(0, 6)]], 6)
    operator = recorded(snapshots, partition, observables=observables, held_out=12).fit()
    tail = min(12, (count - (3 if observables == "increments" else 2) + 1) // 3)
    moved, errors, trusted = snapshots[-tail:] - snapshots[-tail - 1], {0: 1.0}, {}
    for rank in (1, 2, 3, 4, 6):
        fit = KoopmanOperator.fit(snapshots[:-tail], observables=observables, rank=rank)
        predicted = fit.predict(range(1, tail + 1)) - snapshots[-tail - 1]
        errors[rank] = float((predicted - moved).norm() / moved.norm())
        wrong = (predicted - moved).norm(dim=1) > 0.5 * moved.norm(dim=1)
        trusted[rank] = float((~wrong).long().cumprod(0).sum())
    best = min(errors, key=lambda rank: errors[rank])
    assert operator.rank.tolist() == [best]
    assert float(operator.hindcast_error[0]) == pytest.approx(errors[best], rel=1e-6)
    assert float(operator.trusted_horizon[0]) == trusted.get(best, 0.0)


@pytest.mark.parametrize("observables", OBSERVABLES)
def test_ten_thousand_steps_of_a_small_network_cost_megabytes(observables):
    model = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh())
    model.append(nn.Linear(10, 2))
    buffer = MomentBuffer(model, Partition.node(model), observables=observables)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    sizes = set()
    for t in range(10_000):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 - 1e-4)
        buffer.record()
        if t > 100:
            sizes.add(buffer.nbytes)
    assert buffer.count == 10_000
    assert len(sizes) == 1
    assert sizes.pop() < 100_000  # bytes; the snapshots alone would take 6 MB
    limit = buffer.fit(rank=1).predict(math.inf)[0]
    share = 0.0 if observables == "state" else 0.01
    assert float(limit.abs().max() / weights.abs().max()) <= share


def test_motion_by_parts_in_a_thousand_keeps_its_digits():
    # Squares of the weights would leave the motion's own a share of 1e-8 of their digits.
    system = cases.LinearSystem("slow", (cases.real(0.99), cases.real(0.9), cases.real(0.7)))
    snapshots = 1 + 1e-4 * system.states(8, range(400))
    partition = Partition.from_segments([[(0, 8)]], 8)
    for observables, tolerance in (("increments", 1e-7), ("state", 1e-10)):
        operator = recorded(snapshots, partition, observables=observables).fit(
            rank=None, tolerance=tolerance
        )
        known = 1 + 1e-4 * system.states(8, [399 + 5])
        moved = (operator.predict(5) - known).norm() / (known - snapshots[-1]).norm()
        assert float(moved) < 1e-4


@pytest.mark.parametrize("observables", OBSERVABLES)
@pytest.mark.parametrize("saved_after", [1, 20, 49, 50, 90])
def test_recording_resumes_bit_for_bit(saved_after, observables):
    snapshots, partition = cases.random_walk(120, N, torch.float32), cases.mixed(N)
    through = recorded(snapshots, partition, observables=observables, delays=2)
    state = recorded(
        snapshots[:saved_after], partition, observables=observables, delays=2
    ).state_dict()
    resumed = MomentBuffer(None, partition, observables=observables, delays=2)
    resumed.load_state_dict(state)
    for row in snapshots[saved_after:]:
        resumed.record(row)
    assert resumed.count == through.count
    assert torch.equal(resumed.fit().predict(HORIZONS), through.fit().predict(HORIZONS))


def test_a_checkpoint_of_something_else_is_refused():
    snapshots, partition = cases.random_walk(120, N, torch.float32), cases.mixed(N)
    buffer = recorded(snapshots, partition)
    state = buffer.state_dict()
    before = buffer.fit().predict(HORIZONS)
    damaged = [
        ({**state, "delays": 2}, "delays"),
        ({**state, "blocks": torch.tensor([N])}, "other blocks"),
        ({**state, "lags": state["lags"][:-1]}, "contradicts itself"),
        ({**state, "head": None}, "contradicts itself"),
        ({**state, "dropped": "few"}, "contradicts itself"),
        (
            {**state, "recent": {**state["recent"], "snapshots": snapshots[:3]}},
            "3 kept of at least",
        ),
        ({key: value for key, value in state.items() if key != "sums"}, "missing"),
    ]
    for other, message in damaged:
        with pytest.raises(CheckpointError, match=message):
            buffer.load_state_dict(other)
    assert torch.equal(buffer.fit().predict(HORIZONS), before)


def test_an_interrupt_leaves_nothing_counted_twice(monkeypatch):
    snapshots, partition = cases.random_walk(120, N, torch.float32), cases.mixed(N)

    def interrupted(self, count):
        raise KeyboardInterrupt

    buffer = MomentBuffer(None, partition)

    def record_all():
        for row in snapshots:
            buffer.record(row)

    with monkeypatch.context() as patch:
        patch.setattr(SnapshotBuffer, "drop_oldest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            record_all()
    assert buffer.count == 0
    record_all()
    expected = recorded(snapshots, partition).fit().predict(HORIZONS)
    assert torch.equal(buffer.fit().predict(HORIZONS), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
@pytest.mark.parametrize("at", [0, 30, 119])
@pytest.mark.parametrize("observables", OBSERVABLES)
def test_a_snapshot_that_is_not_finite_is_a_status(observables, at, bad):
    snapshots = cases.random_walk(120, 20)
    snapshots[at, 3] = bad
    partition = Partition.from_segments([[(0, 10)], [(10, 10)]], 20)
    operator = recorded(snapshots, partition, observables=observables).fit()
    assert operator.status.tolist()[0] == _reference.NON_FINITE
    assert operator.status.tolist()[1] != _reference.NON_FINITE
    predicted = operator.predict([1, 2])
    assert bool(predicted[:, :10].isnan().all())
    assert bool(predicted[:, 10:].isfinite().all())


def test_weights_that_do_not_move_are_still():
    partition = Partition.from_segments([[(0, 4)]], 4)
    operator = recorded(torch.full((100, 4), 0.3), partition).fit()
    assert operator.status.tolist() == [_reference.STILL]
    assert torch.equal(operator.predict([100])[0], torch.full((4,), 0.3))


def test_results_do_not_depend_on_threads():
    snapshots = cases.random_walk(120, 200, torch.float32)
    partition = cases.interleaved(200, 40)
    one, three = on_threads([1, 3], lambda: recorded(snapshots, partition).fit().predict(HORIZONS))
    assert torch.equal(one, three)


def test_parameters_strides_averages_and_a_capacity():
    model = nn.Linear(3, 2)
    partition = Partition.node(model)
    buffer = MomentBuffer(model, partition, stride=2, average=True, capacity=70)
    rows = []
    while not buffer.full:
        states = []
        for _ in range(2):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.01 * torch.randn_like(p))
            states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
            stored = buffer.record()
        assert stored
        rows.append((states[0] + states[1]) / 2)
    assert not buffer.record()
    assert_same_fit(buffer, torch.stack(rows), partition, limit=1e-5, rank=2, tolerance=1e-4)
    buffer.clear()
    assert buffer.count == 0
    with pytest.raises(ConfigError, match="at least 3 recorded states, got 0"):
        buffer.fit()


def test_an_operator_of_moments_shows_its_spectrum():
    system = cases.SYSTEMS[0]
    partition = Partition.from_segments([[(0, 6)]], 6)
    operator = recorded(system.states(6, range(90)), partition).fit(rank=3)
    assert_same_spectrum(operator.eigenvalues, system.eigenvalues(), tolerance=1e-6)
    modes = operator.modes_of(0, expand=True)
    assert modes.shape == (6, 3)
    steps = modes @ operator.amplitudes_of(0)
    assert torch.allclose(operator.predict(1)[0], operator.predict(0)[0] + steps.real, atol=1e-12)
    assert "90 snapshots" in repr(operator)


def test_blocks_too_large_for_their_moments_are_refused():
    with pytest.raises(ConfigError, match=r"moments would take 1600000000 bytes .* 10000 weights"):
        MomentBuffer(torch.zeros(10_000))
    MomentBuffer(torch.zeros(10_000), max_bytes=2 << 30)
    small = Partition.from_segments([[(i, 20)] for i in range(0, 10_000, 20)], 10_000)
    MomentBuffer(torch.zeros(10_000), small)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MomentBuffer(None), "pass a partition"),
        (lambda: MomentBuffer(torch.zeros(4), observables="both"), "observables"),
        (lambda: MomentBuffer(torch.zeros(4), delays=0), "delays"),
        (lambda: MomentBuffer(torch.zeros(4), held_out=0), "held_out"),
        (lambda: MomentBuffer(torch.zeros(4), cases.interleaved(5, 2)), "covers 5 weights"),
        (lambda: MomentBuffer(torch.zeros(4), "node"), "expected a Partition"),
        (lambda: MomentBuffer(torch.zeros(4)).record(torch.zeros(4)), "parameters=None"),
        (lambda: MomentBuffer(None, cases.interleaved(5, 2)).record(), r"shape \(5,\), got None"),
        (
            lambda: MomentBuffer(None, cases.interleaved(5, 2)).record(torch.zeros(4)),
            r"shape \(5,\), got \(4,\)",
        ),
    ],
)
def test_what_cannot_work_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def streaming_run(steps, state=None):
    """Full-batch training with jumps from windows of 90 snapshots that are never kept."""
    run = smooth_run()
    options = {"partition": "node", "window": 90, "stride": 2, "rank": 3}
    trainer = KoopmanTrainer(run.model, run.optimizer, streaming=True, **options)
    if state is not None:
        run.model.load_state_dict(state["model"])
        trainer.load_state_dict(state["trainer"])
    run.train(trainer, steps)
    return run, trainer


def test_a_trainer_can_jump_from_moments():
    run, trainer = streaming_run(360)
    assert [jump.accepted for jump in trainer.history.jumps] == [True, True]
    windowed = smooth_run()
    plain = KoopmanTrainer(
        windowed.model, windowed.optimizer, partition="node", window=90, stride=2, rank=3
    )
    windowed.train(plain, 180)
    one, other = trainer.history.jumps[0], plain.history.jumps[0]
    assert one.horizon == other.horizon
    assert one.loss_after == pytest.approx(other.loss_after, rel=1e-4)
    assert float(run.loss().detach()) < one.loss_before


@pytest.mark.parametrize("saved_after", [3, 120, 181])
def test_training_from_moments_resumes_bit_for_bit(saved_after, tmp_path):
    run, trainer = streaming_run(saved_after)
    state = {"model": run.model.state_dict(), "trainer": trainer.state_dict()}
    torch.save(state, tmp_path / "state")
    resumed, _ = streaming_run(230 - saved_after, torch.load(tmp_path / "state", weights_only=True))
    through, _ = streaming_run(230)
    for one, other in zip(resumed.weights(), through.weights(), strict=True):
        assert torch.equal(one, other)


def test_streaming_goes_with_gram_matrices_only():
    with pytest.raises(ConfigError, match='only "gram"'):
        KoopmanConfig(streaming=True, method="qr")


@pytest.mark.parametrize("field", ["observables", "delays"])
def test_moments_are_of_one_kind_of_observables(field):
    partition = Partition.from_segments([[(0, 3)]], 3)
    with pytest.raises(ConfigError, match=f"^{field}: of moments"):
        MomentBuffer(None, partition, **{field: "auto"})


@pytest.mark.parametrize(
    ("field", "value"),
    [("observables", "auto"), ("delays", "auto"), ("estimator", "auto"), ("block_average", 2)],
)
def test_streaming_leaves_nothing_but_the_rank_to_choose(field, value):
    with pytest.raises(ConfigError, match=f"^{field}: with streaming=True"):
        KoopmanConfig(streaming=True, **{field: value})


def test_a_stream_does_not_choose_an_estimator():
    buffer = MomentBuffer(None, Partition.from_segments([[(0, 1)]], 1))
    for t in range(4):
        buffer.record(torch.tensor([0.5**t]))
    with pytest.raises(ConfigError, match=r"^estimator: of moments"):
        buffer.fit(estimator="auto")


@pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS)
def test_rows_on_a_device_are_summed_to_the_same_moments(partition, device):
    snapshots = cases.random_walk(60, N)
    here, there = recorded(snapshots, partition), recorded(snapshots.to(device), partition)
    fits = [buffer.fit(rank=2) for buffer in (here, there)]
    assert torch.equal(fits[0].rank, fits[1].rank)
    rows = [fit.predict([1.0, 2.5]).cpu() for fit in fits]
    assert relative_error(rows[1], rows[0]) < 1e-7


def test_training_from_moments_on_a_device_is_that_of_the_host(device):
    ends = []
    for where in (torch.device("cpu"), device):
        run = smooth_run()
        run.model.to(where)
        run.x, run.y = run.x.to(where), run.y.to(where)
        run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
        options = {"streaming": True, "window": 12, "stride": 1, "partition": "node", "rank": 1}
        trainer = KoopmanTrainer(run.model, run.optimizer, **options)
        run.train(trainer, 36)
        ends.append(torch.cat([p.flatten().cpu() for p in run.weights()])[None])
    assert len(trainer.history.jumps) == 3
    assert relative_error(ends[1], ends[0]) < 1e-6
