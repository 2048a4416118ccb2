"""From what exits answer on held-out data to the confidence that they are believed at. Arithmetic on arrays alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tauten.make.layers.early_exit import NEVER
from tauten.run.measure._statistics import Interval, paired_shares

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]

_CANDIDATES: Final = 64
_STARTS: Final = 16
_HOTTEST: Final = 20.0


@dataclass(frozen=True)
class Held:
    """What was found on held-out samples.

    ``sure`` ``(exits, samples)`` is how confident each exit is, ``right`` ``(exits, samples)`` whether its answer is
    right, and ``whole`` ``(samples,)`` whether the whole model's is. ``costs`` ``(exits + 1,)`` is what a sample costs
    that leaves at each exit, or at none, without any heads; ``heads`` ``(exits,)`` what asking each exit costs.
    """

    sure: Floats
    right: Bools
    whole: Bools
    costs: Floats
    heads: Floats


@dataclass(frozen=True)
class Outcome:
    """What thresholds lead to: shares that leave at each exit, points lost with their interval, mean cost."""

    shares: tuple[float, ...]
    drop: Interval
    cost: float


def outcome(held: Held, thresholds: Sequence[float]) -> Outcome:
    """What happens to the held-out samples; exits at ``NEVER`` are not asked."""
    left = np.zeros(len(held.whole), bool)
    shares, lost, won, cost, heads = [], 0, 0, 0.0, 0.0
    for index, threshold in enumerate(thresholds):
        leaves = ~left & (held.sure[index] >= threshold)
        if threshold < NEVER:
            heads += float(held.heads[index])
        count = int(leaves.sum())
        cost += count * (float(held.costs[index]) + heads)
        lost += int((leaves & held.whole & ~held.right[index]).sum())
        won += int((leaves & ~held.whole & held.right[index]).sum())
        shares.append(count / len(left))
        left |= leaves
    cost += int((~left).sum()) * (float(held.costs[-1]) + heads)
    value, low, high = paired_shares(lost, won, len(left))
    return Outcome(tuple(shares), (100 * value, 100 * low, 100 * high), cost / len(left))


def for_drop(held: Held, most: float) -> tuple[float, ...]:
    """The thresholds of least mean cost at which at most ``most`` points are lost, beyond doubt.

    What has to hold is the upper end of the paired 95 % interval, so few samples allow little. Thresholds are improved
    one at a time from several starts, as long as the cost falls; all ``NEVER`` where nothing is gained.
    """
    grids = [list(_between(values, _CANDIDATES)) for values in held.sure]
    best = (NEVER,) * len(grids)
    places = (place / _STARTS for place in range(_STARTS))
    ranks = [tuple(grid[int(place * len(grid))] if grid else NEVER for grid in grids) for place in places]
    least = outcome(held, best).cost
    for start in (best, *ranks):
        thresholds, cost = _improved(held, start, grids, most)
        if cost < least:
            best, least = thresholds, cost
    return best


def for_share(held: Held, share: float) -> tuple[float, ...]:
    """One threshold for all exits, at which ``share`` of the samples leave at one or another.

    Confidences are comparable between exits, for the temperatures made them so.
    """
    surest = np.sort(held.sure.max(axis=0))[::-1]
    count = round(share * len(surest))
    if count == 0:
        threshold = NEVER
    elif count == len(surest):
        threshold = 0.0
    else:
        threshold = float(surest[count - 1] / 2 + surest[count] / 2)
    asked = outcome(held, (threshold,) * len(held.sure)).shares
    return tuple(threshold if left else NEVER for left in asked)


def temperature(scores: Floats, targets: Floats) -> float:
    """What to divide scores ``(samples, classes)`` by, so that their softmax is as sure as it is right.

    Least cross entropy against ``targets``, probabilities of the same shape (Guo et al., 2017); by golden section on
    the logarithm, where the loss has one valley.
    """
    low, high = -np.log(_HOTTEST), np.log(_HOTTEST)
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(30):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _entropy(scores, targets, left) <= _entropy(scores, targets, right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def _improved(
    held: Held, start: tuple[float, ...], grids: Sequence[Sequence[float]], most: float
) -> tuple[tuple[float, ...], float]:
    """The start, one threshold after the other set to what costs least within the limit; its cost, or infinity."""
    thresholds, least = start, float("inf")
    while True:
        before = least
        for index, grid in enumerate(grids):
            for candidate in (*grid, NEVER):
                tried = (*thresholds[:index], candidate, *thresholds[index + 1 :])
                found = outcome(held, tried)
                if found.drop[2] <= most and found.cost < least:
                    thresholds, least = tried, found.cost
        if not least < before:
            return thresholds, least


def _between(values: Floats, count: int) -> Iterator[float]:
    """Up to ``count`` numbers halfway between neighbours among ``values``, evenly by rank, from high to low."""
    ordered = np.unique(values)
    if len(ordered) < 2:
        return
    middles = (ordered[1:].astype(np.float64) + ordered[:-1]) / 2
    picked = np.unique(np.linspace(0, len(middles) - 1, min(count, len(middles))).round().astype(int))
    yield from middles[picked[::-1]].tolist()


def _entropy(scores: Floats, targets: Floats, log_temperature: float) -> float:
    scaled = scores.astype(np.float64) / np.exp(log_temperature)
    scaled -= scaled.max(axis=1, keepdims=True)
    logs = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return float(-(targets * logs).sum(axis=1).mean())
