"""Where learned steps begin: with the grids and the ranges that rounding alone has chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tauten.make.layers.learned_steps import LearnedLayer, LearnedRange
from tauten.make.layers.quantized import QuantizedLayer, put_layer
from tauten.make.passes.quantize._calibrate import Data
from tauten.make.passes.quantize._convert import Decided

Reads = tuple[tuple[int, int], ...]
"""One tensor and its version a call: what tells one value from another."""


@dataclass
class _Calls:
    """What each layer read, in the order of first calls; all of it is kept alive, so that each has an id of its own."""

    reads: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)

    def hook(self, path: str) -> Any:
        def read(layer: nn.Module, given: tuple[Any, ...]) -> None:
            found = self.reads.setdefault(path, [])
            for x in given[:1]:
                if isinstance(x, Tensor):
                    self.alive.append(x)
                    found.append((id(x), x._version))

        return read


def reads_of(layers: Mapping[str, nn.Module], module: nn.Module, data: Data) -> dict[str, Reads]:
    """What each layer reads on a batch, in the order in which they are called first."""
    calls = _Calls()
    handles = [layer.register_forward_pre_hook(calls.hook(path)) for path, layer in layers.items()]
    try:
        data.walk(module, 1)
    finally:
        for handle in handles:
            handle.remove()
    return {path: tuple(read) for path, read in calls.reads.items()}


def start_learning(decided: Decided, data: Data) -> tuple[nn.Module, list[str]]:
    """The float module of ``decided``, in which each layer that was put on a grid learns its steps; and their paths.

    In place. Layers that read one value share a range.
    """
    rounded = {path: layer for path, layer in decided.layers.items() if isinstance(layer, QuantizedLayer)}
    module = decided.module
    reads = reads_of({path: decided.sites.layers[path] for path in rounded}, module, data)
    ranges: dict[Any, LearnedRange] = {}
    for path, layer in rounded.items():
        key = reads.get(path) or path
        if layer.input_range is not None and key not in ranges:
            ranges[key] = LearnedRange(*layer.input_range).to(layer.scale.device)
        inputs = None if layer.input_range is None else ranges[key]
        original = decided.sites.layers[path]
        module = put_layer(module, original, LearnedLayer(original, layer.grid, inputs))
    return module, list(rounded)
