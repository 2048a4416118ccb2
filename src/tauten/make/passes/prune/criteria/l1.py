"""The sum of a channel's magnitudes (Li et al., 2017)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["l1"]


def l1(weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``(channels, numbers) -> (channels,)``."""
    return weights.abs().sum(dim=1)
