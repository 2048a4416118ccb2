"""Removes whole channels, so that the model is smaller for every engine."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, get_args

import numpy as np
import torch
from pydantic import Field
from torch import nn

from tauten.errors import PassError, PluginError, RecipeError
from tauten.make.graph.coupling import couple
from tauten.make.graph.groups import Group, Removal
from tauten.make.graph.ids import IdArray
from tauten.make.graph.prove import Prover
from tauten.make.graph.slim import slim
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.model.run import forward
from tauten.make.passes.prune._divide import Division, Scope, pools
from tauten.make.passes.prune._rank import Floors, choose
from tauten.make.passes.prune._repair import Repair, repair
from tauten.make.passes.prune._samples import Samples
from tauten.make.passes.prune._scores import score
from tauten.make.passes.prune._sensitivity import curves
from tauten.make.passes.prune.criteria import CRITERIA

__all__ = ["Structured"]


@dataclass(frozen=True)
class Structured(Pass):
    """Removes the ``ratio`` of channels that ``criterion`` scores lowest, with all that makes and reads them.

    ``scope`` says how the share is divided: each group of coupled channels loses it (``layer``), all groups together
    (``global``), those that are built alike together (``isomorphic``; Fang et al., 2024), or each as much as moves the
    outputs least, measured by cutting it alone (``sensitivity``). Where groups compete, a group's scores are divided by
    their mean (Fang et al., 2023). What a group keeps is a multiple of ``round_to`` where it has that many, and at
    least ``keep_at_least`` of it. ``ratios`` names groups that lose a share of their own, as ``(group, share)``; a
    group is named after the first parameter that makes its channels, as the notes have it.

    The smaller module is held against the original with zeros in what was removed; groups where the two differ are
    left alone and told under ``refused``. Only then is what stays tuned, by ``repair``: ``least_squares`` fits the
    layers that read what went, ``batch_norm`` takes its statistics anew. All that is measured is measured on the first
    ``samples`` of calibration data.
    """

    name: ClassVar[str] = "prune.structured"

    ratio: Annotated[float, Field(ge=0, lt=1)]
    criterion: str = "l2"
    scope: Scope = "global"
    round_to: Annotated[int, Field(ge=1)] = 1
    keep_at_least: Annotated[float, Field(gt=0, le=1)] = 0.1
    ratios: tuple[tuple[str, float], ...] = ()
    repair: Repair = "least_squares"
    samples: Annotated[int, Field(ge=1)] = 256

    def __post_init__(self) -> None:
        for name, ratio in (("ratio", self.ratio), *((f"ratios: {group}", ratio) for group, ratio in self.ratios)):
            if not 0 <= ratio < 1:
                raise RecipeError(f"{self.name}: {name}: expected 0 or more and below 1, got {ratio}")
        given = [group for group, _ in self.ratios]
        if len(set(given)) < len(given):
            raise RecipeError(f"{self.name}: ratios: expected each group once, got {given}")
        for name, value, known in (("scope", self.scope, Scope), ("repair", self.repair, Repair)):
            if value not in get_args(known):
                raise RecipeError(f"{self.name}: {name}: expected one of {', '.join(get_args(known))}, got {value!r}")
        for name, number in (("round_to", self.round_to), ("samples", self.samples)):
            if number < 1:
                raise RecipeError(f"{self.name}: {name}: expected 1 or more, got {number}")
        if not 0 < self.keep_at_least <= 1:
            raise RecipeError(f"{self.name}: keep_at_least: expected above 0 and at most 1, got {self.keep_at_least}")
        try:
            CRITERIA.get(self.criterion)
        except PluginError as fault:
            raise RecipeError(f"{self.name}: criterion: {fault}") from fault

    def __call__(self, model: Model, context: Context) -> Change:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(context.seed)
            return self._cut(model, context)

    def _cut(self, model: Model, context: Context) -> Change:
        example = next(iter(context.task.data("calibrate")))[0]
        samples = Samples(context.task.data("calibrate"), model.inputs, self.samples)
        context.progress("finding coupled channels", 0.0)
        coupling = couple(model.module, model.inputs, example)
        prover = Prover(
            model.module, model.inputs, example, lambda module, arrays: forward(module, model.inputs, (), arrays)
        )
        names = names_of(coupling.groups)
        scores = dict(enumerate(score(coupling.groups, model, CRITERIA.get(self.criterion), samples, context)))
        division = Division(
            self.ratio,
            Floors(self.keep_at_least, self.round_to),
            pools=pools(self.scope, coupling.groups, model.module),
            own=self._own_ratios(names),
        )
        broken: dict[int, str] = {}
        if self.scope == "sensitivity":
            free = {place: of_group for place, of_group in scores.items() if place not in division.own}
            # What cannot go is not measured: half of every other group shows whether it can.
            broken = prover.broken(Removal(coupling.groups, choose(free, 0.5, division.floors)))
            free = {place: of_group for place, of_group in free.items() if place not in broken}
            measured, failed = curves(model, coupling.groups, free, division.floors, samples, context)
            division, broken = replace(division, curves=measured), {**broken, **failed}
        removal, broken = _proven(coupling.groups, scores, division, broken, prover, context)
        refused = coupling.refused_layers()
        for place, why in broken.items():
            name = coupling.groups[place].name
            refused[name.rpartition(".")[0] or name] = why
        if (self.ratio or any(division.own.values())) and all(
            of_group.units == 1 or place in broken for place, of_group in enumerate(coupling.groups)
        ):
            told = "; ".join(f"{layer}: {why}" for layer, why in list(refused.items())[:5])
            raise PassError(f"no channel of the model can be removed safely: {told or 'it has no coupled channels'}")
        notes: dict[str, Any] = {
            "groups": [_note(names[place], coupling.groups[place], units) for place, units in removal.units.items()],
            "refused": refused,
            "parameters_before": _count(model.module),
        }
        original = copy.deepcopy(model.module) if self.repair == "least_squares" else None
        module = slim(model.module, removal)
        context.progress("repairing the smaller model", 0.8)
        repaired = repair(model, original, removal, samples, self.repair)
        notes["parameters_after"] = _count(module)
        if self.scope == "sensitivity":
            notes["sensitivity"] = {
                names[place]: [[count / coupling.groups[place].units, loss] for count, loss in curve]
                for place, curve in division.curves.items()
            }
        if repaired:
            notes["repair"] = repaired
        return Change(module, notes)

    def _own_ratios(self, names: Sequence[str]) -> dict[int, float]:
        """``ratios`` by the group's place."""
        unknown = [name for name, _ in self.ratios if name not in names]
        if unknown:
            raise PassError(f"ratios: no group {unknown}; there are {', '.join(names) or 'none'}")
        return {names.index(name): ratio for name, ratio in self.ratios}


