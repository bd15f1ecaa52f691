# SPDX-License-Identifier: BSD-3-Clause
"""Whatever goes wrong around a jump, training loses nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from koopfast import (
    ConfigError,
    History,
    KoopfastError,
    KoopmanConfig,
    KoopmanOperator,
    KoopmanTrainer,
    KoopmanWarning,
    ParameterChangedError,
    Partition,
    UnsupportedParameterError,
)
from koopfast._savepoint import OptimizerState, Savepoint
from koopfast.parameters import ParameterVector
from training_runs import Run, assert_same, everything, noisy_run, smooth_run

pytestmark = pytest.mark.usefixtures("on_device")

FAST = {"window": 6, "stride": 1, "partition": "network", "rank": 3}


# Failures in the middle of a jump

STAGES: dict[str, tuple[type, str]] = {
    "savepoint": (Savepoint, "__init__"),
    "fit": (KoopmanOperator, "fit"),
    "predict": (KoopmanOperator, "predict"),
    "write": (ParameterVector, "write"),
    "surroundings": (Savepoint, "restore_surroundings"),
    "optimizer state": (OptimizerState, "reset"),
    "history": (History, "add_jump"),
}


def fail_at(
    monkeypatch: pytest.MonkeyPatch, stage: str, call: int, error: BaseException, after: bool
) -> None:
    """Let the ``call``-th call of a stage raise, once, before or after its work."""
    owner, name = STAGES[stage]
    original = getattr(owner, name)
    calls = iter(range(call + 1))

    def failing(*args: Any, **kwargs: Any) -> Any:
        number = next(calls, None)
        if number == call and not after:
            raise error
        result = original(*args, **kwargs)
        if number == call:
            raise error
        return result

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("error", [RuntimeError("injected"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("stage", "call"),
    [
        ("savepoint", 0),
        ("fit", 0),
        ("predict", 0),
        ("write", 0),
        ("write", 1),
        ("write", 3),
        ("surroundings", 0),
        ("surroundings", 2),
        ("optimizer state", 0),
        ("history", 0),
    ],
)
def test_a_failure_at_any_stage_leaves_everything_as_before_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, stage: str, call: int, after: bool, error: BaseException
) -> None:
    run = noisy_run("adam")
    losses = iter([9.0, 8.0, 7.0, 6.0, 5.0, *[10.0] * 100])
    config = {**FAST, "max_horizon": 2, "optimizer_state": "reset"}
    trainer = KoopmanTrainer(run.model, run.optimizer, **config)

    def probe() -> float:
        run.loss()
        return next(losses)

    for _ in range(5):
        run.step()
        trainer.after_step(probe)
    run.step()
    before = everything(run)
    with monkeypatch.context() as patch:
        fail_at(patch, stage, call, error, after)
        if stage in ("fit", "predict") and isinstance(error, Exception):
            with pytest.warns(KoopmanWarning, match=f"the fit failed: {type(error).__name__}"):
                record = trainer.after_step(probe)
            assert record is not None
            assert (record.accepted, record.kind) == (False, "operator")
        else:
            with pytest.raises(type(error)) as caught:
                trainer.after_step(probe)
            assert caught.value is error
            assert trainer.history.jumps == []
    assert_same(everything(run), before)
    assert trainer.history.counters.jumps_accepted == 0
    with pytest.raises(KoopfastError, match="no accepted jump"):
        trainer.rollback()
    losses = iter([9.0, 8.0, *[10.0] * 100])
    for _ in range(6):
        run.step()
        record = trainer.after_step(probe)
    assert record is not None
    assert record.accepted


def test_a_failure_while_the_state_is_copied_undoes_the_jump(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = smooth_run("adam")
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 5)
    run.step()
    before = everything(run)

    def fail(value: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("koopfast._savepoint._copied", fail)
        with pytest.raises(MemoryError):
            trainer.after_step(run.loss)
    assert_same(everything(run), before)


def test_an_exception_of_the_probe_goes_through_an_attached_step() -> None:
    run = noisy_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    error = LookupError("the probe's own")

    def probe() -> float:
        raise error

    trainer.attach(probe)
    for _ in range(5):
        run.step()
    with pytest.raises(LookupError) as caught:
        run.step()
    assert caught.value is error
    trainer.probe = run.loss
    for _ in range(6):
        run.step()
    assert len(trainer.history.jumps) == 1


def test_a_probe_that_returns_a_vector_is_named_and_nothing_is_lost() -> None:
    run = noisy_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 5)
    run.step()
    before = everything(run)
    with pytest.raises(ConfigError, match=r"probe: expected a scalar, got a Tensor of shape \(20,"):
        trainer.after_step(lambda: run.model(run.x))
    assert_same(everything(run), before)


def test_fit_can_go_on_after_an_exception() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    batches = [(run.x, run.y)] * 4

    def interrupted(out: Tensor, y: Tensor) -> Tensor:
        if trainer.history.counters.optimizer_steps == 2:
            raise KeyboardInterrupt
        return nn.functional.mse_loss(out, y)

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(batches, interrupted)
    trainer.fit(batches, nn.functional.mse_loss)
    assert trainer.history.counters.optimizer_steps == 6
    assert len(trainer.history.jumps) == 1


def test_fit_cannot_be_called_from_within_fit() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    batches = [(run.x, run.y)]
    loss = nn.functional.mse_loss

    def validate(model: nn.Module) -> float:
        trainer.fit(batches, loss)
        return 0.0

    with pytest.raises(ConfigError, match="already running"):
        trainer.fit(batches, loss, validate=validate)


# Numerical failures: refused, said once, and training goes on


def refused_and_warned_once(run: Run, trainer: KoopmanTrainer, kind: str, steps: int) -> None:
    for expected in (1, 0):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(steps):
                run.step()
                record = trainer.after_step(run.loss)
        assert record is not None
        assert (record.accepted, record.kind, record.horizon) == (False, kind, 0)
        assert [w.category for w in caught] == [KoopmanWarning] * expected
        assert all(w.filename == __file__ for w in caught)
    assert trainer.history.counters.jumps_refused == 2


def test_weights_that_do_not_move() -> None:
    run = smooth_run()
    run.optimizer.param_groups[0]["lr"] = 0.0
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    refused_and_warned_once(run, trainer, "still", 6)


def test_snapshots_that_are_not_finite() -> None:
    run = smooth_run()
    with torch.no_grad():
        run.model[0].bias[0] = math.nan
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    refused_and_warned_once(run, trainer, "operator", 6)


def test_predictions_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    predict = KoopmanOperator.predict
    monkeypatch.setattr(KoopmanOperator, "predict", lambda *a: predict(*a) * math.inf)
    refused_and_warned_once(run, trainer, "non_finite", 6)


def test_a_loss_that_is_not_finite_already(monkeypatch: pytest.MonkeyPatch) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    loss = run.loss
    monkeypatch.setattr(
        run, "loss", lambda: loss() if torch.is_grad_enabled() else torch.tensor(math.inf)
    )
    refused_and_warned_once(run, trainer, "non_finite_loss", 6)


def test_a_growing_power_is_refused_by_the_finite_guard() -> None:
    """The paper's configuration keeps growth: far enough ahead it leaves the floats."""
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    config = KoopmanConfig.paper(10_000, "network", window=4)
    trainer = KoopmanTrainer(model, optimizer, config)
    for _ in range(3):
        model.weight.grad = -0.5 * model.weight.detach()
        optimizer.step()
        trainer.after_step()
    optimizer.step()
    before = model.weight.detach().clone()
    with pytest.warns(KoopmanWarning, match="not finite; training goes on"):
        record = trainer.after_step()
    assert record is not None
    assert record.kind == "non_finite"
    assert torch.equal(model.weight, before)


