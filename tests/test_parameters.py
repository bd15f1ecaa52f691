# SPDX-License-Identifier: BSD-3-Clause
"""Parameters to one flat vector and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from koopfast import ConfigError, ParameterChangedError, UnsupportedParameterError
from koopfast import parameters as module_under_test
from koopfast.parameters import ParameterVector, trainable_parameters


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def names(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> list[str]:
    return [name for name, _ in trainable_parameters(model, optimizer)]


def bits(model: nn.Module) -> list[bytes]:
    return [bytes(p.detach().contiguous().view(torch.uint8).numpy()) for p in model.parameters()]


def test_parameters_come_in_the_order_of_the_model() -> None:
    assert names(perceptron()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_tied_parameters_come_once() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7))
    model[1].weight = model[0].weight
    assert names(model) == ["0.weight", "1.bias"]


def test_frozen_and_empty_parameters_are_left_out() -> None:
    model = perceptron()
    model[0].weight.requires_grad_(False)
    model.register_parameter("empty", nn.Parameter(torch.zeros(0, 3)))
    assert names(model) == ["0.bias", "2.weight", "2.bias"]


def test_what_the_optimizer_does_not_hold_is_left_out() -> None:
    model = perceptron()
    assert names(model, torch.optim.SGD(model[2].parameters())) == ["2.weight", "2.bias"]


def test_an_optimizer_of_another_model_is_refused() -> None:
    stranger = nn.Linear(2, 9)
    with pytest.raises(ConfigError, match=r"\(9, 2\) in param_groups\[0\]\['params'\]\[0\]"):
        trainable_parameters(perceptron(), torch.optim.SGD(stranger.parameters()))


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one parameter to train, got none in Tanh"):
        trainable_parameters(nn.Tanh())


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.zeros(2, device="meta"), "meta device"),
        (lambda: torch.zeros(2, 2).to_sparse(), "torch.sparse_coo"),
        (lambda: torch.zeros(2).to(torch.float8_e5m2), "float8_e5m2"),
        (lambda: torch.zeros(1).expand(4), "share memory"),
    ],
)
def test_what_has_no_fit_is_refused_by_name(make: Callable[[], Tensor], what: str) -> None:
    model = perceptron()
    model.register_parameter("odd", nn.Parameter(make()))
    with pytest.raises(UnsupportedParameterError, match=f"'odd'.*{what}"):
        trainable_parameters(model)


def test_integer_and_lazy_parameters_are_refused() -> None:
    whole = nn.Parameter(torch.zeros(2, dtype=torch.int32), requires_grad=False)
    with pytest.raises(UnsupportedParameterError, match=r"'whole'.*torch\.int32"):
        ParameterVector([("whole", whole)])
    with pytest.raises(UnsupportedParameterError, match=r"'weight'.*one forward pass first"):
        trainable_parameters(nn.LazyLinear(3))


def test_two_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without an accelerator only the meta device is a second one; let it pass the earlier check.
    monkeypatch.setattr(module_under_test, "check_supported", lambda name, p: None)
    model = perceptron()
    model[2].to("meta")
    with pytest.raises(UnsupportedParameterError, match=r"'2\.weight'.*meta while '0\.weight'"):
        trainable_parameters(model)


def test_reading_lists_every_weight_in_order() -> None:
    model = perceptron()
    vector = ParameterVector(trainable_parameters(model))
    expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert (vector.n, vector.starts, vector.lengths) == (39, (0, 20, 24, 36), (20, 4, 12, 3))
    assert torch.equal(vector.read(), expected)


def test_views_share_the_memory_of_the_row() -> None:
    vector = ParameterVector(trainable_parameters(perceptron()))
    row = torch.zeros(vector.n)
    views = vector.views(row)
    assert [tuple(v.shape) for v in views] == [(4, 5), (4,), (3, 4), (3,)]
    views[2][1, 0] = 7.0
    assert row.nonzero().tolist() == [[28]]
    row.fill_(3.0)
    assert all(bool((v == 3.0).all()) for v in views)


def test_reading_is_in_logical_order_whatever_the_memory_format() -> None:
    conv = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    conv.bias = nn.Parameter(torch.arange(8.0)[::2])
    vector = ParameterVector(trainable_parameters(conv))
    flat = vector.read()
    assert not conv.weight.is_contiguous()
    assert torch.equal(flat[:48].view(4, 3, 2, 2), conv.weight)
    assert flat[48:].tolist() == [0.0, 2.0, 4.0, 6.0]


def test_writing_keeps_the_memory_format() -> None:
    conv = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    vector = ParameterVector(trainable_parameters(conv))
    flat = torch.randn(vector.n, generator=torch.Generator().manual_seed(0))
    vector.write(flat)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(vector.read(), flat)
    vector.write(2 * flat, backup=False)
    assert torch.equal(vector.read(), 2 * flat)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_round_trip_keeps_every_bit(dtype: torch.dtype) -> None:
    model = perceptron().to(dtype)
    vector = ParameterVector(trainable_parameters(model))
    before = bits(model)
    flat = vector.read()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(-1)
    vector.write(flat)
    assert flat.dtype == dtype
    assert bits(model) == before


def test_mixed_dtypes_go_through_what_they_promote_to() -> None:
    model = nn.Sequential(
        nn.Linear(3, 3, dtype=torch.float16),
        nn.Linear(3, 3, dtype=torch.bfloat16),
        nn.Linear(3, 3, dtype=torch.float64),
    )
    vector = ParameterVector(trainable_parameters(model))
    before = bits(model)
    flat = vector.read()
    vector.write(torch.zeros(vector.n))
    assert not any(bool(p.any()) for p in model.parameters())
    vector.write(flat)
    assert flat.dtype == torch.float64
    assert [p.dtype for p in model.parameters()][::2] == [
        torch.float16,
        torch.bfloat16,
        torch.float64,
    ]
    assert bits(model) == before


def test_real_parameters_stay_real_beside_complex_ones() -> None:
    real, spin = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, dtype=torch.complex64))
    vector = ParameterVector([("real", real), ("spin", spin)])
    assert vector.dtype == torch.complex64
    flat = vector.read()
    vector.write(flat * (2 + 1j))
    assert torch.equal(real, torch.tensor([2.0, 2.0]))
    assert torch.equal(spin, torch.full((3,), 2 + 1j))
    vector.write(torch.full((5,), 7.0))
    assert torch.equal(spin, torch.full((3,), 7 + 0j))


def test_writing_changes_parameters_in_place() -> None:
    model = perceptron()
    vector = ParameterVector(trainable_parameters(model))
    places = [p.data_ptr() for p in model.parameters()]
    vector.write(torch.zeros(vector.n, requires_grad=True))
    assert [p.data_ptr() for p in model.parameters()] == places
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


@pytest.mark.parametrize(
    ("error", "interruptions"), [(RuntimeError, 1), (KeyboardInterrupt, 1), (KeyboardInterrupt, 3)]
)
def test_writing_is_all_or_nothing(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], interruptions: int
) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).bfloat16())
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    vector = ParameterVector(trainable_parameters(model))
    before, whole_copy, left = bits(model), module_under_test._copy, [interruptions]

    def interrupted(destinations: tuple[Tensor, ...], sources: tuple[Tensor, ...]) -> None:
        if left[0] == 0:
            return whole_copy(destinations, sources)
        left[0] -= 1
        whole_copy(destinations[:2], sources[:2])
        raise error

    monkeypatch.setattr(module_under_test, "_copy", interrupted)
    with pytest.raises(error):
        vector.write(torch.ones(vector.n))
    assert left == [0]
    assert bits(model) == before


@pytest.mark.parametrize(
    "flat", [torch.zeros(38), torch.zeros(39, 1), torch.zeros(39).long(), 1j * torch.zeros(39)]
)
def test_writing_something_else_is_refused(flat: Tensor) -> None:
    model = perceptron()
    before = bits(model)
    with pytest.raises(ConfigError, match="flat: expected a"):
        ParameterVector(trainable_parameters(model)).write(flat)
    assert bits(model) == before


def test_training_is_no_change() -> None:
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters())
    vector = ParameterVector(trainable_parameters(model, optimizer))
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.load_state_dict(perceptron().state_dict())
    vector.check_unchanged(model)


def shrink(model: nn.Sequential) -> None:
    model[2].bias.data = torch.zeros(1)


def move(model: nn.Sequential) -> None:
    torch.utils.swap_tensors(model[0].weight, nn.Parameter(torch.zeros(4, 5, device="meta")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shrink, r"'2\.bias': expected shape \(3,\).*got \(1,\)"),
        (
            lambda m: m[0].double(),
            r"'0\.weight': expected dtype torch\.float32.*got torch\.float64",
        ),
        (lambda m: m[2].weight.requires_grad_(False), r"'2\.weight': expected requires_grad True"),
        (move, r"'0\.weight': expected device cpu.*got meta"),
    ],
)
def test_a_changed_parameter_is_named(
    change: Callable[[nn.Sequential], object], message: str
) -> None:
    model = perceptron()
    vector = ParameterVector(trainable_parameters(model))
    vector.check_unchanged()
    change(model)
    with pytest.raises(ParameterChangedError, match=message):
        vector.check_unchanged()


def test_a_replaced_parameter_is_named() -> None:
    model = perceptron()
    vector = ParameterVector(trainable_parameters(model))
    model.load_state_dict(perceptron().state_dict(), assign=True)
    with pytest.raises(ParameterChangedError, match=r"'0\.weight'.*another parameter object"):
        vector.check_unchanged(model)


def test_a_removed_parameter_is_named() -> None:
    model = perceptron()
    vector = ParameterVector(trainable_parameters(model))
    model[2].bias = None
    with pytest.raises(ParameterChangedError, match=r"'2\.bias'.*none"):
        vector.check_unchanged(model)


def test_the_check_reads_no_weights() -> None:
    model = nn.Linear(2, 2)
    vector = ParameterVector(trainable_parameters(model))
    with torch.autograd.profiler.profile() as profile:
        vector.check_unchanged(model)
    assert [event.name for event in profile.function_events] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it sets up
def test_a_compiled_model_names_its_parameters_as_the_plain_one_does() -> None:
    model = nn.Linear(3, 2)
    compiled = torch.compile(model)
    assert [name for name, _ in trainable_parameters(compiled)] == ["weight", "bias"]
    ParameterVector(trainable_parameters(compiled)).check_unchanged(compiled)
