"""Linear layers and convolutions as what they are alike: a matrix that multiplies rows of numbers."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_PLACES: Final = 64  # of a picture, drawn where it has more: neighbours say nearly the same
_MOST_ROWS: Final = 8192  # of a call

Rows = Tensor
"""``(groups, rows, inputs)``: what each output of a group is a product with."""


def fits(layer: nn.Module) -> bool:
    """Whether the layer is a product of a matrix with rows of its input."""
    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def to_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight of a layer that ``fits``, or what has its shape, as ``(groups, outputs of a group, inputs)``.

    What has the matrix' numbers in the weight's order is ``matrix.reshape(weight.shape)``.
    """
    groups = int(getattr(layer, "groups", 1))
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def as_rows(layer: Any, x: Tensor, draw: torch.Generator) -> Rows:
    """What the matrix of a layer that ``fits`` multiplies, of its input ``x``: ``(groups, rows, inputs)``.

    Of a convolution, the patches (``im2col``) of some of its places.
    """
    if isinstance(layer, nn.Linear):
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if len(rows) > _MOST_ROWS:
            rows = rows[torch.randperm(len(rows), generator=draw)[:_MOST_ROWS].to(rows.device)]
        return rows[None]
    space = len(layer.kernel_size)
    x = x.detach().float()
    if x.ndim == space + 1:
        x = x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for dim in range(space):
        reach = (layer.kernel_size[dim] - 1) * layer.dilation[dim] + 1
        x = x.unfold(2 + dim, reach, layer.stride[dim])[..., :: layer.dilation[dim]]
    # Views until here: (batch, channels, *places, *kernel). Only the places that are drawn are copied.
    sizes = x.shape[2 : 2 + space]
    places = torch.arange(sizes.numel())
    if len(places) > _MOST_PLACES:
        places = torch.randperm(len(places), generator=draw)[:_MOST_PLACES]
    index = torch.unravel_index(places, sizes)
    taken: Any = (slice(None), slice(None), *(one.to(x.device) for one in index))
    patches = x[taken]
    groups = layer.groups
    patches = patches.transpose(1, 2)  # (batch, places, channels, *kernel)
    return patches.reshape(patches.shape[0] * patches.shape[1], groups, -1).transpose(0, 1)
