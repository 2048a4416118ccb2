"""The Euclidean norm of all that a channel is made of and read by (Li et al., 2017; over groups Fang et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["l2"]


def l2(weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``(channels, numbers) -> (channels,)``."""
    return weights.square().sum(dim=1).sqrt()
