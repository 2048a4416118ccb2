"""Magnitudes of the weights that read a channel, each times the size of what it reads (Wanda; Sun et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tauten.make.passes.prune.criteria.criterion import measured

__all__ = ["wanda"]


@measured("activation_norm")
def wanda(weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``(channels, numbers) -> (channels,)``."""
    return (weights.abs() * statistics["activation_norm"]).sum(dim=1)
