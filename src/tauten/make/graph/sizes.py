"""Sizes that modules keep as plain attributes: ``self.num_heads``, ``self.split_size``.

A module whose code asks such an attribute for a size does not run once the channels are fewer. So groups whose removal
does not run are tried again with attributes changed that now hold the group's size; whatever is not needed for it to
run, in shape, is left alone. No name is known here: an attribute is a candidate by its number alone. That the answers
are right too is for the prover to show, as for every removal.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tauten.core.rows import resize_rows
from tauten.core.tensor import Array, TensorSpec
from tauten.make.graph.groups import Group, Removal, Size
from tauten.make.graph.slim import slim

_MOST_RUNS = 200
"""Runs of the module in all, so that time is bounded; what is not found by then, the prover refuses."""
_MOST_OPERATIONS = 20_000
"""As many operations in all those runs: some ten seconds, where a module has so many that each run is long."""
_LEVELS = (0, 1, 2)
"""How far above a parameter's own module an attribute may be."""
_OWN = "torch.nn."
"""Where the layers come from whose attributes follow anyway (see ``fit``)."""

Link = tuple[int, int, str]
"""A slot of a group, how many levels above its module an attribute is, and the attribute's name."""


def with_sizes(
    groups: Sequence[Group], module: nn.Module, inputs: Sequence[TensorSpec], example: Mapping[str, Array]
) -> tuple[Group, ...]:
    """The same groups, which now name the attributes that have to follow (``Group.sizes``)."""
    search = _Search(groups, module, inputs, example)
    with contextlib.suppress(_Spent):
        search.run()
    return tuple(search.groups)


class _Spent(Exception):
    """No runs are left."""


