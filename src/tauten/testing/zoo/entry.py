"""One network of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tauten.core.tensor import Arrays, TensorSpec


@dataclass(frozen=True)
class ZooModel:
    """A common architecture at small size, with random weights.

    ``make`` builds it; call it through ``build``, which seeds the weights. ``integers`` bounds what integer inputs
    hold (token numbers), exclusive.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[TensorSpec, ...]
    integers: int = 2

    def build(self, seed: int = 0) -> nn.Module:
        """The network in evaluation mode, the same for the same seed."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return self.make().eval()

    def example(self, batch: int = 3, seed: int = 0) -> Arrays:
        """Inputs by name: normal numbers, or integers below ``integers`` (a mask, named so, is all ones)."""
        draw = np.random.default_rng(seed)
        made: Arrays = {}
        for spec in self.inputs:
            shape = spec.concrete(batch)
            if "mask" in spec.name:
                made[spec.name] = np.ones(shape, spec.dtype)
            elif "int" in spec.dtype:
                made[spec.name] = draw.integers(0, self.integers, shape).astype(spec.dtype)
            else:
                made[spec.name] = draw.standard_normal(shape).astype(spec.dtype)
        return made
