"""How far a quantized module's outputs lie from the float one's: signal to quantization noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from tauten.make.passes.quantize._calibrate import Data

_MOST: Final = 64  # samples that are compared
_QUIETEST: Final = 200.0  # dB; stands for outputs that are the same to the bit


class Noise:
    """Holds the float module's outputs on some of the data, to hold other modules against."""

    def __init__(self, data: Data, module: nn.Module, samples: int = _MOST) -> None:
        self._data = Data(data.model, data.context, min(samples, data.samples))
        self._wanted = [
            {name: tensor.detach().cpu() for name, tensor in outputs.items()} for outputs in self._data.run(module)
        ]

    def shares(self, module: nn.Module) -> dict[str, float]:
        """The noise's power over the signal's, an output; of outputs that are not numbers in float, the share that
        differs."""
        noise, signal = dict[str, float](), dict[str, float]()
        for wanted, outputs in zip(self._wanted, self._data.run(module), strict=True):
            for name, expected in wanted.items():
                off, power = _powers(expected, outputs[name].detach().cpu())
                noise[name] = noise.get(name, 0.0) + off
                signal[name] = signal.get(name, 0.0) + power
        return {name: _ratio(noise[name], signal[name]) for name in noise}

    def decibels(self, module: nn.Module) -> dict[str, float]:
        """Ten times the log of the signal's power over the noise's, an output; 200 at most, -200 at least."""
        return {
            name: round(max(-_QUIETEST, min(_QUIETEST, -10 * math.log10(share))) if share else _QUIETEST, 2)
            for name, share in self.shares(module).items()
        }

    def worst(self, module: nn.Module) -> float:
        """The largest difference of a number, over the largest number of its output."""
        worst = 0.0
        for wanted, outputs in zip(self._wanted, self._data.run(module), strict=True):
            worst = max(worst, _largest(wanted, outputs))
        return worst


def _powers(expected: Tensor, came: Tensor) -> tuple[float, float]:
    if not expected.is_floating_point():
        return float((expected != came).double().sum()), float(expected.numel())
    kept = torch.isfinite(expected)
    wanted = expected[kept].double()
    return float((wanted - came[kept].double()).square().sum()), float(wanted.square().sum())


def _ratio(noise: float, signal: float) -> float:
    if not noise:
        return 0.0
    return noise / signal if signal and math.isfinite(noise) else 1e20


def _largest(wanted: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> float:
    found = 0.0
    for name, expected in wanted.items():
        if expected.is_floating_point():
            kept = torch.isfinite(expected)
            one, other = expected[kept].double(), outputs[name].detach().cpu()[kept].double()
            if one.numel():
                off = float((one - other).abs().max()) / max(float(one.abs().max()), 1e-30)
                found = max(found, off if math.isfinite(off) else math.inf)
    return found
