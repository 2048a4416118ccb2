"""What the graph finds, what it refuses, and why."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tauten.core.tensor import TensorSpec
from tauten.errors import PassError
from tauten.make.graph.groups import Group, Removal
from tauten.make.graph.ids import Ids
from tauten.make.graph.slim import mask, slim
from tests.unit.graph import nets


def units(module: nn.Module, specs: tuple[TensorSpec, ...] = nets.IMAGE) -> dict[str, int]:
    return {group.name: group.units for group in nets.of(module, specs).groups}


def slots(group: Group) -> set[tuple[str, int, str]]:
    return {(slot.parameter, slot.dim, slot.role) for slot in group.slots}


class Net(nn.Module):
    """Two convolutions with something between them, and a head."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 4, 1), nn.Linear(4, 2)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.between(self.one(x))).mean((2, 3)))


def refusal(between: type[Net]) -> str:
    """Why the first convolution cannot be pruned; the second still can."""
    coupling = nets.of(between())
    assert [group.name for group in coupling.groups] == ["two.weight"]
    return coupling.refused_layers()["one"]


def test_a_residual_stream_is_one_group() -> None:
    coupling = nets.of(nets.ResNet())
    stream = coupling.groups[0]
    assert stream.units == 8
    assert slots(stream) >= {
        ("stem.0.weight", 0, "producer"),
        ("stem.1.running_var", 0, "producer"),
        ("layer1.conv2.0.weight", 0, "producer"),
        ("layer1.conv1.0.weight", 1, "consumer"),
        ("layer2.down.0.weight", 1, "consumer"),
    }
    assert coupling.refused_layers() == {"fc": "model output"}


def test_flatten_repeats_a_channel_over_space() -> None:
    coupling = nets.of(nets.vgg())
    last = next(group for group in coupling.groups if group.name == "3.weight")
    consumer = next(slot for slot in last.slots if slot.role == "consumer")
    assert consumer.parameter == "8.weight"
    assert consumer.of([2]).tolist() == [8, 9, 10, 11]


def test_concatenated_channels_stay_apart() -> None:
    make, specs = nets.HANDMADE["densenet"]
    coupling = nets.of(make(), specs)
    of_second = next(group for group in coupling.groups if group.name == "body.1.conv1.weight")
    reader = next(slot for slot in of_second.slots if slot.parameter == "body.2.weight")
    assert reader.index.tolist() == [4, 5, 6, 7]


def test_depthwise_channels_go_with_their_input() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    (group,) = nets.of(module).groups
    small = slim(module, Removal((group,), {0: np.array([1])}))
    assert (small[1].in_channels, small[1].out_channels, small[1].groups) == (3, 6, 3)
    assert small[1].weight.shape == (6, 1, 3, 3)


def test_groups_of_a_convolution_stay_equal() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 2, 1))
    coupling = nets.of(module)
    assert [group.units for group in coupling.groups] == [4, 3]
    small = slim(module, Removal(coupling.groups, {0: np.array([0]), 1: np.array([2])}))
    assert (small[1].in_channels, small[1].out_channels, small[1].groups) == (6, 4, 2)


def test_heads_go_whole() -> None:
    coupling = nets.of(nets.Tokens(8, nets.Attention(8, 4, 2)))
    heads = next(group for group in coupling.groups if group.name == "blocks.0.query.weight")
    assert heads.units == 2
    out = next(slot for slot in heads.slots if slot.parameter == "blocks.0.out.weight")
    assert out.of([1]).tolist() == [6, 7, 8, 9, 10, 11]
    key = next(slot for slot in heads.slots if slot.parameter == "blocks.0.key.weight")
    assert key.of([1]).tolist() == [3, 4, 5]


def test_an_embedding_is_as_wide_as_its_stream() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm, self.head = nn.Embedding(20, 6), nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.words(x)))

    specs = (TensorSpec(name="input", shape=("batch", 5), dtype="int64"),)
    coupling = nets.of(Words().eval(), specs)
    assert [group.name for group in coupling.groups] == ["words.weight:1"]
    assert coupling.refused_layers() == {"head": "model output"}


def test_a_layer_used_twice_is_cut_once() -> None:
    class Twice(Net):
        def __init__(self) -> None:
            super().__init__()
            self.again = nn.Conv2d(8, 8, 1)

        def between(self, x: torch.Tensor) -> torch.Tensor:
            return self.again(torch.relu(self.again(x)))

    (group, _) = nets.of(Twice()).groups
    assert {("again.weight", 0, "producer"), ("again.weight", 1, "consumer")} <= {
        (slot.parameter, slot.dim, "producer" if slot.dim == 0 else "consumer") for slot in group.slots
    }


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 2)
            self.two.weight = self.one.weight
            self.enter = nn.Linear(12, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.two(torch.relu(self.one(torch.relu(self.enter(x)))))))

    module = Tied().eval()
    coupling = nets.of(module, nets.VECTOR)
    assert [group.units for group in coupling.groups] == [12]
    removal = nets.random_removal(coupling, 1)
    small = slim(copy.deepcopy(module), removal)
    assert small.two.weight is small.one.weight
    x = torch.randn(3, 12)
    torch.testing.assert_close(small(x), mask(module, removal)(x), rtol=1e-4, atol=1e-5)


