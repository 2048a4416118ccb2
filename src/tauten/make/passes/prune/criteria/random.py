"""Scores that know nothing of the weights: the control that every other criterion must beat."""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["random"]


def random(weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``(channels, numbers) -> (channels,)``, uniform in [0, 1), from PyTorch's generator, which the pass seeds."""
    return torch.rand(weights.shape[0])
