"""The channels of a module that must go together, as index maps into its parameters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import nn

from tauten.core.tensor import Array, TensorSpec
from tauten.make.graph.export import export
from tauten.make.graph.groups import Group, Role, Slot
from tauten.make.graph.ids import IdArray, concatenate
from tauten.make.graph.sizes import with_sizes
from tauten.make.graph.trace import Traced, trace


class Place(NamedTuple):
    """One dimension of a parameter or buffer of ``rank`` dimensions; of rank 0, a layer's size by itself."""

    name: str
    dim: int
    role: Role
    rank: int


@dataclass(frozen=True)
class Coupling:
    """The groups of a module, and for each parameter's dimension that has none, why.

    ``refused`` maps a parameter and dimension to the reason. Only dimensions along which a layer makes channels are
    told (what reads a frozen channel has nothing to say of its own), and only those of which no element can go.
    """

    groups: tuple[Group, ...]
    refused: Mapping[tuple[str, int], str]

    def refused_layers(self) -> dict[str, str]:
        """Reasons by the module that owns the parameter."""
        return {name.rpartition(".")[0] or name: reason for (name, _), reason in self.refused.items()}


def couple(module: nn.Module, inputs: Sequence[TensorSpec], example: Mapping[str, Array]) -> Coupling:
    """The coupled channels of ``module``, found from its exported program.

    Raises ``PassError`` where ``torch.export`` cannot follow the module. The time is about linear in the number of
    operations and of channels.
    """
    coupling = group(trace(export(module, inputs, example), module))
    return replace(coupling, groups=with_sizes(coupling.groups, module, inputs, example))


def group(traced: Traced) -> Coupling:
    """Gather ids into units, and units into groups."""
    ids = traced.ids
    why, reasons = ids.frozen()
    consumed = np.zeros(len(ids), dtype=bool)
    consumed[concatenate(traced.consumed)] = True
    produced = np.zeros(len(ids), dtype=bool)
    produced[concatenate(traced.produced)] = True
    places: list[Place] = []
    roots: list[IdArray] = []
    refused: dict[tuple[str, int], str] = {}
    for name, dims in traced.holders.items():
        for dim, own in enumerate(dims):
            if not own.size:
                continue
            role: Role = "consumer" if consumed[own].all() else "producer"
            frozen = why[own] >= 0
            if frozen.all() and produced[own].all():
                refused[(name, dim)] = reasons[int(why[own[0]])]
            places.append(Place(name, dim, role, len(dims)))
            roots.append(np.where(frozen, -1, ids.find(own)))
    for path, own in traced.layers.items():
        places.append(Place(path, traced.norms.get(path, 1), "consumer", 0))
        roots.append(np.where(why[own] >= 0, -1, ids.find(own)))
    shaped = [(ids.find(own), where) for own, where in traced.shaped]
    return Coupling(tuple(_groups(places, roots, shaped)), refused)


def _groups(places: Sequence[Place], roots: Sequence[IdArray], shaped: Sequence[tuple[IdArray, str]]) -> list[Group]:
    slot = np.repeat(np.arange(len(places)), [len(of_place) for of_place in roots])
    index = concatenate(np.arange(len(of_place)) for of_place in roots)
    root = concatenate(roots)
    free = root >= 0
    slot, index, root = slot[free], index[free], root[free]
    if not root.size:
        return []
    pairs = np.unique(np.stack([root, slot], axis=1), axis=0)
    _, starts = np.unique(pairs[:, 0], return_index=True)
    members: dict[bytes, list[int]] = {}
    bounds = [*starts.tolist(), len(pairs)]
    for start, end in itertools.pairwise(bounds):
        members.setdefault(pairs[start:end, 1].tobytes(), []).append(int(pairs[start, 0]))
    order = np.lexsort((index, root))
    slot, index, root = slot[order], index[order], root[order]
    by_slot = np.argsort(slot, kind="stable")
    cuts = np.searchsorted(slot[by_slot], np.arange(len(places) + 1))
    found: list[Group] = []
    group_of = np.full(int(root.max()) + 1, -1)
    for key, listed in members.items():
        own = np.array(listed, dtype=np.int64)
        group_of[own] = len(found)
        slots = []
        for number in np.frombuffer(key, dtype=np.int64).tolist():
            rows = by_slot[cuts[number] : cuts[number + 1]]
            rows = rows[np.isin(root[rows], own)]
            place = places[number]
            slots.append(
                (place, Slot(place.name, place.dim, place.role, index[rows], np.searchsorted(own, root[rows])))
            )
        # What makes the channels first, and of that the layers before their shifts and scales.
        slots.sort(key=lambda pair: (pair[0].role == "consumer", pair[0].rank == 1))
        held = tuple(slot for place, slot in slots if place.rank)
        found.append(Group(len(own), held, layers=tuple(slot for place, slot in slots if not place.rank)))
    by_group: dict[int, dict[str, None]] = {}
    for own, where in shaped:
        for number in np.unique(group_of[own[own < len(group_of)]]).tolist():
            by_group.setdefault(number, {})[where] = None
    return [replace(made, shaped_by=tuple(by_group.get(number, ()))) for number, made in enumerate(found)]
