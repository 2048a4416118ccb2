"""Biases that take up what rounding adds to the mean of an output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tauten.make.layers.quantized import QuantizedLayer
from tauten.make.passes.quantize._calibrate import Data, Hook, watching


def corrected_biases(
    module: nn.Module, layers: Mapping[str, nn.Module], quantized: Mapping[str, nn.Module], data: Data
) -> dict[str, Tensor]:
    """The biases of ``quantized`` with the mean error of their outputs on the float layers' inputs added, by path.

    Source: Nagel et al., 2019, with means that are measured.
    """
    treated = {
        path: layer
        for path, layer in quantized.items()
        if isinstance(layer, QuantizedLayer) and not isinstance(layer.layer, nn.Embedding)
    }
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(treated, 0)

    def add(path: str) -> Hook:
        def told(layer: nn.Module, x: Tensor, answer: Tensor) -> None:
            # Called with more than its input (a transposed convolution's output size), sizes may differ.
            came = treated[path](x)
            if came.shape != answer.shape:
                return
            channel = came.ndim - 1 if isinstance(layer, nn.Linear) else came.ndim - _space(layer) - 1
            off = (answer - came).double().transpose(0, channel).reshape(came.shape[channel], -1)
            sums[path] = sums.get(path, torch.zeros(())) + off.sum(1)
            counts[path] += off.shape[1]

        return told

    with watching({path: layers[path] for path in treated}, add):
        data.walk(module)
    found = {}
    for path, total in sums.items():
        shift = (total / max(counts[path], 1)).float()
        if not counts[path] or not bool(torch.isfinite(shift).all()) or not bool(shift.any()):
            continue
        layer: Any = treated[path].layer
        found[path] = shift if layer.bias is None else layer.bias.detach() + shift
    return found


def put_biases(quantized: Mapping[str, nn.Module], biases: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Give layers of ``quantized`` other biases, or none; returns those that they had."""
    had: dict[str, Tensor | None] = {}
    for path, bias in biases.items():
        layer: Any = quantized[path].get_submodule("layer")
        had[path] = layer.bias
        layer.bias = None if bias is None else nn.Parameter(bias.detach())
    return had


def _space(layer: Any) -> int:
    return len(layer.kernel_size)
