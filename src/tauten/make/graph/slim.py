"""Takes removed channels out of a module: in truth (``slim``) or by zeros (``mask``). The two must answer alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from tauten.make.graph.coupling import Removal
from tauten.make.graph.ids import IdArray


def slim(module: nn.Module, removal: Removal) -> nn.Module:
    """``module`` itself, smaller.

    Parameters and buffers are sliced (one that is shared stays shared), and the sizes that layers keep as attributes
    are brought in line.
    """
    gone = _by_tensor(module, removal)
    small: dict[int, torch.Tensor] = {}
    for owner, name, tensor in list(_tensors(module)):
        if id(tensor) not in gone:
            continue
        if id(tensor) not in small:
            small[id(tensor)] = _slice(tensor, gone[id(tensor)])
        setattr(owner, name, small[id(tensor)])
        _fit(owner)
    return module


def mask(module: nn.Module, removal: Removal) -> nn.Module:
    """``module`` itself, with zeros in every entry that goes; the reference that ``slim`` is held against.

    A layer norm over removed channels takes its mean and variance over the kept ones, as the smaller one does.
    """
    with torch.no_grad():
        for tensor, dims in _by_tensor(module, removal).values():
            for dim, indices in dims.items():
                tensor.index_fill_(dim, torch.from_numpy(indices).to(tensor.device), 0)
    for (parameter, dim), indices in removal.entries().items():
        path, _, name = parameter.rpartition(".")
        owner = module.get_submodule(path)
        if type(owner) is nn.LayerNorm and name == "weight" and dim == 0:
            kept = np.setdiff1d(np.arange(owner.normalized_shape[0]), indices)
            owner.register_forward_hook(_norm_over(torch.from_numpy(kept)))
    return module


def _norm_over(kept: torch.Tensor) -> Any:
    def hook(layer: nn.LayerNorm, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        at = kept.to(output.device)
        bias = None if layer.bias is None else layer.bias[at]
        part = functional.layer_norm(inputs[0][..., at], (len(at),), layer.weight[at], bias, layer.eps)
        return torch.zeros_like(output).index_copy(-1, at, part)

    return hook


Gone = dict[int, tuple[torch.Tensor, dict[int, IdArray]]]


def _by_tensor(module: nn.Module, removal: Removal) -> Gone:
    """For each tensor, by identity, the indices that go along its dimensions."""
    named = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    gone: Gone = {}
    for (parameter, dim), indices in removal.entries().items():
        tensor = named[parameter]
        gone.setdefault(id(tensor), (tensor, {}))[1][dim] = indices
    return gone


def _slice(tensor: torch.Tensor, gone: tuple[torch.Tensor, dict[int, IdArray]]) -> torch.Tensor:
    made = tensor.detach()
    for dim, indices in gone[1].items():
        kept = np.setdiff1d(np.arange(tensor.shape[dim]), indices)
        made = made.index_select(dim, torch.from_numpy(kept).to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made


def _tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    for owner in module.modules():
        for named in (owner._parameters, owner._buffers):
            for name, tensor in named.items():
                if tensor is not None:
                    yield owner, name, tensor


def _fit(owner: nn.Module) -> None:
    """Bring a layer's size attributes in line with its tensors; a layer of another kind keeps its own."""
    if isinstance(owner, _ConvNd) and owner.transposed:
        owner.in_channels, owner.out_channels = owner.weight.shape[0], owner.weight.shape[1] * owner.groups
    elif isinstance(owner, _ConvNd):
        depthwise = owner.groups > 1 and owner.groups == owner.in_channels
        if depthwise:
            owner.groups = owner.weight.shape[0] * owner.in_channels // owner.out_channels
        owner.in_channels = owner.weight.shape[1] * owner.groups
        owner.out_channels = owner.weight.shape[0]
    elif isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
    elif isinstance(owner, _NormBase):
        owner.num_features = next(len(tensor) for tensor in (owner.weight, owner.running_mean) if tensor is not None)
    elif isinstance(owner, nn.LayerNorm):
        owner.normalized_shape = tuple(owner.weight.shape)
    elif isinstance(owner, nn.PReLU):
        owner.num_parameters = len(owner.weight)
    elif isinstance(owner, nn.Embedding):
        owner.embedding_dim = owner.weight.shape[1]
