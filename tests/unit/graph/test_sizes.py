"""Sizes that modules keep as attributes follow where the module would not run without; no other is touched."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tauten.core.tensor import TensorSpec
from tauten.make.graph.groups import Removal
from tauten.make.graph.slim import slim
from tests.unit.graph import nets

TOKENS = (TensorSpec(name="input", shape=("batch", 6, 8)),)


class Packed(nn.Module):
    """Attention whose queries, keys and values are one layer, with its sizes as attributes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.embed_dim, self.split_size, self.num_heads, self.head_dim = width, width, heads, width // heads
        self.packed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        parts = self.packed(x).split(self.split_size, dim=2)
        query, key, value = (part.view(batch, length, self.num_heads, self.head_dim).transpose(1, 2) for part in parts)
        found = functional.scaled_dot_product_attention(query, key, value)
        return self.out(found.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim))


class Net(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.layers = nn.ModuleList(Packed(16, 4) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def test_attributes_follow_in_every_layer() -> None:
    torch.manual_seed(0)
    module = Net().eval()
    coupling = nets.of(module, TOKENS)
    heads = [place for place, group in enumerate(coupling.groups) if group.name.endswith("packed.weight")]
    assert [coupling.groups[place].units for place in heads] == [4, 4, 4]
    removal = Removal(coupling.groups, {place: np.array([0, 2, 3]) for place in heads})
    assert nets.prover(module, TOKENS).broken(removal) == {}
    small = slim(copy.deepcopy(module), removal)
    for layer in small.layers:
        # What only the constructor read (embed_dim) and what does not change (head_dim) is left alone.
        assert (layer.split_size, layer.num_heads, layer.head_dim, layer.embed_dim) == (4, 1, 4, 16)
    assert [layer.num_heads for layer in module.layers] == [4, 4, 4]


def test_a_residual_stream_needs_no_attribute() -> None:
    coupling = nets.of(Net().eval(), TOKENS)
    stream = next(group for group in coupling.groups if group.name == "enter.weight")
    assert stream.units == 16
    assert stream.sizes == ()


def test_a_tuple_of_one_size_follows() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.shape = nn.Parameter(torch.rand(16)), (16,)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.layer_norm(x, self.shape, self.weight)

    module = nn.Sequential(nn.Linear(8, 16), Norm(), nn.Linear(16, 2)).eval()
    coupling = nets.of(module, TOKENS)
    removal = nets.random_removal(coupling, 0)
    assert nets.prover(module, TOKENS).broken(removal) == {}
    assert slim(module, removal)[1].shape == tuple(module[1].weight.shape)


def test_a_size_that_is_no_attribute_is_refused_with_the_operation() -> None:
    class Fixed(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.enter(x).view(-1, 6, 16))

    module = Fixed().eval()
    coupling = nets.of(module, TOKENS)
    stream = next(place for place, group in enumerate(coupling.groups) if group.name == "enter.weight")
    assert coupling.groups[stream].sizes == ()
    found = nets.prover(module, TOKENS).broken(Removal(coupling.groups, {stream: np.arange(8)}))
    assert "aten.view" in found[stream]


def test_an_attribute_that_makes_it_run_but_not_right_is_refused() -> None:
    class Scaled(nn.Module):
        """Divides by a number that is also a size."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.width = nn.Linear(8, 16), nn.Linear(16, 2), 16

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).view(-1, 6, self.width) / self.width)

    module = Scaled().eval()
    coupling = nets.of(module, TOKENS)
    (group,) = coupling.groups
    assert [size.attribute for size in group.sizes] == ["width"]
    assert "differs" in nets.prover(module, TOKENS).broken(nets.random_removal(coupling, 0))[0]


def test_a_kernel_of_one_pixel_says_nothing_of_how_a_network_lies() -> None:
    image = (TensorSpec(name="input", shape=("batch", 3, 8, 8)),)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    groups = nets.of(module, image).groups
    place = next(place for place, group in enumerate(groups) if group.name == "0.weight")
    small = slim(copy.deepcopy(module), Removal(groups, {place: np.array([1, 6])}))
    assert [tuple(small[index].weight.stride()) for index in (0, 2)] == [(3, 1, 1, 1), (6, 1, 1, 1)]


def test_kernels_lie_in_memory_as_they_did() -> None:
    torch.manual_seed(0)
    image = (TensorSpec(name="input", shape=("batch", 1, 8, 8)),)
    for layout in (torch.contiguous_format, torch.channels_last):
        module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=layout).eval()
        groups = nets.of(module, image).groups
        place = next(place for place, group in enumerate(groups) if group.name == "0.weight")
        small = slim(copy.deepcopy(module), Removal(groups, {place: np.array([1, 6])}))
        assert small[2].weight.shape == (4, 6, 3, 3)
        # A kernel of one input channel counts as both; its strides alone tell how what it computes will lie.
        for before, after in zip(module.parameters(), small.parameters(), strict=True):
            assert after.ndim < 4 or (after.stride(1) == 1) == (before.stride(1) == 1) == (
                layout is torch.channels_last
            )
