"""A layer that divides its input by a size a feature, which its weight has taken up."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScaledInput(nn.Module):
    """``layer(x * factor)``: ``factor`` is ``(features,)`` and multiplies the input's last dimension.

    Where features differ much in size, one range of 8 bits spans the product better than ``x``. Engines make one
    operation of this and of the rounding that follows.
    """

    factor: Tensor

    def __init__(self, layer: nn.Module, factor: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("factor", factor.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The layer's weight, for code around it that asks for its dtype or device."""
        found: Tensor = self.layer.weight  # type: ignore[assignment]
        return found

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        found: Tensor | None = getattr(self.layer, "bias", None)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """What the layer answers to the scaled input."""
        answer: Tensor = self.layer(x * self.factor)
        return answer


def scale_input(module: nn.Module, path: str, factor: Tensor) -> None:
    """Put a ``ScaledInput`` in place of the linear layer at ``path``, and ``1 / factor`` into its weight's columns."""
    parent, _, last = path.rpartition(".")
    layer = module.get_submodule(path)
    with torch.no_grad():
        layer.get_parameter("weight").div_(factor)
    setattr(module.get_submodule(parent), last, ScaledInput(layer, factor))
