"""Which groups are built alike, so that their scores can be compared."""

from __future__ import annotations

import numpy as np
from torch import nn

from tauten.make.graph.groups import Group, Slot

Structure = tuple[tuple[str, str, str, int, tuple[int, ...], int], ...]


def structure(group: Group, module: nn.Module) -> Structure:
    """What kinds of layers make and read the group's units, and how: the same for two groups that are isomorphic.

    (Fang et al., 2024, with kernels as part of the kind.) Widths do not count: a stage of 64 channels and one of 128
    are alike. A slot is the layer's kind, the parameter's name in it, its role, its dimension, the kernel, and how many
    entries a unit has.
    """
    return tuple(sorted(_kind(slot, module) for slot in group.slots))


def _kind(slot: Slot, module: nn.Module) -> tuple[str, str, str, int, tuple[int, ...], int]:
    path, _, name = slot.parameter.rpartition(".")
    owner = module.get_submodule(path)
    kernel = tuple(int(size) for size in getattr(owner, name).shape[2:])
    return type(owner).__name__, name, slot.role, slot.dim, kernel, int(np.bincount(slot.unit).max(initial=0))
