"""What a group's parameters hold of each unit, as one row a unit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from tauten.make.graph.groups import Group, Role, Slot
from tauten.make.graph.ids import IdArray

BOTH: tuple[Role, ...] = ("producer", "consumer")


def gather(group: Group, tensors: Mapping[str, torch.Tensor], roles: tuple[Role, ...] = BOTH) -> torch.Tensor:
    """``(units, numbers)``, float, padded with zeros where units hold different numbers of entries.

    ``tensors`` are by parameter; slots of other names (buffers: statistics of data, not weights) are left out, and
    those of other ``roles`` where some of these are left. Memory is that of what comes, and of one slot.
    """
    slots = [slot for slot in group.slots if slot.parameter in tensors]
    slots = [slot for slot in slots if slot.role in roles] or slots
    counts = [np.bincount(slot.unit, minlength=group.units) for slot in slots]
    inner = [tensors[slot.parameter].numel() // max(1, tensors[slot.parameter].shape[slot.dim]) for slot in slots]
    widths = [int(count.max(initial=0)) * size for count, size in zip(counts, inner, strict=True)]
    rows = torch.zeros(group.units, sum(widths))
    start = 0
    for slot, count, width in zip(slots, counts, widths, strict=True):
        _fill(rows[:, start : start + width], tensors[slot.parameter], slot, count)
        start += width
    return rows


def _fill(block: torch.Tensor, tensor: torch.Tensor, slot: Slot, counts: IdArray) -> None:
    """Lay the slot's entries into ``block``, ``(units, entries a unit x numbers an entry)``."""
    index = torch.from_numpy(slot.index).to(tensor.device)
    entries = tensor.detach().index_select(slot.dim, index).movedim(slot.dim, 0)
    entries = entries.reshape(len(slot.index), -1)
    if counts.min() == counts.max():
        block.copy_(entries.reshape(block.shape))
        return
    # Entries are sorted by unit: each goes to the next free place of its unit's row.
    place = np.arange(len(slot.unit)) - (counts.cumsum() - counts)[slot.unit]
    of_unit = block.view(len(block), -1, entries.shape[1])
    of_unit[torch.from_numpy(slot.unit), torch.from_numpy(place)] = entries.float().cpu()
