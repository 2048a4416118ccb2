"""Rounding: each way lowers what it is there to lower, on a tiny trained model, and none is worse than the nearest."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tauten
from tauten.make.layers.quantized import Grid, QuantizedLayer
from tauten.make.passes.quantize._gptq import round_in_turn
from tauten.make.passes.quantize._learned import error_of, learn_rounding
from tauten.make.passes.quantize._matrix import as_rows, to_matrix

from .trained import task_of, trained, unseen_error


@cache
def error(method: str = "post_training", **parameters) -> float:
    made = tauten.quantize(task_of(trained()), method, **parameters)
    return unseen_error(trained(), made.module)


@pytest.mark.parametrize("rounding", ["gptq", "learned"])
@pytest.mark.parametrize("granularity", ["channel", "group"])
def test_rounding_by_data_is_better_than_nearest_in_four_bits(rounding: str, granularity: str) -> None:
    plain = error(bits=4, granularity=granularity, group=32)
    assert error(bits=4, granularity=granularity, group=32, rounding=rounding) < 0.7 * plain


def test_zero_points_without_data_are_better_than_nearest_in_four_bits() -> None:
    found = {way: error("weight_only", rounding=way, group=32) for way in ("nearest", "hqq", "gptq")}
    assert max(found["hqq"], found["gptq"]) < found["nearest"]


def test_groups_are_better_than_channels() -> None:
    found = [error(bits=4, granularity=way, group=16, correct_bias=False) for way in ("group", "channel")]
    assert found[0] < 0.9 * found[1]


def test_scales_of_four_bits_are_those_of_least_error() -> None:
    assert error(bits=4) == error(bits=4, scales="mse") != error(bits=4, scales="absmax")


def test_eight_bits_are_near_and_corrected_biases_nearer_in_four() -> None:
    assert error() < 1e-3
    assert error(bits=4) < error(bits=4, correct_bias=False)


def problem(seed: int, shape: tuple[int, int, int], rows: int) -> tuple[torch.Tensor, Grid, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    groups, _, inputs = shape
    matrix = torch.randn(shape, generator=draw)
    matrix = torch.where(torch.rand(shape, generator=draw) < 0.3, 0.0, matrix)
    x = torch.randn(groups, rows, inputs, generator=draw) @ torch.randn(groups, inputs, inputs, generator=draw)
    scale = matrix.abs().amax(2, keepdim=True).clamp_min(1e-6) / 7
    return matrix, scale, x.transpose(1, 2) @ x / rows


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)), st.integers(1, 30))
def test_codes_fit_and_zeros_stay_however_few_rows_there_are(seed, shape, rows) -> None:
    matrix, scale, moment = problem(seed, shape, rows)
    zero = torch.full_like(matrix, 2.0)
    for codes in (round_in_turn(matrix, scale, zero, 4, moment), learn_rounding(matrix, scale, zero, 4, moment)):
        assert codes.shape == matrix.shape
        assert -8 <= codes.min() <= codes.max() <= 7
        assert torch.equal(codes, codes.round())
        assert bool((codes[matrix == 0] == 2).all())


def test_inputs_that_are_always_zero_or_not_finite_do_no_harm() -> None:
    matrix, scale, moment = problem(0, (1, 3, 6), 20)
    zero = torch.zeros_like(matrix)
    moment[:, 2] = moment[:, :, 2] = 0
    codes = round_in_turn(matrix, scale, zero, 4, moment)
    assert bool(torch.isfinite(codes).all())
    assert round_in_turn(matrix, scale, zero, 4, torch.zeros_like(moment)) is not None
    assert round_in_turn(matrix, scale, zero, 4, -torch.eye(6)[None] * 100) is None


def test_rounding_in_turn_lowers_the_error_that_it_is_told_of() -> None:
    matrix, scale, moment = problem(3, (2, 8, 24), 100)
    zero = torch.zeros_like(matrix)
    nearest = (matrix / scale).round()

    def total(codes: torch.Tensor) -> float:
        return float(error_of(codes * scale - matrix, moment).sum())

    assert total(round_in_turn(matrix, scale, zero, 4, moment)) < 0.7 * total(nearest)
    assert total(learn_rounding(matrix, scale, zero, 4, moment)) < 0.7 * total(nearest)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), (2, 4, 7, 9)),
        (nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect"), (2, 4, 6, 6)),
        (nn.Conv1d(3, 6, 3, padding=1, groups=3), (2, 3, 8)),
        (nn.Conv3d(2, 3, 2), (1, 2, 3, 4, 4)),
        (nn.Linear(5, 3), (2, 4, 5)),
    ],
    ids=["conv2d", "reflect", "depthwise", "conv3d", "linear"],
)
def test_a_layer_is_its_matrix_times_its_rows(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = as_rows(layer, x, torch.Generator())
    product = rows @ to_matrix(layer, layer.weight).transpose(1, 2)
    wanted = layer(x)
    if not isinstance(layer, nn.Linear):
        product = product.transpose(0, 1).flatten(1)
        wanted = wanted.flatten(2).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(product.reshape(wanted.shape) + layer.bias, wanted, atol=1e-5)


def test_of_a_large_picture_some_places_are_drawn_the_same_for_a_seed() -> None:
    layer, x = nn.Conv2d(1, 1, 3), torch.randn(2, 1, 40, 40)
    first, again, other = (as_rows(layer, x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (1, 128, 9)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_output_keeps_the_nearest_codes_where_nothing_is_better() -> None:
    made = tauten.quantize(task_of(trained()), bits=8, rounding="gptq")
    assert isinstance(made.module.get_submodule("10"), QuantizedLayer)
    assert error(bits=8, rounding="gptq") < error(bits=8) * 1.05