def test_without_a_probe_the_window_restarts_and_that_is_said_once() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    for _ in range(5):
        run.step()
        trainer.after_step()
    run.step()
    with pytest.warns(KoopmanWarning, match="pass probe="):
        assert trainer.after_step() is None
    for _ in range(6):
        run.step()
        assert trainer.after_step() is None
    assert trainer.history.jumps == []
    run.train(trainer, 6)
    assert len(trainer.history.jumps) == 1


def test_a_warning_made_an_exception_finds_the_trainer_consistent() -> None:
    run = smooth_run()
    run.optimizer.param_groups[0]["lr"] = 0.0
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 5)
    run.step()
    with pytest.raises(KoopmanWarning, match="jump refused at step 6"):
        trainer.after_step(run.loss)
    assert len(trainer.history.jumps) == 1
    run.train(trainer, 6)
    assert len(trainer.history.jumps) == 2


# Parameters that change on the way


def _resize(model: nn.Sequential) -> None:
    model[0].weight.data = torch.zeros(8, 4)


def _cast(model: nn.Sequential) -> None:
    model.float()


def _freeze(model: nn.Sequential) -> None:
    model[2].bias.requires_grad_(False)


@pytest.mark.parametrize("change", [_resize, _cast, _freeze])
def test_a_parameter_that_changes_in_mid_window_is_named(
    change: Callable[[nn.Sequential], None],
) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 3)
    change(run.model)  # type: ignore[arg-type]
    with pytest.raises(ParameterChangedError, match=r"parameter '\d\.\w+': expected"):
        trainer.after_step(run.loss)


