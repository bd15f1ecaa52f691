# SPDX-License-Identifier: BSD-3-Clause
"""Snapshots sent to the host. Streams and events are counted by stand-ins where there is no GPU."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from koopfast import ConfigError, KoopmanConfig, KoopmanTrainer, SnapshotBuffer, _offload


class Stream:
    """Runs what was put on it when somebody waits: the latest moment that a GPU might take."""

    def __init__(self, device=None):
        self.waiting = []

    def put(self, work):
        self.waiting.append(work)

    def run(self):
        while self.waiting:
            self.waiting.pop(0)()

    def wait_event(self, event):
        self.put(event.wait)

    synchronize = run


class Event:
    def __init__(self):
        self.stream, self.done = None, True

    def record(self, stream):
        self.stream, self.done = stream, False
        stream.put(self.finish)

    def finish(self):
        self.done = True

    def wait(self):
        while not self.done:
            self.stream.waiting.pop(0)()


@pytest.fixture
def streams(monkeypatch):
    """The current stream works at once, as the CPU does, but for its waits; the bus at the last
    moment."""
    current = Stream()
    current.put = lambda work: work()
    on = [current]

    @contextmanager
    def stream(one):
        on.append(one)
        yield
        on.pop()

    class Row:
        def __init__(self, row):
            self.row = row

        def copy_(self, source, non_blocking):
            assert non_blocking
            on[-1].put(lambda: self.row.copy_(source))

    empty = torch.empty

    def pinned(*size, pin_memory=False, **options):
        rows = empty(*size, **options)
        return Pinned(rows) if pin_memory else rows

    class Pinned:
        def __init__(self, rows):
            self.rows, self.nbytes = rows, rows.nbytes

        def __getitem__(self, key):
            return Row(self.rows[key]) if isinstance(key, int) else self.rows[key]

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current)
    current.lent = []
    lend = lambda stage, stream: current.lent.append((stage, stream))  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "record_stream", lend)
    return current


def test_a_stage_is_written_again_only_when_its_row_has_left(streams):
    rows = _offload.OffloadedRows(5, 3, torch.float32, torch.device("cpu"))
    for t in range(5):
        rows.stage.fill_(float(t))
        rows.send(t)
    assert rows.finished()[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_stage_is_not_given_away_while_the_bus_reads_it(streams):
    rows = _offload.OffloadedRows(5, 3, torch.float32, torch.device("cpu"))
    assert all(stage is lent for stage, (lent, _) in zip(rows._stages, streams.lent, strict=True))
    assert all(stream is rows._bus for _, stream in streams.lent)


def test_without_that_wait_rows_would_be_lost(streams, monkeypatch):
    monkeypatch.setattr(Stream, "wait_event", lambda self, event: None)
    rows = _offload.OffloadedRows(5, 3, torch.float32, torch.device("cpu"))
    for t in range(5):
        rows.stage.fill_(float(t))
        rows.send(t)
    assert rows.finished()[:, 0].tolist() != [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_buffer_that_sends_its_rows_holds_the_same(streams, monkeypatch):
    monkeypatch.setattr(SnapshotBuffer, "_sends", True)
    for average in (False, True):
        weight = nn.Parameter(torch.zeros(4))
        buffer = SnapshotBuffer([weight], capacity=3, stride=2, average=average, offload=True)
        assert tuple(buffer.snapshots.shape) == (0, 4)
        for t in range(6):
            weight.data.fill_(float(t))
            buffer.record()
        expected = [0.5, 2.5, 4.5] if average else [1.0, 3.0, 5.0]
        assert buffer.snapshots[:, 0].tolist() == expected
        assert buffer.nbytes == buffer.nbytes_needed
        assert buffer.nbytes_needed == buffer.device_bytes_needed + 64  # 3 * 4 * 4, rounded up


@pytest.mark.parametrize("average", [False, True])
def test_on_the_cpu_offloading_changes_nothing(average, device):
    def trained(offload):
        torch.manual_seed(0)
        model = nn.Linear(4, 3).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = KoopmanTrainer(
            model, optimizer, window=6, stride=2, average=average, horizon=4, offload=offload
        )
        x = torch.randn(16, 4, device=device)

        def loss():
            return model(x).square().mean()

        for _ in range(40):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            trainer.after_step(probe=loss)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    same, offloaded = trained(False), trained(True)
    if device.type == "cpu":
        assert torch.equal(same, offloaded)
    else:  # fitted on the host, and so rounded otherwise
        assert torch.allclose(same, offloaded, rtol=1e-3, atol=1e-5)


def test_rows_that_are_sent_cannot_be_captured(streams, monkeypatch):
    monkeypatch.setattr(SnapshotBuffer, "_sends", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ConfigError, match="between its replays"):
        SnapshotBuffer([nn.Parameter(torch.zeros(4))], capacity=3, offload=True).record()


def test_memory_is_stated_before_it_is_taken_and_reserved_at_once():
    buffer = SnapshotBuffer(nn.Linear(5, 3), capacity=4, stride=2, average=True)
    needed = buffer.nbytes_needed
    assert (buffer.nbytes, needed) == (0, 4 * 18 * 4 + 18 * 4)
    buffer.reserve()
    assert buffer.nbytes == needed
    before = buffer._rows.data_ptr()
    for _ in range(8):
        buffer.record()
    assert buffer._rows.data_ptr() == before


def test_what_does_not_go_with_offload_is_said():
    with pytest.raises(ConfigError, match=r"offload: expected True or False, got 1"):
        KoopmanConfig(offload=1)
    with pytest.raises(ConfigError, match=r"offload: with streaming=True"):
        KoopmanConfig(offload=True, streaming=True, delays=1, block_average=1)
