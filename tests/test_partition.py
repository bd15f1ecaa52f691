# SPDX-License-Identifier: BSD-3-Clause
"""Parameters to blocks."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from koopfast import ConfigError, Partition
from koopfast.parameters import trainable_parameters


class Odd(nn.Module):
    """Scalars, vectors that fit rows by name, by place or not at all, an empty one, a token."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.w_k = nn.Parameter(torch.zeros(4, 2))
        self.w_q = nn.Parameter(torch.zeros(4, 3))
        self.b_q = nn.Parameter(torch.zeros(4))
        self.b_k = nn.Parameter(torch.zeros(4))
        self.offset = nn.Parameter(torch.zeros(4))
        self.alone = nn.Parameter(torch.zeros(9))
        self.token = nn.Parameter(torch.zeros(1, 1, 5))
        self.nothing = nn.Parameter(torch.zeros(0, 4))


class Shared(nn.Module):
    """One submodule under two names, and one of two children frozen in its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.partly = nn.Linear(3, 2)
        self.partly.bias.requires_grad_(False)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6))
    model[1].weight = model[0].weight
    return model


def parametrized() -> nn.Module:
    weight_norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        weight_norm(nn.Linear(3, 4)),
        nn.utils.parametrizations.orthogonal(nn.Linear(3, 3, bias=False)),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 2)),
        weight_norm(nn.ConvTranspose1d(4, 6, 3, groups=2)),
        weight_norm(nn.LSTM(2, 3), "weight_hh_l0"),
        weight_norm(Odd(), "w_k"),
    )


def attention(**options: object) -> nn.Module:
    return nn.MultiheadAttention(4, 2, **options)  # type: ignore[arg-type]


def frozen(model: nn.Module, *names: str) -> nn.Module:
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(3, 4),
    "one_unit": lambda: nn.Linear(3, 1),
    "only_the_bias_trains": lambda: frozen(nn.Linear(3, 4), "weight"),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
    "conv": lambda: nn.Conv2d(4, 6, (2, 3), groups=2),
    "conv_transpose": lambda: nn.ConvTranspose2d(4, 6, (2, 3)),
    "conv_transpose_groups": lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
    "conv_transpose_depthwise": lambda: nn.ConvTranspose3d(4, 4, 1, groups=4),
    "conv_transpose_bias_only": lambda: frozen(nn.ConvTranspose1d(4, 6, 3), "weight"),
    "embedding": lambda: nn.Embedding(6, 3),
    "embedding_bag": lambda: nn.EmbeddingBag(6, 3),
    "norms": lambda: nn.Sequential(
        nn.BatchNorm1d(4), nn.LayerNorm((2, 3)), nn.GroupNorm(2, 4), nn.RMSNorm(5)
    ),
    "layer_norm_without_bias": lambda: nn.LayerNorm(4, bias=False),
    "prelu": lambda: nn.Sequential(nn.PReLU(), nn.PReLU(3)),
    "attention": lambda: attention(add_bias_kv=True),
    "attention_separate": lambda: attention(kdim=3, vdim=5),
    "attention_separate_frozen": lambda: frozen(attention(kdim=3, vdim=5), "k_proj_weight"),
    "attention_separate_no_bias": lambda: attention(kdim=3, vdim=5, bias=False),
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "rnn": lambda: nn.RNN(2, 3, num_layers=2),
    "gru": lambda: nn.GRU(2, 3, bias=False),
    "lstm_bidirectional": lambda: nn.LSTM(2, 3, num_layers=2, bidirectional=True),
    "lstm_projected": lambda: nn.LSTM(2, 3, proj_size=2, bidirectional=True),
    "lstm_cell": lambda: nn.LSTMCell(2, 3),
    "gru_cell": lambda: nn.GRUCell(2, 3),
    "parameter_list": lambda: nn.ParameterList([torch.zeros(3, 2), torch.zeros(3), torch.ones(())]),
    "parameter_dict": lambda: nn.ParameterDict({"a": torch.zeros(2, 2, 2), "b": torch.zeros(5)}),
    "odd": Odd,
    "shared": Shared,
    "tied": tied,
    "parametrized": parametrized,
}

KINDS: dict[str, Callable[[nn.Module], Partition]] = {
    "network": Partition.network,
    "layer": Partition.layer,
    "node": Partition.node,
    "quasi_node": lambda model: Partition.quasi_node(model, 2),
    "weight": Partition.weight,
}


def indices(partition: Partition, i: int) -> list[int]:
    return [k for start, length in partition.block(i) for k in range(start, start + length)]


def blocks(partition: Partition) -> list[list[int]]:
    return [indices(partition, i) for i in range(partition.n_blocks)]


def labels(model: nn.Module) -> list[str]:
    """What each index of the flat vector is: 'name[i, j]'."""
    return [
        f"{name}{list(place)}"
        for name, p in trainable_parameters(model)
        for place in itertools.product(*map(range, p.shape))
    ]


def units(model: nn.Module) -> list[set[str]]:
    """The node blocks as sets of weights."""
    named = labels(model)
    return [{named[k] for k in block} for block in blocks(Partition.node(model))]


def family(model: nn.Module, i: int, *names: str) -> set[str]:
    """Row i of the parameters called so."""
    return {
        f"{name}{[i, *place]}"
        for name in names
        for place in itertools.product(*map(range, model.get_parameter(name).shape[1:]))
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_every_index_lies_in_exactly_one_block(name: str, kind: str) -> None:
    model = MODELS[name]()
    n = sum(p.numel() for _, p in trainable_parameters(model))
    partition = KINDS[kind](model)
    covered = [k for block in blocks(partition) for k in block]
    assert sorted(covered) == list(range(n))
    assert partition.n == n
    assert partition.kind == kind
    assert partition.block_sizes.tolist() == [len(block) for block in blocks(partition)]
    assert partition.names is None or len(set(partition.names)) == partition.n_blocks


@settings(deadline=None, max_examples=60)
@given(
    chosen=st.lists(st.sampled_from(sorted(MODELS)), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
    share_frozen=st.sampled_from([0.0, 0.3, 0.8]),
    kind=st.sampled_from(sorted(KINDS)),
    size=st.integers(1, 9),
)
def test_any_model_with_anything_frozen_is_covered_once(
    chosen: list[str], seed: int, share_frozen: float, kind: str, size: int
) -> None:
    model = nn.ModuleList([MODELS[name]() for name in chosen])
    draws = np.random.default_rng(seed)
    for p in list(model.parameters())[1:]:
        p.requires_grad_(p.requires_grad and bool(draws.random() >= share_frozen))
    model.append(nn.Linear(1, 1))  # something always trains
    own_size = size if kind == "quasi_node" else None
    partition = Partition.of(kind, model, size=own_size)
    counts = torch.zeros(partition.n, dtype=torch.int64)
    for block in blocks(partition):
        counts[torch.tensor(block)] += 1
    assert bool((counts == 1).all())
    if kind == "quasi_node":
        assert int(partition.block_sizes.max()) <= size


def test_a_unit_of_a_linear_layer_is_a_row_and_its_bias() -> None:
    model = nn.Linear(3, 4)
    assert units(model) == [family(model, i, "weight", "bias") for i in range(4)]
    assert Partition.node(model).block(2) == [(6, 3), (14, 1)]
    assert Partition.node(model).names == ("Linear[0]", "Linear[1]", "Linear[2]", "Linear[3]")


@pytest.mark.parametrize("name", ["conv", "bilinear", "only_the_bias_trains", "embedding"])
def test_a_unit_is_row_i_of_everything(name: str) -> None:
    model = MODELS[name]()
    own = [n for n, _ in trainable_parameters(model)]
    rows = trainable_parameters(model)[0][1].shape[0]
    assert units(model) == [family(model, i, *own) for i in range(rows)]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_unit_of_a_transposed_convolution_is_an_output_channel(groups: int) -> None:
    model = nn.ConvTranspose1d(4, 8, 3, groups=groups, dtype=torch.float64)
    flat = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    partition = Partition.node(model)
    assert partition.n_blocks == 8
    for channel in range(8):
        # Whatever the definition, these are the weights that output channel depends on.
        model.zero_grad()
        x = torch.ones(1, 4, 5, dtype=torch.float64)
        model(x)[0, channel].sum().backward()
        gradients = [p.grad for p in model.parameters()]
        flat = torch.cat([g.reshape(-1) for g in gradients if g is not None])
        assert sorted(indices(partition, channel)) == flat.nonzero().reshape(-1).tolist()


def test_a_unit_of_a_norm_is_a_scale_and_a_shift() -> None:
    model = nn.LayerNorm((2, 3))
    assert blocks(Partition.node(model)) == [[k, k + 6] for k in range(6)]


def test_a_unit_of_an_attention_is_a_row_of_the_input_projection() -> None:
    model = MODELS["attention"]()
    expected = [family(model, i, "in_proj_weight", "in_proj_bias") for i in range(12)]
    expected += [family(model, 0, "bias_k"), family(model, 0, "bias_v")]
    expected += [family(model, i, "out_proj.weight", "out_proj.bias") for i in range(4)]
    assert units(model) == expected


def test_separate_projections_take_their_third_of_the_bias() -> None:
    model = MODELS["attention_separate"]()
    expected = [
        family(model, i, f"{letter}_proj_weight") | {f"in_proj_bias[{4 * k + i}]"}
        for k, letter in enumerate("qkv")
        for i in range(4)
    ]
    assert units(model)[:12] == expected
    names = Partition.node(model).names
    assert names is not None
    assert names[5] == "MultiheadAttention.k[1]"


@pytest.mark.parametrize("name", ["lstm_bidirectional", "rnn", "gru"])
def test_a_unit_of_a_recurrent_layer_is_a_gate_unit(name: str) -> None:
    model = MODELS[name]()
    found = units(model)
    for end in ("_l0", "_l1", "_l0_reverse", "_l1_reverse"):
        own = [n for n, _ in trainable_parameters(model) if n.endswith(end)]
        if own:
            rows = model.get_parameter(own[0]).shape[0]
            assert all(family(model, i, *own) in found for i in range(rows))


def test_a_unit_of_a_projection_is_its_row() -> None:
    model = MODELS["lstm_projected"]()
    found = units(model)
    assert len(found) == 2 * (12 + 2)
    assert family(model, 1, "weight_hr_l0_reverse") in found
    gate = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    assert family(model, 11, *gate) in found


def test_a_frozen_bias_leaves_the_rows() -> None:
    model = frozen(nn.Linear(3, 2), "bias")
    assert units(model) == [family(model, i, "weight") for i in range(2)]


def test_a_tied_weight_belongs_to_its_first_module() -> None:
    model = tied()
    found = units(model)
    assert found[:6] == [family(model, i, "0.weight") for i in range(6)]
    assert found[6:] == [family(model, i, "1.bias") for i in range(6)]


def test_a_shared_submodule_comes_once() -> None:
    model = Shared()
    assert Partition.layer(model).names == ("first", "partly")
    assert Partition.node(model).n_blocks == 5


def test_any_other_module_goes_by_rows_joined_by_fitting_vectors() -> None:
    model = Odd()
    found = units(model)
    expected = [family(model, i, "w_k", "b_k") for i in range(4)]
    # offset fits both by length and neither by name: it goes to the nearest before it.
    expected += [family(model, i, "w_q", "b_q", "offset") for i in range(4)]
    expected += [family(model, 0, "token"), {"temperature[]"}]
    expected += [{f"alone[{i}]" for i in range(9)}]
    assert found == expected


def test_a_parametrized_weight_is_represented_by_its_originals() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    originals = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    assert units(model) == [family(model, i, "bias", *originals) for i in range(4)]
    assert Partition.layer(model).n_blocks == 1
    custom = nn.utils.parametrizations.weight_norm(Odd(), "w_k")
    originals = ("parametrizations.w_k.original0", "parametrizations.w_k.original1")
    assert family(custom, 2, "b_k", *originals) in units(custom)


def test_a_layer_is_what_one_module_owns() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Sequential(nn.Linear(3, 2)))
    partition = Partition.layer(model)
    assert partition.names == ("0", "2.0")
    assert blocks(partition) == [list(range(15)), list(range(15, 23))]


def test_a_network_is_one_segment() -> None:
    partition = Partition.network(nn.Linear(3, 4))
    assert (partition.n_blocks, partition.block(0)) == (1, [(0, 16)])


@settings(deadline=None, max_examples=30)
@given(name=st.sampled_from(sorted(MODELS)), size=st.integers(1, 40))
def test_quasi_nodes_cut_each_node_evenly(name: str, size: int) -> None:
    model = MODELS[name]()
    nodes, parts = blocks(Partition.node(model)), iter(blocks(Partition.quasi_node(model, size)))
    for node in nodes:
        own: list[list[int]] = []
        while sum(len(part) for part in own) < len(node):
            own.append(next(parts))
        assert list(itertools.chain(*own)) == node
        assert len(own) == -(-len(node) // size)
        assert max(map(len, own)) - min(map(len, own)) <= 1
    assert next(parts, None) is None


def test_given_parameters_decide_what_is_partitioned() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4))
    named = list(model[1].named_parameters())
    assert Partition.node(model, parameters=named) == Partition.node(model[1])
    reordered = Partition.node(model, parameters=named[::-1])
    assert reordered.block(3) == [(3, 1), (10, 2)]
    with pytest.raises(ConfigError, match="'weight' is not a parameter of Tanh"):
        Partition.node(nn.Tanh(), parameters=named)


def test_partitions_go_by_name() -> None:
    model = nn.Linear(3, 4)
    assert Partition.of("node", model) == Partition.node(model)
    assert Partition.of("quasi_node", model, size=2) == Partition.quasi_node(model, 2)
    with pytest.raises(ConfigError, match=r"'layers'; did you mean \"layer\""):
        Partition.of("layers", model)
    with pytest.raises(ConfigError, match="size: only a quasi_node"):
        Partition.of("layer", model, size=2)
    with pytest.raises(ConfigError, match=r"size: .* needs"):
        Partition.of("quasi_node", model)
    with pytest.raises(ConfigError, match="size: expected an integer of 1 or more, got 0"):
        Partition.quasi_node(model, 0)
    with pytest.raises(ConfigError, match=r"model: expected a torch.nn.Module, got Tensor"):
        Partition.node(torch.zeros(3))  # type: ignore[arg-type]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[tuple[int, int]]], int]:
    """Any blocks: cut 0..n-1 in segments, shuffle them, deal them out."""
    n = draw(st.integers(1, 40))
    cuts = sorted(draw(st.sets(st.integers(1, n - 1))) if n > 1 else ())
    ends = [*cuts, n]
    segments = draw(st.permutations([(a, b - a) for a, b in zip([0, *cuts], ends, strict=True)]))
    stops = sorted(draw(st.sets(st.integers(1, len(segments)))) | {len(segments)})
    return [segments[a:b] for a, b in zip([0, *stops[:-1]], stops, strict=True)], n


@given(tables())
def test_any_blocks_are_kept_as_given(table: tuple[list[list[tuple[int, int]]], int]) -> None:
    given_blocks, n = table
    partition = Partition.from_segments(given_blocks, n)
    assert [partition.block(i) for i in range(partition.n_blocks)] == given_blocks
    assert Partition.from_dict(partition.to_dict()) == partition


@given(tables(), st.data())
def test_an_index_too_few_or_too_many_is_named(
    table: tuple[list[list[tuple[int, int]]], int], data: st.DataObject
) -> None:
    given_blocks, n = table
    index = data.draw(st.integers(0, n - 1))
    with pytest.raises(ConfigError, match=f"index {index}: .* again in block"):
        Partition.from_segments([*given_blocks, [(index, 1)]], n)
    without = [[s for s in block if s[0] != 0] for block in given_blocks]
    with pytest.raises(ConfigError, match=r"index 0: .* in none"):
        Partition.from_segments([block for block in without if block], n)
    with pytest.raises(ConfigError, match=f"index {n}: .* in none"):
        Partition.from_segments(given_blocks, n + 1)


@pytest.mark.parametrize(
    ("given_blocks", "n", "message"),
    [
        ([[(0, 2)], [(1, 2)]], 3, r"index 1: .* in block 0 and again in block 1"),
        ([[(1, 2)], [(0, 2)]], 3, r"index 1: .* in block 1 and again in block 0"),
        ([[(0, 4)]], 3, r"block 0: .* 0 to 2, got \(start=0, length=4\)"),
        ([[(0, 3)], [(3, 0)]], 3, r"block 1: .* length 1 or more .* length=0"),
        ([[(0, 3)], [(-1, 1)]], 3, r"block 1: .* got \(start=-1"),
        ([[(0, 3)], []], 3, "block 1: expected at least one segment, got none"),
        ([[(0, 1.5)]], 3, r"blocks\[0\]: expected pairs of integers"),
        ([[(0, 1, 2)]], 3, r"blocks\[0\]: expected pairs of integers"),
        ([[(0, 3)]], -1, "n: expected an integer of 0 or more, got -1"),
    ],
)
def test_what_is_no_table_is_refused(
    given_blocks: list[list[tuple[int, int]]], n: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Partition.from_segments(given_blocks, n)


def test_a_table_may_be_given_as_arrays_and_is_checked() -> None:
    offsets, starts, lengths = (torch.tensor(x) for x in ([0, 2, 3], [0, 4, 2], [2, 1, 2]))
    assert Partition(offsets, starts, lengths, 5).block(0) == [(0, 2), (4, 1)]
    with pytest.raises(ConfigError, match="block_offsets: expected to begin with 0"):
        Partition(offsets[1:], starts, lengths, 5)
    with pytest.raises(ConfigError, match="segment_lengths: expected one for each of 3"):
        Partition(offsets, starts, lengths[:2], 5)
    with pytest.raises(ConfigError, match=r"segment_starts: expected a 1-D int64 .* torch.float32"):
        Partition(offsets, starts.float(), lengths, 5)
    with pytest.raises(ConfigError, match="names: expected one for each of 2 blocks, got 1"):
        Partition(offsets, starts, lengths, 5, ("a",))


def test_no_blocks_over_no_weights_is_a_partition() -> None:
    partition = Partition.from_segments([], 0)
    assert (partition.n_blocks, partition.block_sizes.tolist()) == (0, [])
    assert Partition.from_dict(partition.to_dict()) == partition
    assert repr(partition) == "Partition(custom: n=0, 0 blocks)"


def test_equality_is_that_of_the_tables() -> None:
    model = nn.Linear(3, 4)
    assert Partition.node(model) == Partition.node(nn.Linear(3, 4))
    assert hash(Partition.node(model)) == hash(Partition.node(nn.Linear(3, 4)))
    assert Partition.node(model) != Partition.layer(model)
    assert Partition.node(model) != "node"
    assert pickle.loads(pickle.dumps(Partition.node(model))) == Partition.node(model)


def test_a_partition_says_what_it_is_in_a_line() -> None:
    assert (
        repr(Partition.node(nn.Linear(3, 4))) == "Partition(node: n=16, 4 blocks, 4 weights each)"
    )
    assert "2 blocks, 1 to 3 weights each" in repr(Partition.from_segments([[(0, 3)], [(3, 1)]], 4))


def test_a_block_that_is_not_there_is_an_index_error() -> None:
    partition = Partition.node(nn.Linear(3, 4))
    assert partition.block(-1) == partition.block(3)
    for i in (4, -5):
        with pytest.raises(IndexError, match=f"block {i}: expected one of the 4 blocks"):
            partition.block(i)


def seconds(make: Callable[[], Partition]) -> float:
    """Of all processors' time: what others do on the machine meanwhile is not meant."""
    took = []
    for _ in range(3):
        start = time.process_time()
        make()
        took.append(time.process_time() - start)
    return min(took)


def test_large_partitions_are_made_in_well_under_a_second() -> None:
    wide = nn.Linear(4096, 4096)
    long = nn.Linear(10_000, 1_000, bias=False)
    transposed = nn.ConvTranspose2d(1024, 1024, 3)
    assert seconds(lambda: Partition.weight(long)) < 0.8
    assert seconds(lambda: Partition.node(wide)) < 0.5
    assert seconds(lambda: Partition.quasi_node(wide, 64)) < 0.8
    assert seconds(lambda: Partition.node(transposed)) < 0.8


def test_many_blocks_go_without_names() -> None:
    weight: Tensor = nn.Parameter(torch.zeros(200_000, 1))
    model = nn.ParameterList([weight])
    assert Partition.node(model).names is None
    assert Partition.node(model).n_blocks == 200_000


@pytest.mark.parametrize("kind", ["network", "layer", "node", "weight"])
def test_a_partition_is_a_table_of_the_host_wherever_the_model_is(
    kind: str, device: torch.device
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 3))
    expected = getattr(Partition, kind)(model)
    own = getattr(Partition, kind)(model.to(device))
    assert own == expected
    assert own.block_offsets.device.type == "cpu"
