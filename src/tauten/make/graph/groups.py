"""Groups of channels that go together, and a choice of what goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tauten.errors import PassError
from tauten.make.graph.ids import IdArray, concatenate

Role = Literal["producer", "consumer"]


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
class Size:
    """An attribute that counts channels: ``path.attribute`` is ``value`` where the parameter has ``full`` entries.

    It goes down in proportion to what is left of dimension ``dim`` of ``parameter``. ``path`` is of a module.
    """

    path: str
    attribute: str
    value: int
    parameter: str
    dim: int
    full: int

    def left(self, gone: int) -> int:
        """Its value when so many of the parameter's entries are gone."""
        return self.value * (self.full - gone) // self.full


@dataclass(frozen=True)
class Group:
    """Units that live in the same dimensions of the same parameters, and so compete.

    A unit is one prunable channel with all that it is made of and read by; removing it never changes another.
    ``shaped_by`` are the operations that name a size of it (``view``, ``expand``), which the code may have fixed.
    ``layers`` are the norm layers that the channels pass, where a slot's ``parameter`` is the layer's path and its
    ``dim`` is of the layer's input: they keep the size as an attribute even where they have no tensor. ``sizes`` are
    the attributes of other modules that have to follow.
    """

    units: int
    slots: tuple[Slot, ...]
    shaped_by: tuple[str, ...] = ()
    layers: tuple[Slot, ...] = ()
    sizes: tuple[Size, ...] = ()

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

    def sizes(self) -> dict[str, dict[str, int]]:
        """The attributes that have to follow: what they become, by the module's path and their name."""
        entries = self.entries()
        found: dict[str, dict[str, int]] = {}
        for size in (size for place in self.units for size in self.groups[place].sizes):
            if (size.parameter, size.dim) in entries:
                left = size.left(len(entries[(size.parameter, size.dim)]))
                found.setdefault(size.path, {})[size.attribute] = left
        return found

    def only(self, places: Iterable[int]) -> Removal:
        """The same for some of the groups."""
        return Removal(self.groups, {place: self.units[place] for place in places})


def _gone(parts: Iterable[tuple[Slot, IdArray]]) -> dict[tuple[str, int], IdArray]:
    found: dict[tuple[str, int], list[IdArray]] = {}
    for slot, units in parts:
        found.setdefault((slot.parameter, slot.dim), []).append(slot.of(units))
    gone = {where: np.unique(concatenate(listed)) for where, listed in found.items()}
    return {where: indices for where, indices in gone.items() if indices.size}
