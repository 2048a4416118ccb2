"""Takes channels out of a network of the zoo, and holds what is left against the masked original."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from tauten.core.tensor import Array, Arrays
from tauten.make.graph.coupling import Coupling, couple
from tauten.make.graph.groups import Removal
from tauten.make.graph.prove import Prover
from tauten.make.graph.slim import mask, slim
from tauten.make.model.run import forward
from tauten.testing.zoo.entry import ZooModel


@dataclass(frozen=True)
class Cut:
    """What became of a network.

    ``small`` is the module after the last removal, ``groups`` how many groups of channels lost some, of ``found``
    that have more than one.
    ``refused`` are the reasons by layer. ``difference`` is the largest between the smaller module's outputs and the
    masked original's, over all removals, as a share of the largest number of the output.
    """

    module: nn.Module
    small: nn.Module
    found: int
    groups: int
    refused: dict[str, str]
    difference: float

    @property
    def parameters(self) -> tuple[int, int]:
        """Before, and after the last removal."""
        return _count(self.module), _count(self.small)


def cut(entry: ZooModel, ratios: Sequence[float] = (0.5,), seed: int = 0) -> Cut:
    """Remove random channels of every group, each of ``ratios`` in turn from the original.

    Groups that break are left out and told; the difference is measured on other inputs than they were found with.
    Raises ``PassError`` where ``torch.export`` cannot follow the network.
    """
    module = entry.build(seed)
    example = entry.example(seed=seed)

    def run(one: nn.Module, arrays: Mapping[str, Array]) -> Arrays:
        return forward(one, entry.inputs, (), arrays)

    coupling = couple(module, entry.inputs, example)
    prover = Prover(module, entry.inputs, example, run)
    refused = coupling.refused_layers()
    draw = np.random.default_rng(seed)
    worst, small, groups = 0.0, module, 0
    for ratio in ratios:
        removal = _choose(coupling, ratio, draw)
        broken = prover.broken(removal)
        refused |= {coupling.groups[place].name.rpartition(".")[0]: why for place, why in broken.items()}
        removal = removal.only(removal.units.keys() - broken.keys())
        small, groups = slim(copy.deepcopy(module), removal), len(removal.units)
        arrays = entry.example(batch=4, seed=seed + 1)
        expected = run(mask(copy.deepcopy(module), removal), arrays)
        worst = max(worst, difference(expected, run(small, arrays)))
    found = sum(group.units > 1 for group in coupling.groups)
    return Cut(module, small, found, groups, refused, worst)


def _choose(coupling: Coupling, ratio: float, draw: np.random.Generator) -> Removal:
    """That share of each group's units, at least one of each that has two."""
    units = {
        place: draw.permutation(group.units)[: max(1, int(ratio * group.units))]
        for place, group in enumerate(coupling.groups)
        if group.units > 1
    }
    return Removal(coupling.groups, units)


def difference(expected: Arrays, found: Arrays) -> float:
    """The largest difference of any output, as a share of its largest number.

    Infinite where names, shapes, integers or flags differ, and where a number is not finite: two that are not numbers
    are not alike.
    """
    if {name: array.shape for name, array in expected.items()} != {name: array.shape for name, array in found.items()}:
        return float("inf")
    return max((_share(array, found[name]) for name, array in expected.items()), default=float("inf"))


def _share(expected: Array, found: Array) -> float:
    if not np.issubdtype(expected.dtype, np.floating):
        return 0.0 if np.array_equal(expected, found) else float("inf")
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return float("inf")
    scale = float(np.abs(expected).max(initial=0.0))
    return float(np.abs(np.subtract(expected, found)).max(initial=0.0)) / max(scale, 1e-30)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
