"""How a cut is divided over the groups."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from tauten.make.graph.groups import Group
from tauten.make.graph.ids import IdArray
from tauten.make.passes.prune._alike import structure
from tauten.make.passes.prune._rank import Floors, choose
from tauten.make.passes.prune._sensitivity import Curve, allocate

Scope = Literal["layer", "global", "isomorphic", "sensitivity"]


def pools(scope: Scope, groups: Sequence[Group], module: nn.Module) -> dict[int, Hashable]:
    """For each group, by its place, the pool in which it competes; empty where each stands for itself."""
    if scope == "global":
        return dict.fromkeys(range(len(groups)), scope)
    if scope == "isomorphic":
        return {place: structure(group, module) for place, group in enumerate(groups)}
    return {}


@dataclass(frozen=True)
class Division:
    """The share of all units that goes, and how much of it each group bears.

    ``own`` are ratios that were asked for a group, ``pools`` those that compete. Groups that have ``curves`` bear what
    moves the outputs least.
    """

    ratio: float
    floors: Floors
    pools: Mapping[int, Hashable] = field(default_factory=dict)
    own: Mapping[int, float] = field(default_factory=dict)
    curves: Mapping[int, Curve] = field(default_factory=dict)

    def choose(self, scores: Mapping[int, torch.Tensor]) -> dict[int, IdArray]:
        """The units that go, of the groups in ``scores``."""
        units = {place: len(of_group) for place, of_group in scores.items()}
        measured = {place: curve for place, curve in self.curves.items() if place in units}
        losses = allocate(measured, round(self.ratio * sum(units[place] for place in measured)))
        shares = {place: count / units[place] for place, count in losses.items()}
        return choose(scores, self.ratio, self.floors, pools=self.pools, own={**shares, **self.own})
