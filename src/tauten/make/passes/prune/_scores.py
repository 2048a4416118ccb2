"""How much the units of each group matter, by a criterion, on weights and on what it asks to be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tauten.errors import PassError
from tauten.make.graph.groups import Group
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.passes.prune._gather import gather
from tauten.make.passes.prune._samples import Samples
from tauten.make.passes.prune._statistics import MINI_BATCH, activation_norms, drawn_loss, gradients, labelled_loss
from tauten.make.passes.prune.criteria.criterion import Criterion, Statistic, statistics_of

GRADIENTS: tuple[Statistic, ...] = ("gradient", "fisher_gradient")


def score(
    groups: Sequence[Group], model: Model, criterion: Criterion, samples: Samples, context: Context
) -> list[torch.Tensor]:
    """``(units,)`` a group; ``PassError`` where the criterion gives another shape or numbers that are not finite."""
    tensors = dict(model.module.named_parameters(remove_duplicate=False))
    needed = statistics_of(criterion)
    if not needed:
        return [_checked(criterion(gather(group, tensors), {}), group) for group in groups]
    wanted = [name for name in needed if name in GRADIENTS]
    if len(wanted) > 1:
        raise PassError(f"expected a criterion that asks for one gradient, this one asks for {wanted}")
    weights = [gather(group, tensors, ("consumer",)) for group in groups]
    fixed: list[dict[str, torch.Tensor]] = [{} for _ in groups]
    if "activation_norm" in needed:
        norms = _by_every_name(activation_norms(model, samples), tensors)
        fixed = [{"activation_norm": _norms(group, tensors, norms)} for group in groups]
    if not wanted:
        return [
            _checked(criterion(of_group, given), group)
            for group, of_group, given in zip(groups, weights, fixed, strict=True)
        ]
    totals = [torch.zeros(group.units, dtype=torch.float64) for group in groups]
    loss = labelled_loss(context.task) if wanted == ["gradient"] else drawn_loss
    batches = 0
    for found in gradients(model, samples, loss):
        batches += 1
        named = _by_every_name(found, tensors)
        for group, total, of_group, given in zip(groups, totals, weights, fixed, strict=True):
            gradient = _reading(group, tensors, named, 0.0)
            total += _checked(criterion(of_group, {**given, wanted[0]: gradient}), group)
        context.progress("measuring gradients", min(0.4, 0.1 + 0.3 * batches * MINI_BATCH / samples.count))
    return [(total / batches).float() for total in totals]


def _reading(
    group: Group, tensors: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], default: float
) -> torch.Tensor:
    """A statistic of the weights that read the group, as they are gathered; ``default`` where it was not measured."""
    whole = {
        name: found[name] if name in found else torch.tensor(default).expand_as(tensor)
        for name, tensor in tensors.items()
    }
    return gather(group, whole, ("consumer",))


def _norms(group: Group, tensors: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Layers whose input cannot be seen count for nothing beside those where it can; alone, by their weights."""
    seen = any(slot.parameter in found for slot in group.slots if slot.role == "consumer")
    return _reading(group, tensors, found, 0.0 if seen else 1.0)


def _by_every_name(found: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What was found of a tensor, by each of its names (tied weights have several)."""
    of_tensor = {id(tensors[name]): value for name, value in found.items()}
    return {name: of_tensor[id(tensor)] for name, tensor in tensors.items() if id(tensor) in of_tensor}


def _checked(scores: torch.Tensor, group: Group) -> torch.Tensor:
    if scores.shape != (group.units,):
        raise PassError(f"a criterion gave scores of shape {tuple(scores.shape)} for {group.units} channels")
    if not torch.isfinite(scores).all():
        raise PassError(f"a criterion gave scores that are not finite for {group.name}")
    return scores.detach().cpu()
