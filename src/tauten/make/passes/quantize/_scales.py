"""Grids of weights: a scale for the whole, for each output channel, or for each group of numbers of it."""

from __future__ import annotations

from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauten.make.layers.quantized import Grid

Granularity = Literal["tensor", "channel", "group"]
Scales = Literal["absmax", "mse"]

_SHARES: Final = torch.linspace(1.0, 0.4, 31)  # of the largest magnitude, tried for the least squared error


def channel_axis(layer: nn.Module) -> int | None:
    """The dimension of a layer's weight along which its outputs (of an embedding, its rows) lie, where one does."""
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        # With groups, an entry of dimension 1 belongs to an output of each group.
        return 1 if layer.groups == 1 else None
    return 0


def choose_grid(
    layer: nn.Module, weight: Tensor, bits: int, granularity: Granularity, group: int, scales: Scales
) -> Grid:
    """A symmetric grid: with scales that span the largest magnitude, or that cost the least squared error.

    Groups are of a matrix alone; another weight gets a scale a channel instead. Clipping for the least squared error:
    Banner et al., 2019, here by trying shares of the largest magnitude.
    """
    axis = None if granularity == "tensor" else channel_axis(layer)
    group = group if granularity == "group" and weight.ndim == 2 else 0
    group = 0 if axis is None else min(group, weight.shape[1]) if group else 0
    cells = to_cells(weight, axis, group)
    top = 2 ** (bits - 1) - 1
    largest = cells.abs().amax(1)
    scale = largest / top
    if scales == "mse":
        best = _error(cells, scale, top)
        for share in _SHARES[1:].tolist():
            tried = largest * share / top
            error = _error(cells, tried, top)
            scale = torch.where(error < best, tried, scale)
            best = torch.minimum(error, best)
    return Grid(bits, axis, from_cells(_usable(scale), weight, axis, group), group=group)


def to_cells(weight: Tensor, axis: int | None, group: int) -> Tensor:
    """The numbers that share a scale, one row each: ``(cells, numbers)``; a last group that is short ends in zeros."""
    if axis is None:
        return weight.reshape(1, -1)
    if not group:
        return weight.transpose(0, axis).reshape(weight.shape[axis], -1)
    short = -weight.shape[1] % group
    return F.pad(weight, (0, short)).reshape(-1, group)


def from_cells(numbers: Tensor, weight: Tensor, axis: int | None, group: int) -> Tensor:
    """One number a cell in the shape that ``Grid`` wants: ``()``, ``(channels,)`` or ``(channels, groups)``."""
    if axis is None:
        return numbers.reshape(())
    return numbers.reshape(weight.shape[0], -1) if group else numbers


def _error(cells: Tensor, scale: Tensor, top: int) -> Tensor:
    step = _usable(scale)[:, None]
    off = (cells / step).round_().clamp_(-top - 1, top).mul_(step).sub_(cells)
    return off.square_().sum(1)


def _usable(scale: Tensor) -> Tensor:
    """1 where all numbers are 0, or so small that their scale would be."""
    return torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
