"""How far the outputs would move, to second order, without a channel's weights.

Optimal brain damage (LeCun et al., 1990) with the diagonal of the Fisher information as the curvature (Theis et al.,
2018), which answers drawn from the model itself give without labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tauten.make.passes.prune.criteria.criterion import measured

__all__ = ["fisher"]


@measured("fisher_gradient")
def fisher(weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``(channels, numbers) -> (channels,)``: the sum of squared weights times squared gradients."""
    return (weights * statistics["fisher_gradient"]).square().sum(dim=1)
