"""Units that nothing reads are taken out, and those that stay are put in the order that codes best.

Units are what ``tauten.make.graph`` proves to go together. Whatever is done here, the module answers as before, which
is held on an example; where it does not, or the module cannot be followed, it is left as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from tauten.core.tensor import Arrays
from tauten.errors import PassError
from tauten.make.graph.coupling import couple
from tauten.make.graph.groups import Group, Removal, Role, Slot
from tauten.make.graph.ids import IdArray
from tauten.make.graph.slim import slim
from tauten.make.model.model import Model
from tauten.make.model.run import forward

_TOLERANCE: Final = 1e-4


def remove_dead(model: Model, example: Arrays, *alike: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """The module without units that no weight reads, or whose every weight is zero, and notes of what went.

    ``alike`` are modules of the same structure with other numbers; they lose the same units, in place.
    """
    try:
        groups = couple(model.module, model.inputs, example).groups
    except PassError as fault:
        return model.module, {"refused": str(fault)}
    expected = _answers(model, model.module, example)
    module = copy.deepcopy(model.module)
    gone: dict[int, IdArray] = {}
    while True:
        found = {place: _dead(group, model, module, expected, example) for place, group in enumerate(groups)}
        if sum(map(len, found.values())) == sum(map(len, gone.values())):
            break
        gone = found  # what these units read may now be read by nothing
    gone = {place: units[1:] if len(units) == groups[place].units else units for place, units in gone.items()}
    gone = {place: units for place, units in gone.items() if units.size}
    told = {
        "units": {groups[place].name: [groups[place].units, groups[place].units - len(gone[place])] for place in gone}
    }
    if not gone:
        return model.module, told
    try:
        slim(module, Removal(groups, gone))
        answers = _answers(model, module, example)
    except Exception as fault:  # noqa: BLE001 - code that names a size fails in any way, and the model is left whole
        return model.module, {"refused": f"without its dead units it does not run: {type(fault).__name__}: {fault}"}
    if not _same(expected, answers):
        return model.module, {"refused": "without its dead units it answers otherwise"}
    for other in alike:
        slim(other, Removal(groups, gone))
    return module, told


def _dead(group: Group, model: Model, module: nn.Module, expected: Arrays, example: Arrays) -> IdArray:
    """The units that nothing reads; what makes them, and what reads those that compute nothing, becomes zero."""
    silent = np.flatnonzero(~_alive(group, _named(module), "producer") & _alive(group, _named(module), "consumer"))
    if silent.size:
        before = copy.deepcopy(module.state_dict())
        _clear(group, _named(module), silent, "consumer")
        # A unit that computes nothing may still give a number that its readers count on.
        if not _same(expected, _answers(model, module, example)):
            module.load_state_dict(before)
    if not any(slot.role == "consumer" for slot in group.slots):
        return np.zeros(0, dtype=np.int64)
    dead = np.flatnonzero(~_alive(group, _named(module), "consumer"))
    _clear(group, _named(module), dead, "producer")
    return dead


def sort_units(model: Model, example: Arrays, size: Callable[[nn.Module], int]) -> nn.Module:
    """The module with the units of each group by how many weights they have, where ``size`` of it gets smaller."""
    try:
        groups = couple(model.module, model.inputs, example).groups
    except PassError:
        return model.module
    expected = _answers(model, model.module, example)
    best, least = model.module, size(model.module)
    for group in groups:
        trial = copy.deepcopy(best)
        counts = np.sum([_count(slot, _named(trial), group.units) for slot in group.slots], axis=0)
        if not _permute(group, trial, np.argsort(-counts, kind="stable")):
            continue
        found = size(trial)
        if found < least and _same(expected, _answers(model, trial, example)):
            best, least = trial, found
    return best


def _permute(group: Group, module: nn.Module, order: IdArray) -> bool:
    """Put unit ``order[k]`` in the place of unit ``k``, where all of them have equally many entries."""
    named = _named(module)
    done: set[tuple[int, int]] = set()
    for slot in group.slots:
        tensor = named[slot.parameter]
        if len(slot.index) % group.units or np.any(np.bincount(slot.unit) != len(slot.index) // group.units):
            return False
        if (id(tensor), slot.dim) in done:
            continue
        done.add((id(tensor), slot.dim))
        places = slot.index.reshape(group.units, -1)
        to, of = (torch.from_numpy(np.ascontiguousarray(one.ravel())) for one in (places, places[order]))
        with torch.no_grad():
            tensor.copy_(tensor.clone().index_copy(slot.dim, to, tensor.index_select(slot.dim, of)))
    return True


def _alive(group: Group, named: Mapping[str, Tensor], role: Role) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether a unit has an entry that is not zero among its producers or consumers, ``(units,)``.

    Of the producers only what a pass could have set to zero counts: the weights, and the vectors beside them.
    """
    found = np.zeros(group.units, dtype=np.int64)
    for slot in group.slots:
        if slot.role == role:
            found += _count(slot, named, group.units)
    return found > 0


def _count(slot: Slot, named: Mapping[str, Tensor], units: int) -> IdArray:
    """Entries that are not zero, by unit."""
    tensor = named[slot.parameter].detach()
    held = (tensor != 0).transpose(0, slot.dim).reshape(tensor.shape[slot.dim], -1).sum(1).cpu().numpy()
    return np.bincount(slot.unit, held[slot.index], minlength=units).astype(np.int64)


def _clear(group: Group, named: Mapping[str, Tensor], units: IdArray, role: Role) -> None:
    """Zeros in the weights and biases of these units; the statistics of norms stay."""
    for slot in group.slots:
        if slot.role == role and isinstance(named[slot.parameter], nn.Parameter):
            tensor = named[slot.parameter]
            with torch.no_grad():
                tensor.index_fill_(slot.dim, torch.from_numpy(slot.of(units)).to(tensor.device), 0)


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _answers(model: Model, module: nn.Module, example: Arrays) -> Arrays:
    return forward(module, model.inputs, model.outputs, example)


def _same(expected: Arrays, found: Arrays) -> bool:
    return all(
        array.shape == found[name].shape
        and np.allclose(array, found[name], rtol=_TOLERANCE, atol=_TOLERANCE * float(np.abs(array).max(initial=1.0)))
        for name, array in expected.items()
    )