def test_an_operation_without_a_rule_is_named() -> None:
    class Cumulative(Net):
        def between(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumprod(x, 2)

    assert refusal(Cumulative) == "aten.cumprod at the top of the model: has no pruning rule"


def _through_view(x: torch.Tensor) -> torch.Tensor:
    """Overwrites ``x`` by another name, then reads it by its own."""
    x.flatten(2).exp_()
    return x.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (lambda x: x * x.softmax(1), "aten.softmax"),
        (lambda x: x * x.mean(1, keepdim=True), "aten.mean"),
        (lambda x: torch.cat([x[:, 4:], x[:, :4]], 1), "aten.slice"),
        (lambda x: x + x[:, 0:1], "aten.slice"),
        (lambda x: x * torch.sigmoid(x).sum(1, keepdim=True), "aten.sum"),
        (lambda x: functional.pad(x, (0, 0, 0, 0, 1, -1)), "aten.pad"),
        (lambda x: torch.cat(x.split([3, 5], 1), 1), "aten.split"),
        (lambda x: torch.cat([x, torch.sigmoid(x)], 1).sum(1, keepdim=True) * x, "aten.sum"),
        (lambda x: functional.linear(x, torch.eye(8), torch.ones(8)).sum(1, keepdim=True) * x, "aten.sum"),
        (lambda x: _through_view(x) * x, "changes a tensor in place"),
        (lambda x: x.flip(1), "aten.flip"),
        (lambda x: torch.stack(x.unbind(1), 1), "aten.unbind"),
        (lambda x: torch.sort(x, 1).values, "aten.sort"),
        (lambda x: functional.group_norm(x, 2), "aten.group_norm"),
        (lambda x: functional.scaled_dot_product_attention(*[x.permute(0, 2, 3, 1)] * 3).permute(0, 3, 1, 2), "width"),
        (lambda x: (x.flatten(2) @ torch.sigmoid(x.flatten(2).mT)).mean() * x, "takes shares|mean|matmul"),
        (lambda x: x * torch.linspace(1, 2, 8)[:, None, None], "constant|linspace"),
        (lambda x: x.amax(1, keepdim=True).expand(-1, 8, -1, -1), "aten.amax"),
        (lambda x: x / torch.relu(x + 0), "divides"),
    ],
)
def test_what_mixes_channels_is_refused(between: object, words: str) -> None:
    import re

    class Mixing(Net):
        def between(self, x: torch.Tensor) -> torch.Tensor:
            return between(x)  # type: ignore[operator]

    assert re.search(words, refusal(Mixing))


def test_a_consumer_whose_weight_is_computed_is_refused() -> None:
    class Positive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.conv2d(torch.sigmoid(self.one(x)), torch.sigmoid(self.two.weight))

    assert "sums over channels that are not zero" in nets.of(Positive()).refused_layers()["one"]


def test_a_sum_over_channels_that_are_zero_may_go_on() -> None:
    class Summed(Net):
        def between(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.relu(x).sum(1, keepdim=True)

    module = Summed().eval()
    coupling = nets.of(module)
    assert coupling.groups[0].units == 8
    removal = nets.random_removal(coupling, 0)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(slim(copy.deepcopy(module), removal)(x), mask(module, removal)(x), rtol=1e-4, atol=1e-5)


def test_sizes_fixed_in_the_code_are_found_by_running() -> None:
    module = nets.HardCoded().eval()
    coupling = nets.of(module)
    assert [group.name for group in coupling.groups] == ["conv1.weight", "conv2.weight"]
    removal = Removal(coupling.groups, {0: np.array([0, 1]), 1: np.array([0, 1, 2, 3])})
    found = nets.prover(module).broken(removal)
    assert set(found) == {1}
    assert "aten.view" in found[1]


def test_positions_fixed_in_the_code_are_found_by_running() -> None:
    class Shuffle(Net):
        def between(self, x: torch.Tensor) -> torch.Tensor:
            batch, channels, height, width = x.shape
            return x.view(batch, 4, channels // 4, height, width).transpose(1, 2).reshape(x.shape)

    module = Shuffle().eval()
    coupling = nets.of(module)
    removal = nets.random_removal(coupling, 0)
    held = nets.prover(module).broken(removal)
    assert set(held) <= {0}
    left = removal.only(set(removal.units) - set(held))
    assert nets.prover(module).fault(left) == ""


def test_removal_refuses_what_cannot_be() -> None:
    groups = nets.of(nets.ResNet()).groups
    with pytest.raises(PassError, match="at least one"):
        Removal(groups, {0: np.arange(groups[0].units)})
    with pytest.raises(PassError, match="units 0 to 7"):
        Removal(groups, {0: np.array([8])})
    with pytest.raises(PassError, match="no group 99"):
        Removal(groups, {99: np.array([0])})


def test_a_model_that_cannot_be_exported_is_refused() -> None:
    class Branch(Net):
        def between(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(PassError, match=r"torch\.export cannot follow"):
        nets.of(Branch())


def test_union_find_against_a_plain_one() -> None:
    generator = np.random.default_rng(0)
    ids = Ids()
    ids.fresh(300)
    ids.fresh(2000)
    label = np.arange(2300)
    for _ in range(60):
        left, right = generator.integers(0, 2300, (2, 20))
        ids.union(left, right)
        for one, other in zip(left, right, strict=True):
            label[label == label[one]] = label[other]
    roots = ids.find(np.arange(2300))
    assert len(np.unique(roots)) == len(np.unique(label))
    assert len(np.unique(np.stack([roots, label]), axis=1)[0]) == len(np.unique(label))
