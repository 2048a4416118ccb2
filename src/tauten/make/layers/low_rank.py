"""A layer as a row of thin ones, whose product is a matrix of low rank.

They are PyTorch's own layers, one after the other, so that every pass and every lowering takes each by itself.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tauten.make.layers.quantized import put_layer

Filled = TypeVar("Filled", bound=nn.Module)
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class LowRank(nn.Sequential):
    """Thin layers in place of ``layer``; the last has its bias.

    ``weight`` and ``bias`` are those of the one layer that would answer alike, and what else ``layer`` said of itself,
    such as its stride, is kept: for code around it that asks.
    """

    def __init__(self, layer: nn.Module, *parts: nn.Module) -> None:
        super().__init__(*parts)
        names: list[str] = getattr(layer, "__constants__", [])
        self.said = {name: getattr(layer, name) for name in names if hasattr(layer, name)}

    def __getattr__(self, name: str) -> Any:
        """What the layer said of itself."""
        said = self.__dict__.get("said", {})
        return said[name] if name in said else super().__getattr__(name)

    @property
    def weight(self) -> Tensor:
        """The product of the layers' weights, in the shape that the one layer's had; computed at each call."""
        weights: list[Tensor] = [part.get_parameter("weight") for part in self]
        first, *rest = weights
        if isinstance(self[0], nn.Embedding):
            return first @ rest[0].T
        # Of each two, one at most reaches farther than a place along any dimension, so that kernels multiply.
        return reduce(lambda inner, outer: torch.einsum("or...,ri...->oi...", outer, inner), rest, first)

    @property
    def bias(self) -> Tensor | None:
        """The last layer's bias."""
        found: Tensor | None = getattr(self[-1], "bias", None)
        return found


def linear_pair(layer: nn.Linear, inner: Tensor, outer: Tensor, bias: Tensor | None) -> LowRank:
    """``outer @ inner``: ``inner`` is ``(rank, inputs)``, ``outer`` ``(outputs, rank)``, ``bias`` ``(outputs,)``."""
    return LowRank(layer, _linear(inner, None, layer), _linear(outer, bias, layer))


def embedding_pair(layer: nn.Embedding, table: Tensor, outer: Tensor) -> LowRank:
    """A thin ``table`` ``(rows, rank)``, and ``outer`` ``(width, rank)`` that widens it (Lan et al., 2020)."""
    rows, rank = table.shape
    thin = _fill(nn.Embedding(rows, rank, padding_idx=layer.padding_idx), table, None, layer)
    return LowRank(layer, thin, _linear(outer, None, layer))


def channel_pair(layer: Convolution, inner: Tensor, outer: Tensor, bias: Tensor | None) -> LowRank:
    """``inner`` ``(rank, in, *kernel)`` goes over places as the layer did, ``outer`` ``(out, rank)`` mixes channels."""
    return LowRank(
        layer, _convolution(layer, inner, None, **_like(layer)), _convolution(layer, _pointwise(layer, outer), bias)
    )


def spatial_pair(layer: nn.Conv2d, down: Tensor, across: Tensor, bias: Tensor | None) -> LowRank:
    """``down`` ``(rank, in, height)`` goes along columns, ``across`` ``(out, rank, width)`` along rows."""
    return LowRank(
        layer,
        _convolution(layer, down.unsqueeze(-1), None, **_along(layer, 0)),
        _convolution(layer, across.unsqueeze(-2), bias, **_along(layer, 1)),
    )


def tucker_row(layer: Convolution, inner: Tensor, core: Tensor, outer: Tensor, bias: Tensor | None) -> LowRank:
    """``inner`` ``(r, in)``, ``core`` ``(s, r, *kernel)`` that goes over places, and ``outer`` ``(out, s)``."""
    return LowRank(
        layer,
        _convolution(layer, _pointwise(layer, inner), None),
        _convolution(layer, core, None, **_like(layer)),
        _convolution(layer, _pointwise(layer, outer), bias),
    )


def put_low_rank(root: nn.Module, old: nn.Module, new: LowRank) -> nn.Module:
    """``root`` with ``new`` wherever ``old`` was, in place; ``new`` itself where ``root`` is ``old``.

    Encoders are kept from PyTorch's fused kernels, which read the weights of layers and never call them.
    """
    for part in root.modules():
        inside = any(child is old for child in part.modules())
        if inside and isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0
        if inside and isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
    return put_layer(root, old, new)


def _linear(weight: Tensor, bias: Tensor | None, like: nn.Module) -> nn.Linear:
    outputs, inputs = weight.shape
    return _fill(nn.Linear(inputs, outputs, bias=bias is not None), weight, bias, like)


def _pointwise(layer: Convolution, matrix: Tensor) -> Tensor:
    return matrix.reshape(*matrix.shape, *[1] * len(layer.kernel_size))


def _convolution(layer: Convolution, weight: Tensor, bias: Tensor | None, **how: Any) -> Convolution:
    kind = next(kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, kind))
    kernel: Any = tuple(weight.shape[2:])
    made = kind(weight.shape[1], weight.shape[0], kernel, bias=bias is not None, **how)
    return _fill(made, weight, bias, layer)


def _like(layer: Convolution) -> dict[str, Any]:
    """How the layer goes over places."""
    names = ("stride", "padding", "dilation", "padding_mode")
    return {name: getattr(layer, name) for name in names}


def _along(layer: nn.Conv2d, dim: int) -> dict[str, Any]:
    """How the layer goes over places along one of two dimensions alone; along the other, place by place."""

    def only(pair: Any, other: int) -> Any:
        if isinstance(pair, str):  # "same" and "valid" hold for each dimension
            return pair
        return (pair[0], other) if dim == 0 else (other, pair[1])

    how = _like(layer)
    return {
        **how,
        "stride": only(how["stride"], 1),
        "padding": only(how["padding"], 0),
        "dilation": only(how["dilation"], 1),
    }


def _fill(made: Filled, weight: Tensor, bias: Tensor | None, like: Any) -> Filled:
    """``made`` with these numbers, in the dtype, on the device and as learnable as the layer ``like``."""
    made = made.to(like.weight.dtype).to(like.weight.device).eval()
    with torch.no_grad():
        made.get_parameter("weight").copy_(weight)
        if bias is not None:
            made.get_parameter("bias").copy_(bias)
    for parameter in made.parameters():
        parameter.requires_grad_(like.weight.requires_grad)
    return made
