"""The property that defines the graph: the smaller module answers as the masked original."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tauten.make.graph.export import export
from tauten.make.graph.groups import Removal
from tauten.make.graph.slim import slim
from tests.unit.graph import nets
from tests.unit.graph.reference import answers, assert_alike


@pytest.mark.parametrize("name", sorted(nets.HANDMADE))
def test_smaller_answers_as_masked(name: str) -> None:
    make, specs = nets.HANDMADE[name]
    torch.manual_seed(0)
    module = nets.lively(make())
    coupling = nets.of(module, specs)
    assert coupling.groups
    for seed in range(5):
        small = assert_alike(module, specs, nets.random_removal(coupling, seed))
        assert sum(tensor.numel() for tensor in small.parameters()) < sum(t.numel() for t in module.parameters())
    assert answers(copy.deepcopy(small), specs, 1)[0].shape == answers(module, specs, 1)[0].shape
    assert answers(small, specs, 7)[0].shape[0] == 7
    # It can be exported and pruned again. A single head that is left shows its width as channels, which the code fixes.
    again = nets.random_removal(nets.of(small, specs), 0)
    held = nets.prover(small, specs).broken(again)
    assert not held or "attention" in name or "query" in name
    assert_alike(small, specs, again.only(again.units.keys() - held.keys()))


GENERATED = {
    "parts": st.lists(st.sampled_from(nets.PARTS), min_size=1, max_size=4),
    "width": st.sampled_from([4, 6]),
    "flat": st.booleans(),
    "seed": st.integers(0, 1000),
}
of_generated = partial(settings, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@of_generated(max_examples=6)
@given(**GENERATED)
def test_generated(parts: list[str], width: int, flat: bool, seed: int) -> None:
    check_generated(parts, width, flat, seed)


@pytest.mark.slow
@of_generated(max_examples=25)
@given(**GENERATED)
def test_more_generated(parts: list[str], width: int, flat: bool, seed: int) -> None:
    check_generated(parts, width, flat, seed)


def check_generated(parts: list[str], width: int, flat: bool, seed: int) -> None:
    torch.manual_seed(seed)
    module = nets.lively(nets.Generated(parts, width, flat), seed)
    coupling = nets.of(module)
    # Every layer but the last makes channels that some group holds.
    assert set(coupling.refused_layers()) == {"head.2"}
    for mask_seed in range(3):
        assert_alike(module, nets.IMAGE, nets.random_removal(coupling, seed + mask_seed))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=4), seed=st.integers(0, 100), norm=st.booleans())
def test_generated_mlp(sizes: list[int], seed: int, norm: bool) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inside, out in zip([12, *sizes], sizes, strict=False):
        layers += [nn.Linear(inside, out), nn.BatchNorm1d(out) if norm else nn.Identity(), nn.Softplus()]
    module = nets.lively(nn.Sequential(*layers, nn.Linear(sizes[-1], 3)), seed)
    coupling = nets.of(module, nets.VECTOR)
    assert [group.units for group in coupling.groups] == sizes
    assert_alike(module, nets.VECTOR, nets.random_removal(coupling, seed))


def test_each_single_unit_can_go() -> None:
    module = nets.lively(nets.ResNet())
    coupling = nets.of(module)
    for place, group in enumerate(coupling.groups):
        for unit in (0, group.units // 2, group.units - 1):
            assert_alike(module, nets.IMAGE, Removal(coupling.groups, {place: np.array([unit])}))


def test_one_unit_is_left() -> None:
    module = nets.lively(nets.ResNet())
    coupling = nets.of(module)
    units = {place: np.arange(1, group.units) for place, group in enumerate(coupling.groups)}
    small = assert_alike(module, nets.IMAGE, Removal(coupling.groups, units))
    assert small.layer1.conv1[0].weight.shape == (1, 1, 3, 3)


def test_smaller_module_exports_with_any_batch() -> None:
    module = nets.lively(nets.ResNet())
    small = slim(module, nets.random_removal(nets.of(module), 0))
    program = export(small, nets.IMAGE, nets.example(nets.IMAGE)).module()
    for batch in (2, 5):
        images = torch.from_numpy(nets.example(nets.IMAGE, batch)["input"])
        torch.testing.assert_close(program(images), small(images))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    layers=st.integers(1, 2),
    both=st.booleans(),
    bias=st.booleans(),
    first=st.booleans(),
    projects=st.booleans(),
    seed=st.integers(0, 100),
)
def test_generated_recurrent(
    kind: type[nn.RNNBase], layers: int, both: bool, bias: bool, first: bool, projects: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    projection = {"proj_size": 3} if projects and kind is nn.LSTM else {}
    layer = kind(6, 5, layers, bidirectional=both, bias=bias, batch_first=first, **projection)
    out = (3 if projection else 5) * (1 + both)
    module = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nets.Recurrent(layer), nn.Flatten(), nn.Linear(4 * out, 2)).eval()
    coupling = nets.of(module)
    assert set(coupling.refused_layers()) == {"3"}
    assert sorted(group.units for group in coupling.groups) == sorted([6, 5, *projection.values()])
    assert_alike(module, nets.IMAGE, nets.random_removal(coupling, seed))
