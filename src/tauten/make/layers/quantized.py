"""Layers whose weight is whole numbers on a grid: what quantization leaves in a PyTorch module.

They compute in float what an integer engine computes: the weight is ``(codes - zero_point) * scale``, the input is
rounded to 256 steps where its range is known. Source: Jacob et al., 2018.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauten.errors import PassError

QUANTIZABLE: Final = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
)
"""The layers that can become ``QuantizedLayer``: those that multiply by, or look up in, one weight of their own."""

_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_STEPS: Final = 255


@dataclass(frozen=True)
class Grid:
    """Where the numbers of a weight may lie: ``(codes - zero_point) * scale``.

    ``axis`` is the dimension of the weight along which each place has a scale of its own (``None``: one for all).
    With ``group``, each run of so many numbers along the other dimension of a matrix has its own too. ``scale`` and
    ``zero_point`` are ``(channels,)``, with groups ``(channels, groups)``, for one alone ``()``. Without a
    ``zero_point`` the grid is symmetric. ``codes`` lie in ``-(2**(bits-1))`` to ``2**(bits-1) - 1``.
    """

    bits: int
    axis: int | None
    scale: Tensor
    zero_point: Tensor | None = None
    group: int = 0

    def spread(self, what: Tensor, shape: torch.Size) -> Tensor:
        """``scale`` or ``zero_point``, spread so that it multiplies a weight of ``shape``."""
        if self.axis is None:
            return what
        if self.group:
            return what.repeat_interleave(self.group, dim=1)[:, : shape[1]]
        return what.reshape([-1 if dim == self.axis else 1 for dim in range(len(shape))])

    def encode(self, weight: Tensor) -> Tensor:
        """The nearest codes of ``weight``, int8, in its shape."""
        scale = self.spread(self.scale, weight.shape)
        codes = torch.round(weight / scale)
        if self.zero_point is not None:
            codes = codes + self.spread(self.zero_point, weight.shape)
        half = 2 ** (self.bits - 1)
        return codes.clamp(-half, half - 1).to(torch.int8)

    def decode(self, codes: Tensor) -> Tensor:
        """The float weight that ``codes`` stand for."""
        numbers = codes.to(self.scale.dtype)
        if self.zero_point is not None:
            numbers = numbers - self.spread(self.zero_point.to(self.scale.dtype), codes.shape)
        return numbers * self.spread(self.scale, codes.shape)


class QuantizedLayer(nn.Module):
    """A layer of ``QUANTIZABLE`` with its weight on a ``Grid``, and perhaps its input too.

    ``layer`` is taken over without its weight. ``codes`` are int8 in the weight's shape; ``input_range`` is the
    smallest and the largest input, which 256 steps then span (0 always among them); without it the input stays float.
    Raises ``PassError`` for another layer, or codes that do not fit it.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    input_low: Tensor | None
    input_high: Tensor | None

    def __init__(
        self, layer: nn.Module, codes: Tensor, grid: Grid, input_range: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        weight = getattr(layer, "weight", None)
        if not isinstance(layer, QUANTIZABLE) or not isinstance(weight, Tensor) or weight.shape != codes.shape:
            raise PassError(f"expected a layer of one weight and codes in its shape, got {type(layer).__name__}")
        half = 2 ** (grid.bits - 1)
        if codes.dtype != torch.int8 or int(codes.min()) < -half or int(codes.max()) >= half:
            raise PassError(f"expected int8 codes from {-half} to {half - 1} for {grid.bits} bits")
        self.layer = layer
        del layer.weight
        layer.register_parameter("weight", None)
        self.bits, self.axis, self.group = grid.bits, grid.axis, grid.group
        self.register_buffer("codes", codes)
        self.register_buffer("scale", grid.scale.detach().clone())
        zero_point = None if grid.zero_point is None else grid.zero_point.detach().to(torch.int8)
        self.register_buffer("zero_point", zero_point)
        low, high = (None, None) if input_range is None else (min(input_range[0], 0.0), max(input_range[1], 0.0))
        self.register_buffer("input_low", None if low is None else torch.tensor(float(low)))
        self.register_buffer("input_high", None if high is None else torch.tensor(float(high)))

    def __getattr__(self, name: str) -> Any:
        """What the layer has besides its weight, such as a stride, which code around it may ask for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get("_modules", {}).get("layer")
            if layer is None or name.startswith("__"):
                raise
            return getattr(layer, name)

    @property
    def grid(self) -> Grid:
        """Where the weight's numbers lie."""
        return Grid(self.bits, self.axis, self.scale, self.zero_point, self.group)

    @property
    def input_range(self) -> tuple[float, float] | None:
        """The smallest and the largest input that the rounding spans, where there is one."""
        if self.input_low is None or self.input_high is None:
            return None
        return float(self.input_low), float(self.input_high)

    @property
    def weight(self) -> Tensor:
        """The float weight that the codes stand for."""
        return self.grid.decode(self.codes)

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias, in float."""
        found: Tensor | None = getattr(self.layer, "bias", None)
        return found

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """What the layer answers, with its weight and input on their grids."""
        if self.input_low is not None and self.input_high is not None:
            x = round_to_range(x, self.input_low, self.input_high)
        return apply_layer(self.layer, x, self.weight, *more)

    def to_float(self) -> nn.Module:
        """The layer that ``layer`` was, in float, with the weight that the codes stand for."""
        plain = copy.deepcopy(self.layer)
        plain.weight = nn.Parameter(self.weight.detach().clone())
        return plain

    def extra_repr(self) -> str:
        return f"bits={self.bits}, axis={self.axis}, group={self.group}, input_range={self.input_range}"


def round_to_range(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``x`` rounded to the 256 steps from ``low`` to ``high``, of which one is 0: unsigned 8 bits with a zero point."""
    scale = (high - low).clamp_min(torch.finfo(torch.float32).tiny) / _STEPS
    zero_point = torch.round(-low / scale)
    if not torch.is_grad_enabled():
        # The same numbers in one new tensor instead of five: fresh memory takes most of the time.
        steps = x / scale
        return steps.round_().add_(zero_point).clamp_(0, _STEPS).sub_(zero_point).mul_(scale)
    return ((torch.round(x / scale) + zero_point).clamp(0, _STEPS) - zero_point) * scale


def apply_layer(layer: nn.Module, x: Tensor, weight: Tensor, *more: Any) -> Tensor:
    """What ``layer`` (one of ``QUANTIZABLE``) answers with ``weight`` in place of its own."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    if isinstance(layer, nn.Embedding):
        return F.embedding(x, weight, layer.padding_idx, layer.max_norm, layer.norm_type)
    if isinstance(layer, _TRANSPOSED):
        function: Any = getattr(F, f"conv_transpose{weight.dim() - 2}d")
        find_padding: Any = layer._output_padding
        size = more[0] if more else None
        output_padding = find_padding(
            x, size, layer.stride, layer.padding, layer.kernel_size, weight.dim() - 2, layer.dilation
        )
        answer: Tensor = function(
            x, weight, layer.bias, layer.stride, layer.padding, output_padding, layer.groups, layer.dilation
        )
        return answer
    convolve: Any = layer._conv_forward
    convolved: Tensor = convolve(x, weight, layer.bias)
    return convolved


def put_layer(root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """``root`` with ``new`` wherever ``old`` was, in place; ``new`` itself where ``root`` is ``old``.

    PyTorch's fused encoder kernels read the weights of layers and never call them; an encoder with a quantized layer
    is kept from them.
    """
    if root is old:
        return new
    for part in list(root.modules()):
        for name, child in part._modules.items():
            if child is old:
                part._modules[name] = new
        if isinstance(new, QuantizedLayer) and isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0
        if isinstance(new, QuantizedLayer) and isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
    return root
