"""The seam of pruning criteria."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch


class Criterion(Protocol):
    """A score a channel: what scores higher stays."""

    def __call__(self, weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scores of shape ``(channels,)``, finite and never negative.

        ``weights`` is ``(channels, numbers)``, float: all that the group's parameters hold of each channel, padded
        with zeros. ``statistics`` are measured on data, in the same shape; empty where none were asked for.
        """
        ...