def test_a_replaced_parameter_is_noticed_before_the_jump() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 5)
    run.model.load_state_dict(run.model.state_dict(), assign=True)
    run.step()
    with pytest.raises(ParameterChangedError, match="another parameter object"):
        trainer.after_step(run.loss)


# Arguments


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"window": 1}, "window"),
        ({"partition": "nodes"}, "node"),
        ({"widow": 9}, "window"),
        ({"guard": "finite"}, 'horizon: guard="finite" cannot choose'),
        ({"probe_gradients": "yes"}, "probe_gradients: expected"),
        ({"partition": Partition.from_segments([[(0, 3)]], 3)}, "of 41 weights"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    overrides: dict[str, Any], message: str
) -> None:
    run = smooth_run()
    with pytest.raises(ConfigError, match=message):
        KoopmanTrainer(run.model, run.optimizer, **overrides)


def test_arguments_of_the_wrong_kind_are_named() -> None:
    run = smooth_run()
    with pytest.raises(ConfigError, match=r"model: expected a torch.nn.Module, got list"):
        KoopmanTrainer([], run.optimizer)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"optimizer: expected .*, got Sequential"):
        KoopmanTrainer(run.model, run.model)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="config: expected a KoopmanConfig, got dict"):
        KoopmanTrainer(run.model, run.optimizer, {"window": 8})  # type: ignore[arg-type]


def test_parameters_without_a_fit_are_refused(device: torch.device) -> None:
    if device.type == "elsewhere":
        pytest.skip("no sparse tensors there")
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(model.weight.detach().to_sparse())
    with pytest.raises(UnsupportedParameterError, match="weight"):
        KoopmanTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_jump_now_wants_a_probe() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 4)
    with pytest.raises(ConfigError, match="probe"):
        trainer.jump_now()
    trainer.attach(run.loss)
    assert trainer.jump_now().step == 4


def test_there_is_nothing_to_roll_back_at_first_and_after_a_rollback() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    with pytest.raises(KoopfastError, match="no accepted jump to undo"):
        trainer.rollback()
    run.train(trainer, 6)
    assert trainer.history.counters.jumps_accepted == 1
    trainer.rollback()
    with pytest.raises(KoopfastError, match="no accepted jump to undo"):
        trainer.rollback()


def test_an_optimizer_without_hooks_cannot_be_attached_to() -> None:
    class Bare:
        def __init__(self, parameters: list[nn.Parameter]) -> None:
            self.param_groups = [{"params": parameters}]
            self.state: dict[nn.Parameter, Any] = {}

    model = nn.Linear(2, 2)
    trainer = KoopmanTrainer(model, Bare(list(model.parameters())))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Bare runs no step post-hooks"):
        trainer.attach()


# What a probe must not do


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("then", ["returns", "raises"])
def test_a_probe_that_steps_the_optimizer_is_stopped_before_anything_is_written(
    attached: bool, then: str
) -> None:
    run = smooth_run("adam")
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)

    def probe() -> Tensor:
        with torch.enable_grad():
            run.loss().backward()
        run.optimizer.step()
        if then == "raises":
            raise LookupError
        return run.loss()

    if attached:
        trainer.attach(probe)
    for _ in range(5):
        run.step()
        if not attached:
            trainer.after_step(probe)
    if attached:
        # The sixth step ends in the jump: compare with a twin whose trainer only watches.
        twin = smooth_run("adam")
        for _ in range(6):
            twin.step()
        before = everything(twin)
        del before["gradient ids"]
        with pytest.raises(ConfigError, match="must only compute the loss"):
            run.step()
        after = everything(run)
        del after["gradient ids"]
    else:
        run.step()
        before = everything(run)
        with pytest.raises(ConfigError, match="must only compute the loss"):
            trainer.after_step(probe)
        after = everything(run)
    assert_same(after, before)
    trainer.detach()
    run.train(trainer, 6)  # the hook that stopped it is gone
    assert trainer.history.jumps


