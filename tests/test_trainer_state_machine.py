# SPDX-License-Identifier: BSD-3-Clause
"""Random interleavings of all that can be done to a trainer, and what none of them may lose.

KOOPFAST_STATE_MACHINE=1000 tries as many interleavings instead of the few of an ordinary run.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from koopfast import (
    ConfigError,
    JumpRecord,
    KoopfastError,
    KoopmanTrainer,
    ParameterChangedError,
)
from training_runs import assert_same, everything, smooth_run

CONFIG: dict[str, Any] = {"window": 4, "stride": 2, "partition": "layer", "rank": 2, "cooldown": 1}
ERRORS = (LookupError("the probe's own"), KeyboardInterrupt(), RuntimeError("no memory"))


class Training(RuleBasedStateMachine):
    """A run and its trainer; ``expected_*`` is what the machine itself knows of them."""

    @initialize(
        optimizer=st.sampled_from(["sgd", "momentum", "adam", "adagrad"]),
        state=st.sampled_from(["keep", "reset"]),
        average=st.booleans(),
    )
    def begin(self, optimizer: str, state: str, average: bool) -> None:
        self.run = smooth_run(optimizer)
        config = {**CONFIG, "optimizer_state": state, "average": average}
        self.trainer = KoopmanTrainer(self.run.model, self.run.optimizer, **config)
        self.steps = 0
        self.stream = torch.get_rng_state()
        self.saved: tuple[bytes, int, dict[str, Any]] | None = None
        self.before_jump: dict[str, Any] | None = None  # where rollback leads
        self.accepted = self.rolled_back = 0

    def probe(self) -> Tensor:
        torch.rand(3)
        self.run.model.eval()
        loss = self.run.loss()
        if torch.is_grad_enabled():
            loss.backward()
        return loss

    def failing(self, call: int, error: BaseException) -> Callable[[], Tensor]:
        calls = iter(range(call))

        def probe() -> Tensor:
            if next(calls, None) is None:
                raise error
            return self.probe() * 0 - len(range(call))

        return probe

    def judge(self, record: JumpRecord | None, before: dict[str, Any]) -> None:
        """After whatever became of a jump, from the state before it."""
        now = everything(self.run)
        if record is None or not record.accepted:
            assert_same(now, before)
            return
        self.accepted += 1
        self.before_jump = before
        assert record.loss_after is not None
        assert record.loss_before is not None
        assert record.loss_after == self.run.loss().item() < record.loss_before
        kept = {"gradients", "gradient ids", "buffers", "modes", "torch stream"}
        if self.trainer.config.optimizer_state == "keep":
            kept.add("optimizer")
        assert_same({k: now[k] for k in kept}, {k: before[k] for k in kept})

    @rule(times=st.integers(1, 9))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.run.step()
            self.steps += 1
            before = everything(self.run)
            self.judge(self.trainer.after_step(self.probe), before)

    @rule()
    def call_without_a_step(self) -> None:
        before, state = everything(self.run), self.trainer.state_dict()
        assert self.trainer.after_step(self.probe) is None
        assert_same(everything(self.run), before)
        assert_same(self.trainer.state_dict(), state)

    @rule()
    def jump(self) -> None:
        before = everything(self.run)
        try:
            record = self.trainer.jump_now(self.probe)
        except ConfigError:  # too few snapshots
            record = None
        self.judge(record, before)

    @rule(call=st.integers(0, 3), error=st.sampled_from(ERRORS))
    def fail_in_a_jump(self, call: int, error: BaseException) -> None:
        before, tried = everything(self.run), len(self.trainer.history.jumps)
        try:
            record = self.trainer.jump_now(self.failing(call, error))
        except (ConfigError, type(error)):
            assert_same(everything(self.run), before)
            assert len(self.trainer.history.jumps) == tried
        else:
            assert record.kind == "still"  # there was nothing to probe

    @rule()
    def roll_back(self) -> None:
        before = everything(self.run)
        if self.before_jump is None:
            with pytest.raises(KoopfastError, match="no accepted jump"):
                self.trainer.rollback()
            assert_same(everything(self.run), before)
            return
        self.trainer.rollback()
        self.rolled_back += 1
        now = everything(self.run)
        for key in ("weights", "buffers"):
            assert_same(now[key], self.before_jump[key])
        assert_same(now["optimizer"]["state"], self.before_jump["optimizer"]["state"])
        self.before_jump = None

    @rule()
    def save(self) -> None:
        run, file = self.run, io.BytesIO()
        state = [run.model.state_dict(), run.optimizer.state_dict(), self.trainer.state_dict()]
        torch.save(state, file)
        self.saved = file.getvalue(), self.steps, everything(run)

    @precondition(lambda self: self.saved is not None)
    @rule(steps=st.integers(0, 12))
    def load(self, steps: int) -> None:
        """Into a new run, which then goes on alone as the old one, loaded in place, does."""
        assert self.saved is not None
        data, self.steps, state = self.saved
        fresh = smooth_run("sgd")
        fresh.optimizer = type(self.run.optimizer)(fresh.model.parameters(), lr=1.0)
        other = KoopmanTrainer(fresh.model, fresh.optimizer, self.trainer.config)
        for run, trainer in ((self.run, self.trainer), (fresh, other)):
            model, optimizer, own = torch.load(io.BytesIO(data), weights_only=True)
            run.model.load_state_dict(model)
            run.optimizer.load_state_dict(optimizer)
            trainer.load_state_dict(own)
            now = everything(run)
            for key in ("weights", "buffers", "optimizer"):
                assert_same(now[key], state[key])
        self.before_jump = None
        counters = self.trainer.history.counters
        self.accepted, self.rolled_back = counters.jumps_accepted, counters.jumps_rolled_back
        torch.set_rng_state(self.stream)
        fresh.train(other, steps)
        for _ in range(steps):
            self.step(1)
        assert_same(self.run.weights(), fresh.weights())

    @rule(which=st.integers(0, 3), change=st.sampled_from(["freeze", "cast"]))
    def freeze_or_move(self, which: int, change: str) -> None:
        p = list(self.run.model.parameters())[which]
        if change == "freeze":
            p.requires_grad_(False)
        else:
            self.run.model.float()  # the CPU's stand-in for a move to another device
        before, enabled = everything(self.run), self.trainer.enabled
        with pytest.raises(ParameterChangedError, match=rf"step {self.steps}: parameter '"):
            self.trainer.after_step(self.probe)
        assert_same(everything(self.run), before)
        assert self.trainer.enabled == enabled
        assert not self.trainer._snapshots.begun
        p.requires_grad_(True)
        self.run.model.double()

    @rule(factor=st.sampled_from([0.5, 0.99, 1.0, 1.01]))
    def change_the_rate(self, factor: float) -> None:
        self.run.optimizer.param_groups[0]["lr"] *= factor

    @rule()
    def write_weights(self) -> None:
        with torch.no_grad():
            for p in self.run.model.parameters():
                p.data.mul_(0.999)

    @rule(on=st.booleans())
    def switch(self, on: bool) -> None:
        before = everything(self.run)
        self.trainer.enabled = on
        assert_same(everything(self.run), before)

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "run"):
            return
        counters = self.trainer.history.counters
        assert counters.optimizer_steps == self.steps
        assert counters.jumps_accepted == self.accepted
        assert counters.jumps_rolled_back == self.rolled_back
        assert len(self.trainer.history.jumps) == counters.jumps_accepted + counters.jumps_refused
        assert torch.equal(torch.get_rng_state(), self.stream)
        assert math.isfinite(self.run.loss().item())
        assert all(module.training for module in self.run.model.modules())
        assert all(p.requires_grad for p in self.run.model.parameters())


@pytest.mark.filterwarnings("ignore::koopfast.KoopmanWarning")
def test_no_interleaving_loses_anything() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    examples = int(os.environ.get("KOOPFAST_STATE_MACHINE", "24"))
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Training,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=examples <= 24,
            database=None,
            phases=[Phase.generate],
        ),
    )
