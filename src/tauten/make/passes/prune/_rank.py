"""Which units of each group go, from their scores."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from tauten.make.graph.ids import IdArray


@dataclass(frozen=True)
class Floors:
    """What a group keeps: at least a share of it, in multiples of ``round_to`` where it has that many."""

    keep_at_least: float
    round_to: int

    def least(self, units: int) -> int:
        """The fewest units that stay of so many."""
        least = max(1, math.ceil(self.keep_at_least * units - 1e-9))
        return min(units, self.round_to * math.ceil(least / self.round_to))

    def rounded(self, kept: int, units: int) -> int:
        """The nearest number of units that may stay."""
        nearest = self.round_to * math.floor(kept / self.round_to + 0.5)
        return min(units, max(self.least(units), nearest))


def choose(
    scores: Mapping[int, torch.Tensor],
    ratio: float,
    floors: Floors,
    *,
    pools: Mapping[int, Hashable] = MappingProxyType({}),
    own: Mapping[int, float] = MappingProxyType({}),
) -> dict[int, IdArray]:
    """The lowest ``ratio`` of units, of each group or of all those in its pool; groups that lose none are left out.

    ``scores`` are ``(units,)`` a group. Groups of one pool compete: each group's scores are divided by their mean, so
    that a layer of small weights does not vanish (Fang et al., 2023). A group in no pool stands for itself, and so does
    one that has a ratio of its ``own``.
    """
    order = {place: torch.argsort(of_group, stable=True).numpy() for place, of_group in scores.items()}
    units = {place: len(of_order) for place, of_order in order.items()}
    losses = {place: round(own.get(place, ratio) * count) for place, count in units.items()}
    members: dict[Hashable, list[int]] = {}
    for place in scores:
        if place in pools and place not in own:
            members.setdefault(pools[place], []).append(place)
    for places in members.values():
        shared = {place: scores[place] for place in places}
        losses |= _lowest(shared, order, round(ratio * sum(units[place] for place in places)), floors)
    kept = {place: floors.rounded(units[place] - losses[place], units[place]) for place in units if losses[place]}
    chosen = {place: np.sort(order[place][: units[place] - kept[place]]).astype(np.int64) for place in kept}
    return {place: gone for place, gone in chosen.items() if gone.size}


def _lowest(
    scores: Mapping[int, torch.Tensor], order: Mapping[int, IdArray], count: int, floors: Floors
) -> dict[int, int]:
    """How many units each group loses when the ``count`` lowest of all go, floors kept."""
    places, values = [], []
    for place, of_group in scores.items():
        score = of_group.double().numpy()
        open_ = order[place][: len(score) - floors.least(len(score))]
        places.append(np.full(len(open_), place))
        values.append(score[open_] / max(float(score.mean()), np.finfo(np.float64).tiny))
    lowest = np.concatenate(places)[np.argsort(np.concatenate(values), kind="stable")[:count]]
    return {place: int((lowest == place).sum()) for place in scores}
