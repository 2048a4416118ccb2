"""Takes removed channels out of a module: in truth (``slim``) or by zeros (``mask``). The two must answer alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from tauten.make.graph.fit import fit, follow, resize
from tauten.make.graph.groups import Removal
from tauten.make.graph.ids import IdArray
from tauten.make.graph.reference import average_over


def slim(module: nn.Module, removal: Removal) -> nn.Module:
    """``module`` itself, smaller.

    Parameters and buffers are replaced by slices (one that is shared stays shared), and the sizes that layers keep as
    attributes are brought in line.
    """
    owners = _replace(module, removal, _slice)
    for (path, _), gone in removal.layers().items():
        resize(module.get_submodule(path), gone)
    for owner in (*owners, *_computing(module, owners)):
        fit(owner)
    for path, attributes in removal.sizes().items():
        follow(module.get_submodule(path), attributes)
    return module


def _computing(module: nn.Module, parts: list[nn.Module]) -> list[nn.Module]:
    """The modules with a weight that is computed of these parts (weight norm, say)."""
    held = {id(part) for part in parts}
    found = []
    for owner in module.modules():
        computed = owner.parametrizations if parametrize.is_parametrized(owner) else None
        if isinstance(computed, nn.ModuleDict) and any(id(part) in held for part in computed.values()):
            found.append(owner)
    return found


def mask(module: nn.Module, removal: Removal) -> nn.Module:
    """``module`` itself, with zeros in every entry that goes; the reference that ``slim`` is held against.

    A norm over removed channels takes its mean and variance over the kept ones, as the smaller one does. Parameters
    and buffers are replaced, so that a module that shares them with this one is left alone.
    """
    _replace(module, removal, _zero)
    sizes = removal.sizes()
    for (path, dim), gone in removal.layers().items():
        average_over(module.get_submodule(path), gone, dim, sizes.get(path, {}))
    return module


Gone = dict[int, IdArray]
"""By dimension, the indices that go."""


def _replace(
    module: nn.Module, removal: Removal, make: Callable[[torch.Tensor, Gone], torch.Tensor]
) -> list[nn.Module]:
    """Put what ``make`` gives in place of each tensor that loses entries; the modules that own one are returned."""
    named = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    gone: dict[int, Gone] = {}
    for (parameter, dim), indices in removal.entries().items():
        gone.setdefault(id(named[parameter]), {})[dim] = indices
    made: dict[int, torch.Tensor] = {}
    owners: dict[int, nn.Module] = {}
    for owner, name, tensor in list(_tensors(module)):
        if id(tensor) in gone:
            if id(tensor) not in made:
                made[id(tensor)] = _alike(tensor, make(tensor.detach(), gone[id(tensor)]))
            setattr(owner, name, made[id(tensor)])
            owners[id(owner)] = owner
    return list(owners.values())


def _alike(tensor: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _slice(tensor: torch.Tensor, gone: Gone) -> torch.Tensor:
    # Kernels whose channels lie side by side in memory lie so again: convolutions on processors are twice as fast.
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and tensor.stride(1) == 1
    # A kernel of one pixel lies so in any network. Where it alone says so, PyTorch 2.13 has crashed in training.
    last = last and tensor.shape[2:].numel() > 1
    for dim, indices in gone.items():
        kept = np.setdiff1d(np.arange(tensor.shape[dim]), indices)
        tensor = tensor.index_select(dim, torch.from_numpy(kept).to(tensor.device))
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor) if last else tensor


def _zero(tensor: torch.Tensor, gone: Gone) -> torch.Tensor:
    tensor = tensor.clone()
    for dim, indices in gone.items():
        tensor.index_fill_(dim, torch.from_numpy(indices).to(tensor.device), 0)
    return tensor


def _tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    for owner in module.modules():
        for named in (owner._parameters, owner._buffers):
            for name, tensor in named.items():
                if tensor is not None:
                    yield owner, name, tensor
