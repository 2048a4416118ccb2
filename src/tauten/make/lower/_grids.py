"""Quantized layers out of a module, so that a lowering can begin with a float graph and know what was decided."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from tauten.make.layers.quantized import Grid, QuantizedLayer


@dataclass(frozen=True)
class Decided:
    """What a quantized layer fixed: the grid of its weight, and the range of its input where that is rounded too."""

    grid: Grid
    input_range: tuple[float, float] | None


def materialize(module: nn.Module) -> tuple[nn.Module, Mapping[str, Decided]]:
    """The module with plain float layers in place of quantized ones, and by a weight's name what was decided of it.

    The float weights lie on their grids, so that rounding them again by the same grid changes nothing. A module without
    such layers comes back as it is.
    """
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, QuantizedLayer)}
    if not found:
        return module, {}
    plain = module if isinstance(module, QuantizedLayer) else copy.deepcopy(module)
    decided: dict[str, Decided] = {}
    for name, layer in found.items():
        decided[f"{name}.weight" if name else "weight"] = Decided(layer.grid, layer.input_range)
        if not name:
            return layer.to_float(), decided
        parent, _, last = name.rpartition(".")
        setattr(plain.get_submodule(parent), last, layer.to_float())
    return plain.eval(), decided
