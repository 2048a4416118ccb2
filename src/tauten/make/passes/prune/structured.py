"""Removes whole channels, so that the model is smaller for every engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from tauten.errors import PassError, PluginError, RecipeError
from tauten.make.graph.coupling import Coupling, Group, Removal, couple
from tauten.make.graph.ids import IdArray
from tauten.make.graph.prove import Prover
from tauten.make.graph.slim import slim
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.model.run import forward
from tauten.make.passes.prune._rank import Floors, choose
from tauten.make.passes.prune._samples import Samples
from tauten.make.passes.prune._scores import score
from tauten.make.passes.prune.criteria import CRITERIA

__all__ = ["Structured"]


@dataclass(frozen=True)
class Structured(Pass):
    """Removes the ``ratio`` of channels that ``criterion`` scores lowest, with all that makes and reads them.

    ``scope`` says whether each group of coupled channels loses that share, or all groups together (a group's scores
    are then divided by their mean: Fang et al., 2023). What a group keeps is a multiple of ``round_to`` where it has
    that many, and at least ``keep_at_least`` of it.

    The smaller module is held against the original with zeros in what was removed; groups where the two differ are
    left alone and told under ``refused``.

    ``ratios`` names groups that lose a share of their own instead, as ``(group, share)``; a group is named after the
    first parameter that makes its channels, as the notes have it. They take no part in ``scope="global"``.
    """

    name: ClassVar[str] = "prune.structured"

    ratio: Annotated[float, Field(ge=0, lt=1)]
    criterion: str = "l2"
    scope: Literal["layer", "global"] = "global"
    round_to: Annotated[int, Field(ge=1)] = 1
    keep_at_least: Annotated[float, Field(gt=0, le=1)] = 0.1
    ratios: tuple[tuple[str, float], ...] = ()
    samples: Annotated[int, Field(ge=1)] = 256

    def __post_init__(self) -> None:
        for name, ratio in (("ratio", self.ratio), *((f"ratios: {group}", ratio) for group, ratio in self.ratios)):
            if not 0 <= ratio < 1:
                raise RecipeError(f"{self.name}: {name}: expected 0 or more and below 1, got {ratio}")
        given = [group for group, _ in self.ratios]
        if len(set(given)) < len(given):
            raise RecipeError(f"{self.name}: ratios: expected each group once, got {given}")
        if self.scope not in ("layer", "global"):
            raise RecipeError(f"{self.name}: scope: expected layer or global, got {self.scope!r}")
        if self.round_to < 1:
            raise RecipeError(f"{self.name}: round_to: expected 1 or more, got {self.round_to}")
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples: expected 1 or more, got {self.samples}")
        if not 0 < self.keep_at_least <= 1:
            raise RecipeError(f"{self.name}: keep_at_least: expected above 0 and at most 1, got {self.keep_at_least}")
        try:
            CRITERIA.get(self.criterion)
        except PluginError as fault:
            raise RecipeError(f"{self.name}: criterion: {fault}") from fault

    def __call__(self, model: Model, context: Context) -> Change:
        example = next(iter(context.task.data("calibrate")))[0]
        context.progress("finding coupled channels", 0.0)
        coupling = couple(model.module, model.inputs, example)
        prover = Prover(
            model.module, model.inputs, example, lambda module, arrays: forward(module, model.inputs, (), arrays)
        )
        before = _count(model.module)
        refused = coupling.refused_layers()
        samples = Samples(context.task.data("calibrate"), model.inputs, self.samples)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(context.seed)
            scores = score(coupling.groups, model, CRITERIA.get(self.criterion), samples, context)
        names = names_of(coupling.groups)
        own = self._own_ratios(names)
        removal, broken = self._proven(coupling, scores, own, prover, context)
        for place, why in broken.items():
            name = coupling.groups[place].name
            refused[name.rpartition(".")[0] or name] = why
        if (self.ratio or any(own.values())) and all(
            of_group.units == 1 or place in broken for place, of_group in enumerate(coupling.groups)
        ):
            told = "; ".join(f"{layer}: {why}" for layer, why in list(refused.items())[:5])
            raise PassError(f"no channel of the model can be removed safely: {told or 'it has no coupled channels'}")
        module = slim(model.module, removal)
        return Change(
            module,
            {
                "groups": [
                    _note(names[place], coupling.groups[place], units) for place, units in removal.units.items()
                ],
                "refused": refused,
                "parameters_before": before,
                "parameters_after": _count(module),
            },
        )

    def _own_ratios(self, names: Sequence[str]) -> dict[int, float]:
        """``ratios`` by the group's place."""
        unknown = [name for name, _ in self.ratios if name not in names]
        if unknown:
            raise PassError(f"ratios: no group {unknown}; there are {', '.join(names) or 'none'}")
        return {names.index(name): ratio for name, ratio in self.ratios}

    def _proven(
        self,
        coupling: Coupling,
        scores: list[torch.Tensor],
        own: Mapping[int, float],
        prover: Prover,
        context: Context,
    ) -> tuple[Removal, dict[int, str]]:
        """A removal that holds, and the groups that had to be left out for it."""
        broken: dict[int, str] = {}
        floors = Floors(self.keep_at_least, self.round_to)
        while True:
            free = {place: of_group for place, of_group in enumerate(scores) if place not in broken}
            chosen = choose(free, self.ratio, floors, together=self.scope == "global", own=own)
            removal = Removal(coupling.groups, chosen)
            context.progress("holding the smaller model against the original", 0.5)
            found = prover.broken(removal)
            if not found:
                return removal, broken
            broken |= found


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
