"""Norms of the masked reference: their mean and variance are taken over the channels that are left."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map_only

from tauten.make.graph.fit import follow, resize
from tauten.make.graph.ids import IdArray


def average_over(layer: nn.Module, gone: IdArray, dim: int, sizes: Mapping[str, int]) -> None:
    """Make a norm layer answer with zeros in the channels ``gone``, and with the norm over the others elsewhere.

    The channels lie along dimension ``dim`` of its input; ``sizes`` are attributes that follow. Norms that treat each
    channel by itself are left as they are.
    """
    if not isinstance(layer, _NormBase):
        layer.register_forward_hook(_over_kept(gone, dim, sizes), with_kwargs=True)


def _over_kept(gone: IdArray, dim: int, sizes: Mapping[str, int]) -> Any:
    def hook(layer: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        kept = torch.from_numpy(np.setdiff1d(np.arange(output.shape[dim]), gone)).to(output.device)
        small = copy.deepcopy(layer)
        small._forward_hooks.clear()
        for name, tensor in list(small.named_parameters(recurse=False)):
            setattr(small, name, nn.Parameter(tensor.detach()[kept], requires_grad=False))
        resize(small, gone)
        follow(small, sizes)
        args, kwargs = tree_map_only(torch.Tensor, lambda given: given.index_select(dim, kept), (args, kwargs))
        return torch.zeros_like(output).index_copy(dim, kept, small(*args, **kwargs))

    return hook
