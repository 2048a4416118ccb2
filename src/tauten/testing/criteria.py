"""The contract of a pruning criterion, for those who write one."""

from __future__ import annotations

import torch

from tauten.make.passes.prune.criteria.criterion import Criterion

__all__ = ["check_criterion"]


def check_criterion(criterion: Criterion) -> None:
    """Raise ``AssertionError`` where ``criterion`` breaks the contract.

    It gives one finite score a channel, never negative, for any number of channels and of weights; is repeatable under
    a seed; leaves the weights as they were; and works on channels that are all zero.
    """
    generator = torch.Generator().manual_seed(0)
    for channels, numbers in ((1, 1), (7, 1), (1, 9), (16, 27)):
        weights = torch.randn(channels, numbers, generator=generator)
        weights[0] = 0
        _check(criterion, weights)
    _check(criterion, torch.zeros(4, 3))


def _check(criterion: Criterion, weights: torch.Tensor) -> None:
    before = weights.clone()
    torch.manual_seed(1)
    scores = criterion(weights, {})
    torch.manual_seed(1)
    again = criterion(weights, {})
    _require(torch.equal(weights, before), "a criterion must not change the weights")
    _require(scores.shape == (len(weights),), f"expected scores of shape ({len(weights)},), got {tuple(scores.shape)}")
    _require(scores.is_floating_point(), f"expected floating point scores, got {scores.dtype}")
    _require(bool(torch.isfinite(scores).all()), "scores must be finite")
    _require(bool((scores >= 0).all()), "scores must not be negative")
    _require(torch.equal(scores, again), "the same seed must give the same scores")


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise AssertionError(rule)
