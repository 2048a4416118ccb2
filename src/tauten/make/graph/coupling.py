"""The channels of a module that must go together, as index maps into its parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from torch import nn

from tauten.core.tensor import Array, TensorSpec
from tauten.errors import PassError
from tauten.make.graph.export import export
from tauten.make.graph.ids import IdArray, concatenate
from tauten.make.graph.trace import Traced, trace

Role = Literal["producer", "consumer"]


class Place(NamedTuple):
    """One dimension of a parameter or buffer of ``rank`` dimensions; of rank 0, a layer's size by itself."""

    name: str
    dim: int
    role: Role
    rank: int


@dataclass(frozen=True)
class Slot:
    """Where a group's channels lie in one dimension of one parameter or buffer.

    ``index[k]`` along dimension ``dim`` belongs to the group's unit ``unit[k]``; both have shape ``(entries,)``, sorted
    by unit, then index. A unit may have several entries (a channel that was flattened over space).
    A ``producer`` makes the channel, a ``consumer`` sums over it.
    """

    parameter: str
    dim: int
    role: Role
    index: IdArray = field(repr=False)
    unit: IdArray = field(repr=False)

    def of(self, units: Iterable[int] | IdArray) -> IdArray:
        """The indices that these units hold."""
        return self.index[np.isin(self.unit, np.fromiter(units, dtype=np.int64))]


@dataclass(frozen=True)
class Group:
    """Units that live in the same dimensions of the same parameters, and so compete.

    A unit is one prunable channel with all that it is made of and read by; removing it never changes another.
    ``shaped_by`` are the operations that name a size of it (``view``, ``expand``), which the code may have fixed.
    ``layers`` are the norm layers that the channels pass, where a slot's ``parameter`` is the layer's path and its
    ``dim`` is of the layer's input: they keep the size as an attribute even where they have no tensor.
    """

    units: int
    slots: tuple[Slot, ...]
    shaped_by: tuple[str, ...] = ()
    layers: tuple[Slot, ...] = ()

    @property
    def name(self) -> str:
        """The first parameter that makes the channels, and the dimension where it is not the first."""
        slot = next((slot for slot in self.slots if slot.role == "producer"), self.slots[0])
        return slot.parameter if slot.dim == 0 else f"{slot.parameter}:{slot.dim}"

    @property
    def parameters(self) -> list[str]:
        """Names of all that holds a part of it, each once."""
        return list(dict.fromkeys(slot.parameter for slot in self.slots))


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
    return group(trace(export(module, inputs, example), module))


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


@dataclass(frozen=True)
class Removal:
    """Which units of which groups go.

    ``units`` maps a group's place in ``groups`` to the numbers of the units that go. Raises ``PassError`` where a
    number is unknown or a group would lose all of its units.
    """

    groups: tuple[Group, ...]
    units: Mapping[int, IdArray]

    def __post_init__(self) -> None:
        for place, units in self.units.items():
            if not 0 <= place < len(self.groups):
                raise PassError(f"there is no group {place}: there are {len(self.groups)}")
            of_group = self.groups[place]
            if units.size and (units.min() < 0 or units.max() >= of_group.units):
                raise PassError(f"{of_group.name} has units 0 to {of_group.units - 1}, got {units.tolist()}")
            if len(np.unique(units)) >= of_group.units:
                raise PassError(f"{of_group.name}: at least one of its {of_group.units} channels must stay")

    def entries(self) -> dict[tuple[str, int], IdArray]:
        """For each parameter and dimension the indices that go, sorted."""
        return _gone((slot, units) for place, units in self.units.items() for slot in self.groups[place].slots)

    def layers(self) -> dict[tuple[str, int], IdArray]:
        """For each norm layer, by its path and the dimension of its input, the channels that go, sorted."""
        return _gone((slot, units) for place, units in self.units.items() for slot in self.groups[place].layers)

    def only(self, places: Iterable[int]) -> Removal:
        """The same for some of the groups."""
        return Removal(self.groups, {place: self.units[place] for place in places})


def _gone(parts: Iterable[tuple[Slot, IdArray]]) -> dict[tuple[str, int], IdArray]:
    found: dict[tuple[str, int], list[IdArray]] = {}
    for slot, units in parts:
        found.setdefault((slot.parameter, slot.dim), []).append(slot.of(units))
    gone = {where: np.unique(concatenate(listed)) for where, listed in found.items()}
    return {where: indices for where, indices in gone.items() if indices.size}
