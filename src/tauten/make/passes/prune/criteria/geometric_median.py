"""How far a channel is from all others: one near their geometric median is said by the rest (He et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["geometric_median"]


def geometric_median(weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``(channels, numbers) -> (channels,)``: the sum of Euclidean distances to the other channels."""
    # Not by way of the product of the matrix with itself, which loses the small distances that decide here.
    distances = torch.cdist(weights, weights, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sum(dim=1)
