"""Layers whose channels a gate can close: those that alone make a group of coupled channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tauten.make.graph.groups import Group, Slot

LAYERS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Reader:
    """A layer that sums over the channels of a site: its input ``entry[k]`` belongs to channel ``unit[k]``."""

    path: str
    entry: torch.Tensor
    unit: torch.Tensor


@dataclass(frozen=True)
class Site:
    """Where a gate goes: the layer that makes ``channels``, the batch norm after it, and what reads them."""

    path: str
    norm: str | None
    channels: int
    readers: tuple[Reader, ...]


def find_sites(groups: Sequence[Group], module: nn.Module) -> tuple[list[Site], dict[str, str]]:
    """Sites in the order of the groups, and for the other groups by name why there is none."""
    modules = dict(module.named_modules())
    sites: list[Site] = []
    refused: dict[str, str] = {}
    for group in groups:
        found = _site(group, modules)
        if isinstance(found, Site):
            sites.append(found)
        else:
            refused[group.name.rpartition(".")[0] or group.name] = found
    return sites, refused


def _site(group: Group, modules: Mapping[str, nn.Module]) -> Site | str:
    """The site, or why there is none."""
    wide = [slot for slot in group.slots if _owner(slot, modules) is not None and _rank(slot, modules) >= 2]
    makers = [slot for slot in wide if slot.role == "producer"]
    if len(makers) != 1:
        paths = ", ".join(_path(slot) or slot.parameter for slot in makers)
        return f"its channels are made by {len(makers)} layers ({paths})"
    maker = makers[0]
    layer = _owner(maker, modules)
    if type(layer) not in LAYERS or maker.dim != 0 or not maker.parameter.endswith("weight"):
        return f"its channels are made by a {type(layer).__name__}, not by a convolution or linear layer"
    whole = np.arange(len(layer.weight))  # type: ignore[union-attr, arg-type]
    if not (np.array_equal(maker.index, whole) and np.array_equal(maker.unit, whole)):
        return "a part of the layer's channels is tied to others"
    small = {_path(slot): _owner(slot, modules) for slot in group.slots if _rank(slot, modules) < 2}
    small |= {slot.parameter: modules.get(slot.parameter) for slot in group.layers}
    norms = [path for path, owner in small.items() if isinstance(owner, _BatchNorm)]
    others = [type(owner).__name__ for path, owner in small.items() if path not in norms and owner is not layer]
    others = [name for name in others if name != "PReLU"]
    if others or len(norms) > 1:
        return f"its channels pass {', '.join(others or [f'{len(norms)} batch norms'])}"
    readers = []
    for slot in wide:
        if slot is maker:
            continue
        reader = _owner(slot, modules)
        if type(reader) not in LAYERS or slot.dim != 1 or getattr(reader, "groups", 1) != 1:
            return f"its channels are read by {_path(slot)}, a {type(reader).__name__} that a gate cannot follow"
        readers.append(Reader(_path(slot), torch.from_numpy(slot.index.copy()), torch.from_numpy(slot.unit.copy())))
    if not readers:
        return "its channels are read by no layer"
    return Site(_path(maker), norms[0] if norms else None, group.units, tuple(readers))


def _path(slot: Slot) -> str:
    return slot.parameter.rpartition(".")[0]


def _owner(slot: Slot, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    return modules.get(_path(slot))


def _rank(slot: Slot, modules: Mapping[str, nn.Module]) -> int:
    owner = modules.get(_path(slot))
    tensor = getattr(owner, slot.parameter.rpartition(".")[2], None)
    return tensor.ndim if isinstance(tensor, torch.Tensor) else 0
