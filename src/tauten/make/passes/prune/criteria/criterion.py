"""The seam of pruning criteria."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol, TypeVar, get_args

import torch

Statistic = Literal["gradient", "fisher_gradient", "activation_norm"]
"""What can be measured on data, each in the shape of the weights.

``gradient``: of the task's loss where calibration data has labels, else as ``fisher_gradient``; of one mini-batch.
``fisher_gradient``: of the log-likelihood of answers that are drawn from the model's own distribution, so that its
squares' mean is the Fisher information and no label is needed; of one mini-batch.
``activation_norm``: the root of the mean square, over samples and positions, of the input that the weight multiplies.
"""


class Criterion(Protocol):
    """A score a channel: what scores higher stays."""

    def __call__(self, weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scores of shape ``(channels,)``, finite and never negative.

        ``weights`` is ``(channels, numbers)``, float: all that the group's parameters hold of each channel, padded
        with zeros. ``statistics`` are those asked for by ``measured``, in the same shape; empty where none were. A
        criterion that asks for a gradient is called once a mini-batch, and the mean of its scores counts.
        """
        ...


C = TypeVar("C", bound=Criterion)


def measured(*statistics: Statistic) -> Callable[[C], C]:
    """Says which statistics a criterion reads.

    Such a criterion is given what reads the channels alone: the change of the outputs when the channels are gone is the
    change that those weights make, while what makes the channels would count the same change a second time.
    """
    unknown = sorted(set(statistics) - set(get_args(Statistic)))
    if unknown:
        raise ValueError(f"expected statistics of {get_args(Statistic)}, got {unknown}")

    def mark(criterion: C) -> C:
        criterion.statistics = statistics  # type: ignore[attr-defined]
        return criterion

    return mark


def statistics_of(criterion: Criterion) -> tuple[Statistic, ...]:
    """The statistics that a criterion reads: those it was marked with, or none."""
    found: tuple[Statistic, ...] = getattr(criterion, "statistics", ())
    return found
