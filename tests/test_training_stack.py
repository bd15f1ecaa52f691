# SPDX-License-Identifier: BSD-3-Clause
"""Ways in which people train: precisions, compiled models, formats, tied and sparse parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from koopfast import JumpRecord, KoopmanTrainer, KoopmanWarning, UnsupportedParameterError

FAST = {"window": 6, "stride": 2, "partition": "network", "rank": 3}


def trained(
    model: nn.Module,
    loss: Callable[[], Tensor],
    steps: int = 40,
    optimizer: torch.optim.Optimizer | None = None,
    **overrides: Any,
) -> KoopmanTrainer:
    """An attached run."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = KoopmanTrainer(model, optimizer, **{**FAST, **overrides})
    trainer.attach(loss)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return trainer


def first_accepted(trainer: KoopmanTrainer) -> JumpRecord:
    return next(record for record in trainer.history.jumps if record.accepted)


def regression(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    x = torch.randn(20, 3, dtype=dtype)
    return model, x, x.sin().sum(1, keepdim=True)


# Mixed precision


@pytest.mark.parametrize("fused", [False, True])
def test_autocast_and_a_scaler_train_and_jump(fused: bool) -> None:
    model, x, y = regression()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu")

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return nn.functional.mse_loss(model(x), y)

    trainer = KoopmanTrainer(model, optimizer, **FAST)
    trainer.attach(loss)
    for _ in range(60):
        optimizer.zero_grad()
        scaler.scale(loss()).backward()
        scaler.step(optimizer)
        scaler.update()
    record = first_accepted(trainer)
    assert record.loss_after is not None
    assert record.loss_before is not None
    assert record.loss_after < record.loss_before
    assert trainer.history.counters.optimizer_steps == 60
    assert trainer._snapshots.vector.dtype == torch.float32


def test_bfloat16_parameters_jump() -> None:
    model, x, y = regression(torch.bfloat16)
    trainer = trained(model, lambda: nn.functional.mse_loss(model(x).float(), y.float()))
    assert first_accepted(trainer).horizon > 0
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


class Coarse(nn.Module):
    """Weights of 450 in few bits; from 256 to 512, those of bfloat16 are 2 apart."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 450.0, dtype=dtype))


@pytest.mark.parametrize("guard", ["finite", "probe"])
def test_a_jump_that_rounding_swallows_is_said_and_not_counted(guard: str) -> None:
    model = Coarse(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = KoopmanTrainer(
        model, optimizer, window=4, stride=1, guard=guard, horizon=1, partition="network"
    )

    def step(gradient: float) -> JumpRecord | None:
        model.weight.grad = torch.full_like(model.weight, gradient)
        optimizer.step()
        return trainer.after_step(lambda: float(model.weight.float().sum()))

    # 32, 8, 2: the next step would be a half, and is lost.
    for gradient in (50.0, 32.0, 8.0):
        step(gradient)
    with pytest.warns(KoopmanWarning, match="below the resolution of the parameters' dtype"):
        record = step(2.0)
    assert record is not None
    assert (record.accepted, record.horizon, record.kind) == (False, 0, "rounded")


# torch.compile


def test_a_jump_makes_no_compiled_model_compile_again() -> None:
    if not torch._dynamo.is_dynamo_supported():
        pytest.skip("torch.compile does not work on this Python")
    model, x, y = regression()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = KoopmanTrainer(compiled, optimizer, **FAST)

    def loss() -> Tensor:
        return nn.functional.mse_loss(compiled(x), y)

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            trainer.after_step(loss)

    train(12)  # one jump: the model is compiled with and without gradients
    assert first_accepted(trainer)
    counters = torch._dynamo.utils.counters["stats"]
    graphs = counters["unique_graphs"]
    torch._dynamo.config.error_on_recompile = True
    try:
        train(24)
    finally:
        torch._dynamo.config.error_on_recompile = False
    assert trainer.history.counters.jumps_accepted >= 2
    assert counters["unique_graphs"] == graphs


# Formats and kinds of parameters


def test_channels_last_weights_stay_so_and_jump_as_contiguous_ones_do() -> None:
    def run(memory_format: torch.memory_format) -> tuple[nn.Module, KoopmanTrainer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 1))
        model = model.double().to(memory_format=memory_format)
        x = torch.randn(8, 3, 5, 5, dtype=torch.float64).to(memory_format=memory_format)
        return model, trained(model, lambda: (model(x) - 1).square().mean(), partition="node")

    last, trainer = run(torch.channels_last)
    plain, other = run(torch.contiguous_format)
    assert first_accepted(trainer).horizon == first_accepted(other).horizon
    weight = last[0].weight  # type: ignore[index]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(last.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "parametrize",
    [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal],
)
def test_parametrized_weights_jump_by_their_originals(
    parametrize: Callable[[nn.Module], nn.Module],
) -> None:
    torch.manual_seed(0)
    layer = parametrize(nn.Linear(4, 4).double())
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 1).double())
    x = torch.randn(16, 4, dtype=torch.float64)
    trainer = trained(model, lambda: (model(x) - x.sum(1, keepdim=True)).square().mean())
    assert first_accepted(trainer).horizon > 0
    if parametrize is nn.utils.parametrizations.orthogonal:
        weight: Any = layer.weight
        torch.testing.assert_close(weight @ weight.T, torch.eye(4, dtype=torch.float64))


def test_tied_weights_are_predicted_once_and_stay_tied() -> None:
    torch.manual_seed(0)
    embedding, head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Tanh(), head)
    ids = torch.arange(6)
    trainer = trained(model, lambda: nn.functional.cross_entropy(model(ids), (ids + 1) % 6))
    assert first_accepted(trainer).horizon > 0
    assert trainer._snapshots.vector.n == 24
    assert head.weight is embedding.weight


def test_sparse_gradients_train_dense_weights_that_jump() -> None:
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(10, 4, sparse=True)
    ids = torch.tensor([[1, 2], [3, 4]])
    trainer = trained(bag, lambda: (bag(ids) - 1).square().mean())
    assert bag.weight.grad is not None
    assert bag.weight.grad.is_sparse
    assert first_accepted(trainer).horizon > 0
    sparse = nn.ParameterList([torch.eye(3).to_sparse()])
    with pytest.raises(UnsupportedParameterError, match="layout torch"):
        KoopmanTrainer(sparse, torch.optim.SGD(sparse.parameters(), lr=0.1))


def test_several_groups_jump_together_each_at_its_own_rate() -> None:
    model, x, y = regression()
    groups = [
        {"params": model[0].parameters(), "lr": 0.1},  # type: ignore[index]
        {"params": model[2].parameters(), "lr": 0.01, "weight_decay": 0.1},  # type: ignore[index]
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.5)  # type: ignore[arg-type]
    trainer = trained(model, lambda: nn.functional.mse_loss(model(x), y), 60, optimizer)
    assert first_accepted(trainer).horizon > 0
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]
    assert trainer._snapshots.vector.n == sum(p.numel() for p in model.parameters())
