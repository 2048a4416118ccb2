"""Brings the sizes that a layer keeps as attributes in line with what is left of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNCellBase

from tauten.make.graph.ids import IdArray


def fit(owner: nn.Module) -> None:
    """A layer whose tensors were replaced by smaller ones; a layer of another kind keeps its attributes."""
    if isinstance(owner, _ConvNd):
        _fit_convolution(owner)
    elif isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
    elif isinstance(owner, nn.Bilinear):
        owner.out_features, owner.in1_features, owner.in2_features = owner.weight.shape
    elif isinstance(owner, _NormBase):
        owner.num_features = next(len(tensor) for tensor in (owner.weight, owner.running_mean) if tensor is not None)
    elif isinstance(owner, nn.LayerNorm | nn.RMSNorm):
        owner.normalized_shape = tuple(owner.weight.shape)
    elif isinstance(owner, nn.PReLU):
        owner.num_parameters = len(owner.weight)
    elif isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        owner.embedding_dim = owner.weight.shape[1]
    elif isinstance(owner, nn.RNNBase):
        _fit_recurrent(owner)
    elif isinstance(owner, RNNCellBase):
        owner.input_size, owner.hidden_size = owner.weight_ih.shape[1], owner.weight_hh.shape[1]


def resize(layer: nn.Module, gone: IdArray) -> None:
    """A norm layer whose channels ``gone`` are no longer there, whether or not it has tensors that tell so."""
    if isinstance(layer, nn.GroupNorm):
        layer.num_groups, layer.num_channels = groups_left(layer, gone)
    elif isinstance(layer, _NormBase):
        layer.num_features -= len(gone)
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        layer.normalized_shape = (layer.normalized_shape[0] - len(gone),)


def follow(module: nn.Module, sizes: Mapping[str, int]) -> None:
    """Attributes of any module that have become smaller; what was a tuple or list of one number stays one."""
    for name, size in sizes.items():
        was = getattr(module, name)
        setattr(module, name, type(was)([size]) if isinstance(was, tuple | list) else size)


def groups_left(layer: nn.GroupNorm, gone: IdArray) -> tuple[int, int]:
    """How many groups and channels a group norm has without ``gone``, which leaves its groups equal in size."""
    kept = np.setdiff1d(np.arange(layer.num_channels), gone)
    return len(np.unique(kept // (layer.num_channels // layer.num_groups))), len(kept)


def _fit_convolution(owner: _ConvNd) -> None:
    depthwise = owner.groups > 1 and owner.groups == owner.in_channels
    if owner.transposed:
        owner.groups = owner.weight.shape[0] if depthwise else owner.groups
        owner.in_channels, owner.out_channels = owner.weight.shape[0], owner.weight.shape[1] * owner.groups
        return
    if depthwise:
        owner.groups = owner.weight.shape[0] * owner.in_channels // owner.out_channels
    owner.in_channels, owner.out_channels = owner.weight.shape[1] * owner.groups, owner.weight.shape[0]


def _fit_recurrent(owner: nn.RNNBase) -> None:
    gates = {"LSTM": 4, "GRU": 3}.get(owner.mode, 1)
    of_input, of_hidden = owner.get_parameter("weight_ih_l0"), owner.get_parameter("weight_hh_l0")
    owner.input_size, owner.hidden_size = of_input.shape[1], of_input.shape[0] // gates
    if owner.proj_size:
        owner.proj_size = of_hidden.shape[1]
    owner.flatten_parameters()