def test_a_probe_that_calls_the_trainer_is_told_so() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    calls: list[Callable[[], object]] = [
        lambda: trainer.after_step(run.loss),
        lambda: trainer.jump_now(run.loss),
        trainer.rollback,
        lambda: trainer.load_state_dict(trainer.state_dict()),
    ]
    for call in calls:
        run.train(trainer, 5)
        run.step()
        with pytest.raises(ConfigError, match="called the trainer"):
            trainer.after_step(call)


@pytest.mark.parametrize("name", ["after_step", "attach", "jump_now"])
def test_a_probe_that_is_a_loss_is_refused_at_once(name: str) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.step()
    with pytest.raises(ConfigError, match=r"got Tensor; write probe=lambda"):
        getattr(trainer, name)(run.loss())


def test_an_interrupt_leaves_autograd_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)

    def interrupted(*_: object) -> None:
        torch.set_grad_enabled(False)  # as an interrupt between the lines of torch.no_grad does
        raise KeyboardInterrupt

    run.train(trainer, 5)
    for target, call in (
        ("koopfast.snapshots.SnapshotBuffer.record", lambda: trainer.after_step(run.loss)),
        ("koopfast.guard.Guard.judge", lambda: trainer.jump_now(run.loss)),
    ):
        run.train(trainer, 4)
        run.step()
        with monkeypatch.context() as patch:
            patch.setattr(target, interrupted)
            with pytest.raises(KeyboardInterrupt):
                call()
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_call_within_no_grad_or_inference_mode_records_and_jumps(mode: Any) -> None:
    """Also where the probe differentiates; what was made there is written to outside of it."""
    run = smooth_run("adam")
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)

    def probe() -> Tensor:
        x = run.x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(run.model(x).sum(), x, create_graph=True)
        return run.loss() + 1e-6 * slope.square().mean()

    for step in range(18):
        run.step()
        if step % 3 == 0:
            trainer.after_step(probe)
            continue
        with mode():
            trainer.after_step(probe)
            assert not torch.is_grad_enabled()
    assert trainer.history.counters.jumps_accepted == 3


def test_an_attached_trainer_warns_where_the_step_is_taken() -> None:
    run = smooth_run()
    run.optimizer.param_groups[0]["lr"] = 0.0
    KoopmanTrainer(run.model, run.optimizer, **FAST).attach(run.loss)
    for _ in range(5):
        run.optimizer.step()
    with pytest.warns(KoopmanWarning) as caught:
        run.optimizer.step()
    assert [warning.filename for warning in caught] == [__file__]


def test_an_error_while_recording_restarts_the_window() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    run.train(trainer, 3)
    first = next(run.model.parameters())
    first.requires_grad_(False)
    with pytest.raises(ParameterChangedError):
        trainer.after_step(run.loss)
    first.requires_grad_(True)
    assert trainer._snapshots.count == 0  # no unequal interval inside a window


@pytest.mark.parametrize("how", ["unfrozen", "added"])
def test_a_parameter_trained_only_later_is_named_once(how: str) -> None:
    run = smooth_run()
    last = run.model[2].weight  # type: ignore[index]
    if how == "unfrozen":
        last.requires_grad_(False)
    else:
        rest = [p for p in run.model.parameters() if p is not last]
        run.optimizer = torch.optim.SGD(rest, lr=0.05)
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    if how == "unfrozen":
        last.requires_grad_(True)
    else:
        run.optimizer.add_param_group({"params": [last]})
    with pytest.warns(KoopmanWarning, match=r"parameter '2\.weight' is trained now") as caught:
        run.train(trainer, 12)
    assert len(caught) == 1


def test_fit_wants_a_scalar_loss() -> None:
    run = smooth_run()
    trainer = KoopmanTrainer(run.model, run.optimizer, **FAST)
    with pytest.raises(ConfigError, match=r"loss_fn: expected a scalar tensor, got \(20, 1\)"):
        trainer.fit([(run.x, run.y)], nn.MSELoss(reduction="none"))
