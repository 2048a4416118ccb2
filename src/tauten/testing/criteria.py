"""The contract of a pruning criterion, for those who write one."""

from __future__ import annotations

import torch

from tauten.make.passes.prune.criteria.criterion import Criterion, statistics_of

__all__ = ["check_criterion"]


def check_criterion(criterion: Criterion) -> None:
    """Raise ``AssertionError`` where ``criterion`` breaks the contract.

    It gives one finite score a channel, never negative, for any number of channels and of weights; is repeatable under
    a seed; leaves the weights and statistics as they were; and works on channels that are all zero. It is given the
    statistics that it was marked to ask for, and no others.
    """
    generator = torch.Generator().manual_seed(0)
    for channels, numbers in ((1, 1), (7, 1), (1, 9), (16, 27)):
        weights = torch.randn(channels, numbers, generator=generator)
        weights[0] = 0
        _check(criterion, weights)
    _check(criterion, torch.zeros(4, 3))


def _check(criterion: Criterion, weights: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(2)
    drawn: dict[str, torch.Tensor] = {
        name: torch.randn(weights.shape, generator=generator) for name in statistics_of(criterion)
    }
    # Norms are never negative; gradients have either sign, and vanish where a channel is cut off already.
    statistics: dict[str, torch.Tensor] = {
        name: value.abs() if name == "activation_norm" else value for name, value in drawn.items()
    }
    _try(criterion, weights, statistics)
    _try(criterion, weights, {name: torch.zeros_like(weights) for name in statistics})


def _try(criterion: Criterion, weights: torch.Tensor, statistics: dict[str, torch.Tensor]) -> None:
    before, known = weights.clone(), {name: value.clone() for name, value in statistics.items()}
    torch.manual_seed(1)
    scores = criterion(weights, statistics)
    torch.manual_seed(1)
    again = criterion(weights, statistics)
    _require(torch.equal(weights, before), "a criterion must not change the weights")
    unchanged = statistics.keys() == known.keys() and all(torch.equal(statistics[name], known[name]) for name in known)
    _require(unchanged, "a criterion must not change the statistics")
    _require(scores.shape == (len(weights),), f"expected scores of shape ({len(weights)},), got {tuple(scores.shape)}")
    _require(scores.is_floating_point(), f"expected floating point scores, got {scores.dtype}")
    _require(bool(torch.isfinite(scores).all()), "scores must be finite")
    _require(bool((scores >= 0).all()), "scores must not be negative")
    _require(torch.equal(scores, again), "the same seed must give the same scores")


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise AssertionError(rule)
