"""Holds a smaller module against its reference, and finds the groups that break it.

The trace shows what the module computes, not how its Python code came to a size: ``x.view(-1, 512)`` and
``x.flatten(1)`` look alike. So every removal is run once before it is believed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import nn

from tauten.core.rows import resize_rows
from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.make.graph.coupling import Removal
from tauten.make.graph.slim import mask, slim

Run = Callable[[nn.Module, Mapping[str, Array]], Arrays]
"""Calls a module on inputs by name, in evaluation mode and without gradients; outputs by name."""
TOLERANCE = 1e-4
"""Of the largest number that the reference answers with; wider where the numbers themselves are coarser."""


class Prover:
    """Runs removals on one module and example. ``module`` is copied, never changed."""

    def __init__(self, module: nn.Module, inputs: Sequence[TensorSpec], example: Mapping[str, Array], run: Run) -> None:
        self._module = module
        self._run = run
        # Three samples: a size that swallows channels into the batch then mostly fails to divide.
        self._example = resize_rows(inputs, example, 3)

    def fault(self, removal: Removal) -> str:
        """Why the smaller module is not the masked original; empty where it is."""
        if not removal.entries():
            return ""
        expected = self._run(mask(copy.deepcopy(self._module), removal), self._example)
        try:
            found = self._run(slim(copy.deepcopy(self._module), removal), self._example)
        except Exception as fault:  # noqa: BLE001 - whatever the module's own code raises is the finding
            return f"the smaller module does not run ({type(fault).__name__}: {_first_line(fault)})"
        return next((why for name in expected if (why := _differs(name, expected[name], found.get(name)))), "")

    def broken(self, removal: Removal) -> dict[int, str]:
        """The groups that cannot be removed from, and why; empty where all is well.

        Halves what fails until single groups are left: ``k`` bad ones among ``n`` take about ``k log n`` runs.
        Groups that break only together are all named.
        """
        places = [place for place, units in removal.units.items() if units.size]
        return self._search(removal, places)

    def _search(self, removal: Removal, places: list[int]) -> dict[int, str]:
        why = self.fault(removal.only(places))
        if not why:
            return {}
        if len(places) == 1:
            shaped_by = removal.groups[places[0]].shaped_by
            return {places[0]: f"{why}; sizes are named by {', '.join(shaped_by[:3])}" if shaped_by else why}
        middle = len(places) // 2
        found = {**self._search(removal, places[:middle]), **self._search(removal, places[middle:])}
        return found or dict.fromkeys(places, why)


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
