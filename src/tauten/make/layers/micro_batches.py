"""A module that answers large batches in parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class MicroBatches(nn.Module):
    """Hands at most ``rows`` samples at once to a module, and puts its answers together.

    ``inputs`` are the axes along which the inputs count samples (``None``: the input belongs to all of them),
    ``outputs`` those of the tensors that the module returns, in order. Exported, the graph has the batch whole, for
    engines divide batches themselves; so has training, for the sake of batch normalization.
    """

    def __init__(self, module: nn.Module, rows: int, inputs: tuple[int | None, ...], outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.module = module
        self.rows = rows
        self.inputs = inputs
        self.outputs = outputs

    def extra_repr(self) -> str:
        return f"rows={self.rows}"

    def forward(self, *given: torch.Tensor) -> Any:
        """What the module returns, of any structure of tuples, lists and mappings."""
        if self.training or torch.compiler.is_exporting():
            return self.module(*given)
        count = next(tensor.shape[axis] for tensor, axis in zip(given, self.inputs, strict=True) if axis is not None)
        if count <= self.rows:
            return self.module(*given)
        number = math.ceil(count / self.rows)
        ends = [count * part // number for part in range(number + 1)]
        answers = [self.module(*self._part(given, start, end)) for start, end in itertools.pairwise(ends)]
        return _join(answers, iter(self.outputs))

    def _part(self, given: tuple[torch.Tensor, ...], start: int, end: int) -> list[torch.Tensor]:
        return [
            tensor if axis is None else tensor.narrow(axis, start, end - start)
            for tensor, axis in zip(given, self.inputs, strict=True)
        ]


def _join(answers: list[Any], axes: Any) -> Any:
    first = answers[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(answers, next(axes))
    if isinstance(first, Mapping):
        made = {key: _join([answer[key] for answer in answers], axes) for key in first}
        return made if type(first) is dict else type(first)(**made)
    if isinstance(first, tuple | list):
        inner = [_join(list(items), axes) for items in zip(*answers, strict=True)]
        return type(first)(*inner) if hasattr(first, "_fields") else type(first)(inner)
    return first
