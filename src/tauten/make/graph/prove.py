"""Holds a smaller module against its reference, and finds the groups that break it.

The trace shows what the module computes, not how its Python code came to a size: ``x.view(-1, 512)`` and
``x.flatten(1)`` look alike. So every removal is run once before it is believed.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import nn

from tauten.core.rows import resize_rows
from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.make.graph.groups import Group, Removal
from tauten.make.graph.slim import mask, slim

Run = Callable[[nn.Module, Mapping[str, Array]], Arrays]
"""Calls a module on inputs by name, in evaluation mode and without gradients; outputs by name."""
TOLERANCE = 1e-4
"""Of the largest number that the reference answers with; wider where the numbers themselves are coarser."""


class Prover:
    """Runs removals on one module and example. ``module`` is never changed.

    Finding the groups at fault takes at most about ``runs`` runs and ``seconds``, over all calls; what is still under
    suspicion then is refused. A removal that is believed has been run, however long that takes.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[TensorSpec],
        example: Mapping[str, Array],
        run: Run,
        *,
        runs: int = 100,
        seconds: float = 20.0,
    ) -> None:
        self._module = module
        self._run = run
        self._left = runs
        self._seconds_left = seconds
        # Three samples: a size that swallows channels into the batch then mostly fails to divide.
        self._example = resize_rows(inputs, example, 3)

    def fault(self, removal: Removal) -> str:
        """Why the smaller module is not the masked original; empty where it is."""
        if not removal.entries():
            return ""
        started = time.monotonic()
        try:
            return self._compare(removal)
        finally:
            self._left -= 1
            self._seconds_left -= time.monotonic() - started

    def broken(self, removal: Removal) -> dict[int, str]:
        """The groups that cannot be removed from, and why; empty where all is well.

        What fails is halved until single groups are left: ``k`` bad ones among ``n`` take about ``k log n`` runs, and
        repeated layers count as one, for what breaks two of them is taken to break the others that fail. Groups
        that break only together are all named.
        """
        kinds: dict[tuple[object, ...], list[int]] = {}
        for place, units in removal.units.items():
            if units.size:
                kinds.setdefault(_kind(removal.groups[place]), []).append(place)
        return self._search(removal, list(kinds.values()))

    def _compare(self, removal: Removal) -> str:
        expected = self._run(mask(self._fork(), removal), self._example)
        try:
            found = self._run(slim(self._fork(), removal), self._example)
        except Exception as fault:  # noqa: BLE001 - whatever the module's own code raises is the finding
            return f"the smaller module does not run ({type(fault).__name__}: {_first_line(fault)})"
        return next((why for name in expected if (why := _differs(name, expected[name], found.get(name)))), "")

    def _fork(self) -> nn.Module:
        """A copy that shares the parameters, which ``mask`` and ``slim`` replace; buffers may change in a call."""
        return copy.deepcopy(self._module, {id(tensor): tensor for tensor in self._module.parameters()})

    def _search(self, removal: Removal, kinds: list[list[int]]) -> dict[int, str]:
        places = [place for kind in kinds for place in kind]
        why = self.fault(removal.only(places))
        if not why:
            return {}
        if self._spent:
            return self._told(removal, places, f"{why}; which group is at fault was not found in time")
        if len(kinds) == 1:
            return self._among_alike(removal, places, why)
        middle = len(kinds) // 2
        found = {**self._search(removal, kinds[:middle]), **self._search(removal, kinds[middle:])}
        return found or self._told(removal, places, why)

    def _among_alike(self, removal: Removal, places: list[int], why: str) -> dict[int, str]:
        """Of repeated layers that fail together: one by one until two are found, then all that fail without them."""
        found: dict[int, str] = {}
        while why:
            if len(found) == 2 or self._spent:
                return {**found, **self._told(removal, places, why)}
            first = self._first(removal, places, why)
            if first is None:
                return {**found, **self._told(removal, places, why)}
            found |= self._told(removal, [first[0]], first[1])
            places = [place for place in places if place != first[0]]
            why = self.fault(removal.only(places)) if places else ""
        return found

    def _first(self, removal: Removal, places: list[int], why: str) -> tuple[int, str] | None:
        """The first that fails by itself, where some do."""
        while len(places) > 1:
            middle = len(places) // 2
            halves = ((half, self.fault(removal.only(half))) for half in (places[:middle], places[middle:]))
            failing = next(((half, told) for half, told in halves if told), None)
            if failing is None:
                return None
            places, why = failing
        return places[0], why

    @property
    def _spent(self) -> bool:
        return self._left <= 0 or self._seconds_left <= 0

    @staticmethod
    def _told(removal: Removal, places: list[int], why: str) -> dict[int, str]:
        sizes = {place: ", ".join(removal.groups[place].shaped_by[:3]) for place in places}
        return {place: f"{why}; sizes are named by {named}" if named else why for place, named in sizes.items()}


def _kind(of_group: Group) -> tuple[object, ...]:
    """What the groups of repeated layers have in common."""
    return tuple((re.sub(r"\d+", "#", slot.parameter), slot.dim) for slot in of_group.slots)


def _first_line(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or [""])[0][:200]


def _differs(name: str, expected: Array, found: Array | None) -> str:
    if found is None or found.shape != expected.shape:
        return f"{name} has shape {None if found is None else found.shape} where {expected.shape} was expected"
    if not np.issubdtype(expected.dtype, np.floating):
        return "" if np.array_equal(expected, found) else f"{name} differs"
    scale = float(np.abs(expected).max(initial=0.0))
    worst = float(np.abs(np.subtract(expected, found)).max(initial=0.0))
    tolerance = max(TOLERANCE, 16 * float(np.finfo(expected.dtype.name).eps))
    if worst <= tolerance * scale:
        return ""
    return f"{name} differs by {worst:.3g} (its largest number is {scale:.3g}): a size or position is fixed in the code"
