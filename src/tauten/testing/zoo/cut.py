"""Takes channels out of a network of the zoo, and holds what is left against the masked original."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from tauten.core.tensor import Array, Arrays
from tauten.make.graph.coupling import Coupling, Removal, couple
from tauten.make.graph.prove import Prover
from tauten.make.graph.slim import mask, slim
from tauten.make.model.run import forward
from tauten.testing.zoo.entry import ZooModel


@dataclass(frozen=True)
class Cut:
    """What became of a network.

    ``small`` is the module after the last removal, ``groups`` how many groups of channels lost some, of ``found``.
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
    difference, small, groups = 0.0, module, 0
    for ratio in ratios:
        removal = _choose(coupling, ratio, draw)
        broken = prover.broken(removal)
        refused |= {coupling.groups[place].name.rpartition(".")[0]: why for place, why in broken.items()}
        removal = removal.only(removal.units.keys() - broken.keys())
        small, groups = slim(copy.deepcopy(module), removal), len(removal.units)
        arrays = entry.example(batch=4, seed=seed + 1)
        expected = run(mask(copy.deepcopy(module), removal), arrays)
        difference = max(difference, _difference(expected, run(small, arrays)))
    return Cut(module, small, len(coupling.groups), groups, refused, difference)


def _choose(coupling: Coupling, ratio: float, draw: np.random.Generator) -> Removal:
    """That share of each group's units, at least one of each that has two."""
    units = {
        place: draw.permutation(group.units)[: max(1, int(ratio * group.units))]
        for place, group in enumerate(coupling.groups)
        if group.units > 1
    }
    return Removal(coupling.groups, units)


def _difference(expected: Arrays, found: Arrays) -> float:
    if {name: array.shape for name, array in expected.items()} != {name: array.shape for name, array in found.items()}:
        return float("inf")
    shares = [
        float(np.abs(np.subtract(expected[name], found[name])).max() / max(np.abs(expected[name]).max(), 1e-30))
        for name in expected
        if expected[name].dtype.kind == "f"
    ]
    return max(shares, default=0.0)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
