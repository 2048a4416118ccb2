"""How far the outputs would move, to second order, without a channel as a whole (Liu et al., 2021).

As ``fisher``, with the curvature along the direction in which all of a channel's weights vanish together, instead of
the sum over its weights as if they were independent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tauten.make.passes.prune.criteria.criterion import measured

__all__ = ["group_fisher"]


@measured("fisher_gradient")
def group_fisher(weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``(channels, numbers) -> (channels,)``: the square of a channel's sum of weights times gradients."""
    return (weights * statistics["fisher_gradient"]).sum(dim=1).square()
