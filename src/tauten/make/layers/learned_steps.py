"""Layers that learn the grid of their weight, and the range of their input, while the model trains.

They answer as the ``QuantizedLayer`` that comes of them does, so that training sees what will be deployed. Rounding has
no slope: going back, the gradient passes straight through it (Bengio et al., 2013), and what a number loses by its
rounding is what its step learns from (learned step size quantization, LSQ: Esser et al., 2020). The input's range is
learned at both ends, which is LSQ with an offset (LSQ+: Bhalgat et al., 2020) said in other numbers: of 256 steps
between them one is always 0.

Two things are changed. Steps and ends are learned as multiples of where they began, by the logarithm (Jain et al.,
2020), so that none changes its sign and all move at one pace under AdamW, whatever their size. And as the lowering
needs whole ranges, the ends are learned in place of step and offset.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Final

import torch
from torch import Tensor, nn

from tauten.errors import PassError
from tauten.make.layers.quantized import QUANTIZABLE, Grid, QuantizedLayer, apply_layer, round_to_range

_STEPS: Final = 255


def round_weight(weight: Tensor, steps: Tensor, bits: int) -> Tensor:
    """``weight`` on whole multiples of ``steps``, from ``-2**(bits-1)`` to ``2**(bits-1) - 1`` of them.

    ``steps`` is above 0 and multiplies the weight. Gradients are those of LSQ, that of the steps scaled by
    ``1 / sqrt(weights a step * largest code)``.
    """
    half = 2 ** (bits - 1)
    share = 1.0 / math.sqrt(weight.numel() / steps.numel() * (half - 1))
    rounded: Tensor = _RoundWeight.apply(weight, steps, half, share)  # type: ignore[no-untyped-call]
    return rounded


def round_input(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``x``, ``(batch, ...)``, on the 256 steps from ``low`` (at most 0) to ``high`` (at least 0): ``round_to_range``.

    Gradients are those of LSQ, those of the ends scaled by ``1 / sqrt(numbers a sample * 255)``.
    """
    share = 1.0 / math.sqrt(max(1, x.numel() // max(1, len(x))) * _STEPS)
    rounded: Tensor = _RoundInput.apply(x, low, high, share)  # type: ignore[no-untyped-call]
    return rounded


class LearnedRange(nn.Module):
    """Rounds what it is given to 256 steps between two learned ends, of which one that begins at 0 stays there.

    Several layers that read one value share one of these. ``low`` is 0 or less, ``high`` 0 or more, in float32.
    """

    start: Tensor

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high and low < high):
            raise PassError(f"expected a finite range that holds 0, got {low} to {high}")
        self.register_buffer("start", torch.tensor([low, high]))
        self.growth = nn.Parameter(torch.zeros(2))

    @property
    def ends(self) -> Tensor:
        """The smallest and the largest number that the steps reach, ``(2,)``."""
        return self.start * self.growth.exp()

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.ends.unbind()
        return round_input(x.to(torch.promote_types(x.dtype, torch.float32)), low, high)

    def extra_repr(self) -> str:
        low, high = self.start.tolist()
        return f"from {low:.6g} to {high:.6g}"


class LearnedLayer(nn.Module):
    """A layer of ``QUANTIZABLE`` that computes with its weight rounded, and its input where ``inputs`` is given.

    The steps of the weight begin with those of ``grid``, which is symmetric. Raises ``PassError`` for another layer or
    a grid that does not fit.
    """

    start: Tensor

    def __init__(self, layer: nn.Module, grid: Grid, inputs: LearnedRange | None = None) -> None:
        super().__init__()
        weight = getattr(layer, "weight", None)
        if not isinstance(layer, QUANTIZABLE) or not isinstance(weight, Tensor):
            raise PassError(f"expected a layer of one weight, got {type(layer).__name__}")
        if grid.zero_point is not None or grid.group:
            raise PassError("expected a symmetric grid without groups")
        steps = grid.scale.detach()
        shape = () if grid.axis is None else (weight.shape[grid.axis],)
        if steps.shape != shape or not bool((steps > 0).all()):
            raise PassError(f"expected steps above 0 of shape {shape}, got {tuple(steps.shape)}")
        self.layer, self.bits, self.axis, self.inputs = layer, grid.bits, grid.axis, inputs
        self.register_buffer("start", steps.clone())
        self.growth = nn.Parameter(torch.zeros_like(self.start))

    @property
    def grid(self) -> Grid:
        """Where the weight's numbers lie now; gradients reach its scale."""
        return Grid(self.bits, self.axis, self.start * self.growth.exp())

    @property
    def weight(self) -> Tensor:
        """The weight on its grid."""
        weight, grid = self.layer.weight, self.grid
        if not isinstance(weight, Tensor):
            raise PassError(f"expected a layer of one weight, got {type(self.layer).__name__}")
        return round_weight(weight, grid.spread(grid.scale, weight.shape), self.bits)

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        found: Tensor | None = getattr(self.layer, "bias", None)
        return found

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """What the layer answers, with its weight and input on their grids."""
        return apply_layer(self.layer, x if self.inputs is None else self.inputs(x), self.weight, *more)

    def to_quantized(self) -> QuantizedLayer:
        """The same function with what was learned fixed: codes, their grid, and the input's range."""
        layer, steps = copy.deepcopy(self.layer), self.grid.scale.detach()
        weight: Any = layer.weight
        grid = Grid(self.bits, self.axis, steps)
        ends = None if self.inputs is None else self.inputs.ends.tolist()
        return QuantizedLayer(layer, grid.encode(weight.detach()), grid, None if ends is None else (ends[0], ends[1]))

    def extra_repr(self) -> str:
        return f"bits={self.bits}, axis={self.axis}"


class _RoundWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, steps: Tensor, half: int, share: float) -> Tensor:
        scaled = weight / steps
        codes = scaled.round().clamp_(-half, half - 1)
        ctx.save_for_backward(scaled, codes, steps)
        ctx.half, ctx.share = half, share
        return codes * steps

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        scaled, codes, steps = ctx.saved_tensors
        inside = (scaled >= -ctx.half) & (scaled <= ctx.half - 1)
        # Esser et al., equation 3: what rounding adds, or the code itself where the grid ends.
        slope = torch.where(inside, codes - scaled, codes)
        return gradient * inside, (gradient * slope).sum_to_size(steps.shape) * ctx.share, None, None


class _RoundInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(x, low, high)
        ctx.share = share
        return round_to_range(x, low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        x, low, high = ctx.saved_tensors
        step = (high - low).clamp_min(torch.finfo(torch.float32).tiny) / _STEPS
        zero_point = torch.round(-low / step)
        scaled = x / step
        codes = scaled.round()
        below, above = codes < -zero_point, codes > _STEPS - zero_point
        inside = ~(below | above)
        # Inside, a number is its code times the step, a 255th of the range; outside it is the end that it is held at.
        passed = gradient * inside
        by_step = (passed * (codes - scaled)).sum() / _STEPS
        to_low = (gradient * below).sum() - by_step
        to_high = (gradient * above).sum() + by_step
        return passed, to_low * ctx.share, to_high * ctx.share, None