class _Search:
    def __init__(
        self, groups: Sequence[Group], module: nn.Module, inputs: Sequence[TensorSpec], example: Mapping[str, Array]
    ) -> None:
        self.groups = list(groups)
        self.left = _MOST_RUNS
        self.operations_left = _MOST_OPERATIONS
        # Tensors without numbers, of which only shapes are reckoned: it costs nothing that a layer is large.
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        self.module = copy.deepcopy(module, {key: self.fake.from_tensor(tensor) for key, tensor in tensors.items()})
        device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
        # Three samples: a size that swallows channels into the batch then mostly fails to divide.
        arrays = resize_rows(inputs, example, 3)
        self.arrays = [self.fake.from_tensor(torch.as_tensor(arrays[spec.name]).to(device)) for spec in inputs]
        _, self.expected = self._run([])

    def run(self) -> None:
        """Repair one group that does not run after the other; those that are alike are repaired alike."""
        places = [place for place, of_group in enumerate(self.groups) if of_group.units > 1]
        while self.expected is not None:
            place = self._first_broken(places)
            if place is None:
                return
            kind = _kind(self.groups[place], self.module)
            links = self._repair(place)
            alike = [one for one in places if _kind(self.groups[one], self.module) == kind]
            for one in alike:
                self._link(one, links)
            # What could not be repaired is left to the prover, and so is what only looked alike.
            places = [one for one in places if one != place and (links or one not in alike)]

    def _first_broken(self, places: list[int]) -> int | None:
        if not places or self._runs(places):
            return None
        if len(places) == 1:
            return places[0]
        middle = len(places) // 2
        found = self._first_broken(places[:middle])
        return self._first_broken(places[middle:]) if found is None else found

    def _repair(self, place: int) -> list[Link]:
        """Attributes with which the group's removal runs, none where there are no such.

        The one that lets the module run furthest before it fails is taken, then the next; two at once where no one
        alone gets further.
        """
        chosen: list[Link] = []
        reached, _ = self._run([place])
        candidates = self._candidates(place)
        together = 1
        while together <= 2:
            best: list[Link] = []
            for tried in itertools.combinations(candidates, together):
                links = [*chosen, *itertools.chain(*tried)]
                self._link(place, links)
                operations, shapes = self._run([place])
                if shapes == self.expected:
                    return links
                if operations > reached:
                    reached, best = operations, links
            together = 1 if best else together + 1
            chosen = best or chosen
            candidates = [links for links in candidates if links[0] not in chosen]
        self._link(place, [])
        return []

    def _candidates(self, place: int) -> list[list[Link]]:
        """Attributes that hold the group's size or number of units, those of like layers together, the nearest first.

        Farther than in the parameter's own module, it is told by what layers lie side by side.
        """
        of_group = self.groups[place]
        found: dict[tuple[Any, ...], list[Link]] = {}
        seen: set[tuple[str, str]] = set()
        for level in _LEVELS:
            for number, slot in enumerate(of_group.slots):
                size = self._size(slot.parameter, slot.dim)
                path = _above(slot.parameter, level)
                owner = self.module.get_submodule(path)
                if level > slot.parameter.count(".") or type(owner).__module__.startswith(_OWN):
                    continue
                for name, value in _integers(self.module, path):
                    counts_units = level and len(slot.index) == size and value == of_group.units
                    if (value == size or counts_units) and (level == 0 or (path, name) not in seen):
                        seen.add((path, name))
                        leaf = slot.parameter.rpartition(".")[2]
                        key = (type(owner), name, level, leaf, slot.dim)
                        found.setdefault(key, []).append((number, level, name))
        return list(found.values())

    def _link(self, place: int, links: Iterable[Link]) -> None:
        of_group = self.groups[place]
        sizes = []
        for number, level, name in links:
            slot = of_group.slots[number]
            path = _above(slot.parameter, level)
            value = dict(_integers(self.module, path)).get(name)
            if value is not None:
                sizes.append(Size(path, name, value, slot.parameter, slot.dim, self._size(slot.parameter, slot.dim)))
        self.groups[place] = replace(of_group, sizes=tuple(sizes))

    def _size(self, parameter: str, dim: int) -> int:
        path, _, name = parameter.rpartition(".")
        tensor: torch.Tensor = getattr(self.module.get_submodule(path), name)
        return tensor.shape[dim]

    def _runs(self, places: Iterable[int]) -> bool:
        return self._run(places)[1] == self.expected

    def _run(self, places: Iterable[int]) -> tuple[int, list[torch.Size] | None]:
        """Without half of these groups' channels: how many operations ran, and the outputs' shapes where all did."""
        if not self.left or self.operations_left <= 0:
            raise _Spent
        self.left -= 1
        removal = Removal(tuple(self.groups), {place: np.arange(self.groups[place].units // 2) for place in places})
        counted = _Counted()
        try:
            with torch.no_grad(), _quiet(), self.fake:
                own = slim(_sharing(self.module), removal).eval()
                with counted:
                    found: Any = own(*self.arrays)
        except Exception:  # noqa: BLE001 - that the module's code raises is the finding
            return counted.operations, None
        finally:
            self.operations_left -= counted.operations
        return counted.operations, [leaf.shape for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations += 1
        return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch tells of operations that do not fit: that is what is asked."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _sharing(module: nn.Module) -> nn.Module:
    """A copy that shares its tensors with the original."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


def _kind(of_group: Group, module: nn.Module) -> tuple[Any, ...]:
    """What groups of repeated layers have in common."""
    owners = [slot.parameter.rpartition(".") for slot in of_group.slots]
    return tuple(
        (type(module.get_submodule(path)), name, slot.dim, len(slot.index))
        for (path, _, name), slot in zip(owners, of_group.slots, strict=True)
    )


def _above(parameter: str, level: int) -> str:
    """The path of the module ``level`` levels above the one that holds the parameter; the top's is empty."""
    return ".".join(parameter.split(".")[: -1 - level])


def _integers(module: nn.Module, path: str) -> list[tuple[str, int]]:
    """The attributes of the module at ``path`` that are whole numbers, or a tuple or list of just one."""
    found = []
    for name, value in vars(module.get_submodule(path)).items():
        number = value[0] if isinstance(value, tuple | list) and len(value) == 1 else value
        if isinstance(number, int) and not isinstance(number, bool) and number > 1:
            found.append((name, number))
    return found
