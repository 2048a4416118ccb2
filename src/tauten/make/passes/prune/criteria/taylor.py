"""How much the loss would change, to first order, without a channel (Molchanov et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tauten.make.passes.prune.criteria.criterion import measured

__all__ = ["taylor"]


@measured("gradient")
def taylor(weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``(channels, numbers) -> (channels,)``: the square of a channel's sum of weights times gradients."""
    return (weights * statistics["gradient"]).sum(dim=1).square()
