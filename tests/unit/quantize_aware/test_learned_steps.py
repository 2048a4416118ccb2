"""Gradients of learned steps and ranges against their formulas; what they become against what they were in training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tauten.errors import PassError
from tauten.make.layers.learned_steps import LearnedLayer, LearnedRange, round_input, round_weight
from tauten.make.layers.quantized import Grid, round_to_range


def through(x: Tensor) -> Tensor:
    """Rounded, with the gradient of what is not."""
    return x + (x.round() - x).detach()


def plain_weight(weight: Tensor, steps: Tensor, bits: int) -> Tensor:
    half = 2 ** (bits - 1)
    return through((weight / steps).clamp(-half, half - 1)) * steps


def plain_input(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    step = (high - low) / 255
    zero_point = through(-low / step)
    return ((through(x / step) + zero_point).clamp(0, 255) - zero_point) * step


def gradients(answer: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    upstream = torch.linspace(-1, 2, answer.numel(), dtype=answer.dtype).reshape(answer.shape)
    return torch.autograd.grad(answer, of, upstream)


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_of_a_weight_are_those_of_lsq(bits: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    half = 2 ** (bits - 1)
    steps = (torch.linspace(0.5, 2.5, 5, dtype=torch.float64) / half).reshape(5, 1, 1, 1).requires_grad_()
    ours, theirs = round_weight(weight, steps, bits), plain_weight(weight, steps, bits)
    assert torch.equal(ours, theirs)
    clipped = (weight / steps).abs() > half
    assert clipped.any()
    assert not clipped.all()
    by_weight, by_steps = gradients(ours, weight, steps)
    expected = gradients(theirs, weight, steps)
    torch.testing.assert_close(by_weight, expected[0])
    torch.testing.assert_close(by_steps, expected[1] / math.sqrt(12 * (half - 1)))


def test_outside_its_grid_the_slope_of_a_weight_is_that_of_finite_differences() -> None:
    weight = torch.tensor([[9.0, -9.0, 20.0, -20.0]], dtype=torch.float64)
    steps = torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True)
    (slope,) = gradients(round_weight(weight, steps, 4), steps)
    with torch.no_grad():
        apart = [round_weight(weight, steps + shift, 4) @ torch.linspace(-1, 2, 4).double() for shift in (1e-6, -1e-6)]
    torch.testing.assert_close(slope * math.sqrt(4 * 7), (apart[0] - apart[1])[:, None] / 2e-6, rtol=1e-5, atol=0)


@pytest.mark.parametrize("ends", [(0.0, 1.5), (-0.9, 1.65), (-1.2, 0.0)])
def test_gradients_of_a_range_are_those_of_lsq(ends: tuple[float, float]) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    low, high = (torch.tensor(end, dtype=torch.float64, requires_grad=True) for end in ends)
    ours, theirs = round_input(x, low, high), plain_input(x, low, high)
    torch.testing.assert_close(ours, theirs)
    found, expected = gradients(ours, x, low, high), gradients(theirs, x, low, high)
    torch.testing.assert_close(found[0], expected[0])
    for ours_end, their_end in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours_end, their_end / math.sqrt(9 * 255))


def test_a_number_beyond_the_range_moves_the_end_that_holds_it() -> None:
    x = torch.tensor([[5.0, -5.0]])
    low, high = torch.tensor(-1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    found = torch.autograd.grad(round_input(x, low, high), (low, high), torch.tensor([[3.0, 7.0]]))
    assert [float(one) * math.sqrt(2 * 255) for one in found] == pytest.approx([7.0, 3.0])


def test_rounding_in_training_is_rounding_in_use() -> None:
    torch.manual_seed(0)
    x = 2 * torch.randn(64, 5)
    layer = LearnedRange(-0.7, 1.9)
    with torch.no_grad():
        layer.growth.copy_(torch.tensor([0.3, -0.2]))
        low, high = layer.ends
        assert torch.equal(layer(x), round_to_range(x, low, high))


LAYERS: list[tuple[nn.Module, Any]] = [
    (nn.Linear(6, 5), torch.randn(3, 4, 6)),
    (nn.Conv1d(6, 4, 3, padding="same", bias=False), torch.randn(3, 6, 8)),
    (nn.Conv2d(6, 6, 3, padding=1, groups=6, padding_mode="reflect"), torch.randn(3, 6, 8, 8)),
    (nn.Conv3d(2, 4, 2, stride=2), torch.randn(2, 2, 4, 4, 4)),
    (nn.ConvTranspose1d(6, 4, 3, stride=2, output_padding=1), torch.randn(3, 6, 8)),
    (nn.ConvTranspose2d(6, 4, 3, groups=2), torch.randn(3, 6, 8, 8)),
    (nn.ConvTranspose3d(2, 3, 2), torch.randn(2, 2, 3, 3, 3)),
    (nn.Embedding(20, 6, padding_idx=0), torch.arange(12).reshape(3, 4)),
]


@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_fixed_answers_as_what_was_trained(layer: Any, x: Tensor, bits: int) -> None:
    axis = 1 if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose3d) else 0
    axis = None if isinstance(layer, nn.ConvTranspose2d) else axis
    grid = Grid(bits, axis, torch.full(() if axis is None else (layer.weight.shape[axis],), 0.02))
    learned = LearnedLayer(layer, grid, None if isinstance(layer, nn.Embedding) else LearnedRange(-1.5, 2.0))
    with torch.no_grad():
        learned.growth.uniform_(-0.5, 0.5)
    answer = learned(x)
    answer.square().sum().backward()
    assert learned.growth.grad is not None
    assert torch.isfinite(learned.growth.grad).all()
    fixed = learned.to_quantized().eval()
    torch.testing.assert_close(fixed(x), answer.detach(), rtol=1e-6, atol=1e-6)
    assert fixed.codes.dtype == torch.int8
    assert int(fixed.codes.min()) >= -(2 ** (bits - 1))
    assert int(fixed.codes.max()) <= 2 ** (bits - 1) - 1


def test_no_step_changes_its_sign() -> None:
    layer = LearnedLayer(nn.Linear(2, 2), Grid(4, 0, torch.tensor([0.1, 3.0])), LearnedRange(0.0, 1.0))
    with torch.no_grad():
        layer.growth.fill_(-20)
        layer.inputs.growth.fill_(5)
    assert (layer.grid.scale > 0).all()
    assert layer.inputs.ends[0] == 0


def test_bfloat16_inputs_are_rounded_in_float32() -> None:
    assert LearnedRange(0.0, 1.0)(torch.rand(2, 3).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        (Grid(8, 0, torch.ones(3)), "expected steps above 0"),
        (Grid(8, 0, torch.tensor([1.0, 0.0])), "expected steps above 0"),
        (Grid(8, 0, torch.tensor(1.0)), "expected steps above 0"),
        (Grid(8, 0, torch.ones(2), torch.zeros(2, dtype=torch.int8)), "symmetric grid without groups"),
        (Grid(8, 0, torch.ones(2, 1), group=2), "symmetric grid without groups"),
    ],
)
def test_grids_that_do_not_fit_are_refused(grid: Grid, told: str) -> None:
    with pytest.raises(PassError, match=told):
        LearnedLayer(nn.Linear(2, 2), grid)


def test_another_layer_is_refused() -> None:
    with pytest.raises(PassError, match="LayerNorm"):
        LearnedLayer(nn.LayerNorm(2), Grid(8, 0, torch.ones(2)))


@pytest.mark.parametrize("ends", [(0.0, 0.0), (0.1, 1.0), (-1.0, math.inf), (-2.0, -1.0), (math.nan, 1.0)])
def test_a_range_holds_zero_and_is_finite(ends: tuple[float, float]) -> None:
    with pytest.raises(PassError, match="finite range that holds 0"):
        LearnedRange(*ends)
