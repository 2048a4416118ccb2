"""Removes whole channels, so that the model is smaller for every engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tauten.errors import PassError, PluginError, RecipeError
from tauten.make.graph.coupling import Coupling, Group, Removal, couple
from tauten.make.graph.prove import Prover
from tauten.make.graph.slim import slim
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.model.run import forward
from tauten.make.passes.prune._rank import Floors, choose
from tauten.make.passes.prune.criteria import CRITERIA
from tauten.make.passes.prune.criteria.criterion import Criterion

__all__ = ["Structured"]


@dataclass(frozen=True)
class Structured(Pass):
    """Removes the ``ratio`` of channels that ``criterion`` scores lowest, with all that makes and reads them.

    ``scope`` says whether each group of coupled channels loses that share, or all groups together (a group's scores
    are then divided by their mean: Fang et al., 2023). What a group keeps is a multiple of ``round_to`` where it has
    that many, and at least ``keep_at_least`` of it.

    The smaller module is held against the original with zeros in what was removed; groups where the two differ are
    left alone and told under ``refused``.
    """

    name: ClassVar[str] = "prune.structured"

    ratio: Annotated[float, Field(ge=0, lt=1)]
    criterion: str = "l2"
    scope: Literal["layer", "global"] = "global"
    round_to: Annotated[int, Field(ge=1)] = 1
    keep_at_least: Annotated[float, Field(gt=0, le=1)] = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise RecipeError(f"{self.name}: ratio: expected 0 or more and below 1, got {self.ratio}")
        if self.scope not in ("layer", "global"):
            raise RecipeError(f"{self.name}: scope: expected layer or global, got {self.scope!r}")
        if self.round_to < 1:
            raise RecipeError(f"{self.name}: round_to: expected 1 or more, got {self.round_to}")
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
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(context.seed)
            scores = [_score(group, model.module, CRITERIA.get(self.criterion)) for group in coupling.groups]
        removal, broken = self._proven(coupling, scores, prover, context)
        for place, why in broken.items():
            name = coupling.groups[place].name
            refused[name.rpartition(".")[0] or name] = why
        if self.ratio and all(of_group.units == 1 or place in broken for place, of_group in enumerate(coupling.groups)):
            told = "; ".join(f"{layer}: {why}" for layer, why in list(refused.items())[:5])
            raise PassError(f"no channel of the model can be removed safely: {told or 'it has no coupled channels'}")
        module = slim(model.module, removal)
        return Change(
            module,
            {
                "groups": [_note(coupling.groups[place], len(units)) for place, units in removal.units.items()],
                "refused": refused,
                "parameters_before": before,
                "parameters_after": _count(module),
            },
        )

    def _proven(
        self, coupling: Coupling, scores: list[torch.Tensor], prover: Prover, context: Context
    ) -> tuple[Removal, dict[int, str]]:
        """A removal that holds, and the groups that had to be left out for it."""
        broken: dict[int, str] = {}
        floors = Floors(self.keep_at_least, self.round_to)
        while True:
            free = {place: of_group for place, of_group in enumerate(scores) if place not in broken}
            removal = Removal(coupling.groups, choose(free, self.ratio, floors, together=self.scope == "global"))
            context.progress("holding the smaller model against the original", 0.5)
            found = prover.broken(removal)
            if not found:
                return removal, broken
            broken |= found


def _score(group: Group, module: nn.Module, criterion: Criterion) -> torch.Tensor:
    weights = gather(group, module)
    scores = criterion(weights, {})
    if scores.shape != (group.units,):
        raise PassError(f"a criterion gave scores of shape {tuple(scores.shape)} for {group.units} channels")
    return scores.detach().cpu()


def gather(group: Group, module: nn.Module) -> torch.Tensor:
    """All that the group's parameters hold of each unit, as ``(units, numbers)``, padded with zeros."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    parts = []
    for slot in group.slots:
        if slot.parameter not in parameters:
            continue  # a buffer: statistics of data, not weights
        rows = parameters[slot.parameter].detach().movedim(slot.dim, 0).float().cpu()
        rows = rows.reshape(rows.shape[0], -1)[torch.from_numpy(slot.index)]
        unit = torch.from_numpy(slot.unit)
        counts = torch.bincount(unit, minlength=group.units)
        place = torch.arange(len(unit)) - (counts.cumsum(0) - counts)[unit]
        block = torch.zeros(group.units, int(counts.max()), rows.shape[1])
        block[unit, place] = rows
        parts.append(block.reshape(group.units, -1))
    return torch.cat(parts, dim=1)


def _note(group: Group, removed: int) -> dict[str, Any]:
    return {"parameters": group.parameters, "before": group.units, "after": group.units - removed}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
