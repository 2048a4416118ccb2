"""The masked original, written without the code under test: zeros one by one, and norms over what is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from tauten.core.tensor import TensorSpec
from tauten.make.graph.groups import Removal
from tauten.make.graph.slim import slim
from tests.unit.graph import nets


def assert_alike(module: nn.Module, specs: Sequence[TensorSpec], removal: Removal) -> nn.Module:
    """The smaller module, which answers as the masked original does."""
    small = slim(copy.deepcopy(module), removal)
    expected = answers(masked(copy.deepcopy(module), removal), specs)
    for found, wanted in zip(answers(small, specs), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    return small


def answers(module: nn.Module, specs: Sequence[TensorSpec], batch: int = 3) -> list[torch.Tensor]:
    with torch.no_grad():
        given = module(*(torch.from_numpy(array) for array in nets.example(specs, batch).values()))
    if isinstance(given, dict):
        return list(given.values())
    return list(given) if isinstance(given, tuple) else [given]


def masked(module: nn.Module, removal: Removal) -> nn.Module:
    """``module`` with every entry of every removed unit zero, and norms that see only the channels that are left."""
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    gone: dict[str, set[int]] = {}
    with torch.no_grad():
        for place, units in removal.units.items():
            for slot in (*removal.groups[place].slots, *removal.groups[place].layers):
                at = [
                    index for index, unit in zip(slot.index.tolist(), slot.unit.tolist(), strict=True) if unit in units
                ]
                if slot.parameter in tensors:
                    tensors[slot.parameter].index_fill_(slot.dim, torch.tensor(at, dtype=torch.int64), 0)
                gone.setdefault(slot.parameter.removesuffix(".weight"), set()).update(at)
    for path, layer in module.named_modules():
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
            layer.forward = _layer_norm(layer, _kept(layer.normalized_shape[0], gone.get(path, set())))
        elif isinstance(layer, nn.GroupNorm):
            layer.forward = _group_norm(layer, _kept(layer.num_channels, gone.get(path, set())))
    return module


def _kept(channels: int, gone: set[int]) -> torch.Tensor:
    return torch.tensor([float(channel not in gone) for channel in range(channels)])


def _scaled(layer: nn.LayerNorm | nn.GroupNorm, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if layer.weight is not None:
        x = x * layer.weight.view(shape)
    return x if layer.bias is None else x + layer.bias.view(shape)


def _layer_norm(layer: nn.LayerNorm, kept: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        mean = (x * kept).sum(-1, keepdim=True) / kept.sum()
        variance = ((x - mean).square() * kept).sum(-1, keepdim=True) / kept.sum()
        return _scaled(layer, (x - mean) / (variance + layer.eps).sqrt(), (-1,)) * kept

    return forward


def _group_norm(layer: nn.GroupNorm, kept: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        parts = []
        for own, left in zip(x.chunk(layer.num_groups, 1), kept.chunk(layer.num_groups), strict=True):
            weights = left.view(1, -1, *[1] * (x.dim() - 2)).expand_as(own)
            count = weights.flatten(1).sum(1).clamp(min=1)
            shape = (-1, *[1] * (x.dim() - 1))
            mean = ((own * weights).flatten(1).sum(1) / count).view(shape)
            variance = (((own - mean).square() * weights).flatten(1).sum(1) / count).view(shape)
            parts.append((own - mean) / (variance + layer.eps).sqrt())
        shape = (1, -1, *[1] * (x.dim() - 2))
        return _scaled(layer, torch.cat(parts, 1), shape) * kept.view(shape)

    return forward
