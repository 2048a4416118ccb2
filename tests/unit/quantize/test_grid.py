"""Grids: what is on one stays, whatever the bits, axes, groups and shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tauten.artifact.nibbles import pack_nibbles, unpack_nibbles
from tauten.make.layers.quantized import Grid, QuantizedLayer
from tauten.make.passes.quantize._hqq import shift_grid
from tauten.make.passes.quantize._scales import choose_grid, from_cells, to_cells

shapes = st.tuples(st.integers(1, 5), st.integers(1, 19))
granularities = st.sampled_from(["tensor", "channel", "group"])


def weight_of(shape: tuple[int, ...], seed: int, size: float = 1.0) -> torch.Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size
    return torch.where(weight.abs() < 0.2 * size, 0.0, weight)


def grid_of(weight: torch.Tensor, bits: int, granularity: str, group: int, scales: str, shifted: bool) -> Grid:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    grid = choose_grid(layer, weight, bits, granularity, group, scales)
    return shift_grid(weight, grid) if shifted else grid


@settings(max_examples=80, deadline=None)
@given(
    shapes, st.integers(0, 99), st.sampled_from([4, 8]), granularities, st.integers(2, 24),
    st.sampled_from(["absmax", "mse"]), st.booleans(), st.sampled_from([1e-30, 1e-3, 1.0, 1e6]),
)  # fmt: skip
def test_what_lies_on_a_grid_stays_there(shape, seed, bits, granularity, group, scales, shifted, size) -> None:
    weight = weight_of(shape, seed, size)
    grid = grid_of(weight, bits, granularity, group, scales, shifted)
    codes = grid.encode(weight)
    assert torch.equal(grid.encode(grid.decode(codes)), codes)
    assert codes.dtype == torch.int8
    assert -(2 ** (bits - 1)) <= int(codes.min()) <= int(codes.max()) < 2 ** (bits - 1)
    # What is 0 stays 0: pruned weights do.
    assert not grid.decode(codes)[weight == 0].any()
    held = QuantizedLayer(nn.Linear(shape[1], shape[0]), codes, grid)
    assert torch.equal(held.weight, grid.decode(codes))
    assert torch.equal(held.to_float().weight, held.weight)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 99), st.sampled_from([4, 8]), granularities, st.integers(2, 24))
def test_the_largest_magnitude_is_kept_and_no_number_moves_by_more_than_half_a_step(
    shape, seed, bits, granularity, group
) -> None:
    weight = weight_of(shape, seed)
    grid = grid_of(weight, bits, granularity, group, "absmax", shifted=False)
    off = (grid.decode(grid.encode(weight)) - weight).abs()
    assert bool((off <= grid.spread(grid.scale, weight.shape) * 0.5001).all())


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 99), st.integers(2, 24), st.booleans())
def test_scales_of_least_error_are_no_worse_than_those_of_the_largest_magnitude(shape, seed, group, shifted) -> None:
    weight = weight_of(shape, seed) ** 3

    def error(scales: str) -> float:
        grid = grid_of(weight, 4, "group", group, scales, shifted=False)
        return float((grid.decode(grid.encode(weight)) - weight).square().sum())

    assert error("mse") <= error("absmax") * 1.0001


@given(shapes, st.integers(1, 24), st.integers(0, 99))
def test_cells_of_any_group_hold_each_number_once(shape, group, seed) -> None:
    weight = weight_of(shape, seed)
    group = min(group, shape[1])
    cells = to_cells(weight, 0, group)
    assert cells.shape == (shape[0] * -(-shape[1] // group), group)
    assert torch.isclose(cells.sum(), weight.sum(), atol=1e-4)
    assert from_cells(cells[:, 0], weight, 0, group).shape == (shape[0], -(-shape[1] // group))


def test_groups_of_a_row_have_scales_of_their_own() -> None:
    weight = torch.tensor([[1.0, -0.6, 100.0, 52.0, 7.0]])
    grid = choose_grid(nn.Linear(5, 1), weight, 4, "group", 2, "absmax")
    assert torch.equal(grid.scale, torch.tensor([[1.0, 100.0, 7.0]]) / 7)
    assert grid.encode(weight).tolist() == [[7, -4, 7, 4, 7]]


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), 0),
        (nn.Conv1d(4, 4, 3, groups=4), 0),
        (nn.ConvTranspose2d(4, 6, 3), 1),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), None),
        (nn.Embedding(70, 5), 0),
    ],
    ids=str,
)
def test_channels_lie_where_the_layer_has_its_outputs(layer: nn.Module, axis: int | None) -> None:
    grid = choose_grid(layer, layer.weight.detach(), 8, "group", 16, "absmax")
    assert grid.axis == axis
    off = (grid.decode(grid.encode(layer.weight.detach())) - layer.weight.detach()).abs().max()
    assert off <= grid.scale.max() * 0.5001


@given(st.lists(st.integers(-8, 7), max_size=40), st.integers(1, 3))
def test_nibbles_come_back(numbers: list[int], columns: int) -> None:
    array = np.array(numbers[: len(numbers) // columns * columns], np.int8).reshape(-1, columns)
    packed = pack_nibbles(array)
    assert packed.nbytes == (array.size + 1) // 2
    assert np.array_equal(unpack_nibbles(packed, array.shape), array)
