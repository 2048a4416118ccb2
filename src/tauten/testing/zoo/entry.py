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
        """The network in evaluation mode, the same for the same seed.

        Its weights are as large as trained ones: those that layers begin with are so small, and so much alike in norms,
        that attention is all but even and a channel in the wrong place hardly shows.
        """
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.manual_seed(seed)
            made = self.make().eval()
            for parameter in made.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=(parameter.numel() / len(parameter)) ** -0.5)
                else:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
            for name, buffer in made.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(std=0.3)
                elif name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
            return made

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