def _proven(
    groups: tuple[Group, ...],
    scores: Mapping[int, torch.Tensor],
    division: Division,
    broken: Mapping[int, str],
    prover: Prover,
    context: Context,
) -> tuple[Removal, dict[int, str]]:
    """A removal that holds, and the groups that had to be left out for it, ``broken`` ones among them."""
    left_out = dict(broken)
    while True:
        free = {place: of_group for place, of_group in scores.items() if place not in left_out}
        removal = Removal(groups, division.choose(free))
        context.progress("holding the smaller model against the original", 0.7)
        found = prover.broken(removal)
        if not found:
            return removal, left_out
        left_out |= found


def names_of(groups: Sequence[Group]) -> list[str]:
    """A name of its own for each group: that of a second one in the same parameter ends in ``#2``."""
    seen: Counter[str] = Counter()
    names = []
    for group in groups:
        seen[group.name] += 1
        names.append(group.name if seen[group.name] == 1 else f"{group.name}#{seen[group.name]}")
    return names


def _note(name: str, group: Group, removed: IdArray) -> dict[str, Any]:
    kept = np.setdiff1d(np.arange(group.units), removed)
    return {
        "name": name,
        "parameters": group.parameters,
        "before": group.units,
        "after": len(kept),
        "kept": kept.tolist(),
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
