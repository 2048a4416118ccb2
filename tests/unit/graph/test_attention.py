"""Attention in the forms that transformers write it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from tauten.core.tensor import TensorSpec
from tauten.make.graph.groups import Removal
from tests.unit.graph import nets

TOKENS = (TensorSpec(name="input", shape=("batch", 6, 8)),)


class Grouped(nn.Module):
    """Four heads of queries on two of keys and values, as Llama has them."""

    def __init__(self, kernel: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.query, self.key, self.value, self.out = (
            nn.Linear(8, 12),
            nn.Linear(8, 6),
            nn.Linear(8, 6),
            nn.Linear(12, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = (layer(x).view(*x.shape[:-1], -1, 3).transpose(1, 2) for layer in (self.query, self.key, self.value))
        query, key, value = parts
        if not self.kernel:
            key, value = (
                one[:, :, None].expand(-1, -1, 2, -1, -1).reshape(x.shape[0], -1, x.shape[1], 3) for one in (key, value)
            )
        found = scaled_dot_product_attention(query, key, value, enable_gqa=self.kernel, is_causal=True)
        return self.out(found.transpose(1, 2).reshape(*x.shape[:-1], -1))


@pytest.mark.parametrize("kernel", [False, True])
def test_heads_that_share_keys_and_values_go_together(kernel: bool) -> None:
    torch.manual_seed(0)
    module = Grouped(kernel).eval()
    (group,) = nets.of(module, TOKENS).groups
    assert group.units == 2
    entries = {slot.parameter: slot.of([1]).tolist() for slot in group.slots if slot.parameter.endswith("weight")}
    assert entries == {
        "query.weight": [6, 7, 8, 9, 10, 11],
        "key.weight": [3, 4, 5],
        "value.weight": [3, 4, 5],
        "out.weight": [6, 7, 8, 9, 10, 11],
    }
    assert nets.prover(module, TOKENS).fault(Removal((group,), {0: np.array([0])})) == ""


class Single(nn.Module):
    """One head, whose widths are plain channels."""

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.scale = scale
        self.query, self.key, self.value, self.out = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        return self.out(scaled_dot_product_attention(query, key, value, scale=self.scale))


def test_the_width_of_queries_goes_where_the_scale_is_given() -> None:
    torch.manual_seed(0)
    module = Single(0.3).eval()
    coupling = nets.of(module, TOKENS)
    assert {group.name: group.units for group in coupling.groups} == {"query.weight": 6, "value.weight": 5}
    assert nets.prover(module, TOKENS).fault(nets.random_removal(coupling, 0)) == ""


def test_the_width_of_queries_stays_where_the_scale_follows_from_it() -> None:
    coupling = nets.of(Single(None).eval(), TOKENS)
    assert [group.name for group in coupling.groups] == ["value.weight"]
    assert "scales by the width of a head" in coupling.refused_layers()["query"]


class Biased(nn.Module):
    """Heads with a table of relative positions, and a bias of zeros that two layers share."""

    def __init__(self, zeros: bool) -> None:
        super().__init__()
        self.zeros, self.heads = zeros, 4
        self.table = nn.Parameter(torch.randn(11, 4))
        places = torch.arange(6)
        self.register_buffer("numbers", places[:, None] - places[None, :] + 5)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros(1, self.heads, 6, 6) if self.zeros else self.table[self.numbers].permute(2, 0, 1)[None]
        for first in (0, 4):
            query, key, value, out = self.layers[first : first + 4]
            parts = [layer(x).view(*x.shape[:-1], -1, 2).transpose(1, 2) for layer in (query, key, value)]
            shares = (parts[0] @ parts[1].mT * 0.5 + bias).softmax(-1)
            x = x + out((shares @ parts[2]).transpose(1, 2).reshape(*x.shape[:-1], -1))
        return self.head(x)


@pytest.mark.parametrize("zeros", [False, True])
def test_heads_go_with_a_bias_that_layers_share(zeros: bool) -> None:
    torch.manual_seed(0)
    module = Biased(zeros).eval()
    coupling = nets.of(module, TOKENS)
    place = next(place for place, group in enumerate(coupling.groups) if group.units == 4)
    group = coupling.groups[place]
    assert {"layers.0.weight", "layers.4.weight"} <= set(group.parameters)
    assert ("table" in group.parameters) is not zeros
    assert [size.attribute for size in group.sizes] == ["heads"] * zeros
    assert nets.prover(module, TOKENS).fault(Removal(coupling.groups, {place: np.array([0, 3])})) == ""
