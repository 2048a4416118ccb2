"""Modules in 16 bits: what is cast on the way into them, with names and structure of the model as they were.

Casts are hooks rather than modules around modules, so that code which reaches for ``self.head.weight`` still finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class CastInputs:
    """A forward pre-hook: tensors of one of the dtypes ``of`` come in as ``to``."""

    to: torch.dtype
    of: tuple[torch.dtype, ...]

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return cast(args, self.to, self.of), cast(kwargs, self.to, self.of)


@dataclass(frozen=True)
class CastOutputs:
    """A forward hook: tensors of 16 bits go out in float32."""

    def __call__(self, module: nn.Module, args: Any, out: Any) -> Any:
        return cast(out, torch.float32, HALF)


def cast(value: Any, to: torch.dtype, of: tuple[torch.dtype, ...]) -> Any:
    """The same structure of tuples, lists and mappings, in which tensors of the dtypes ``of`` are ``to``.

    Where nothing is to be cast, it is the same object.
    """
    if isinstance(value, torch.Tensor):
        return value.to(to) if value.dtype in of else value
    if isinstance(value, Mapping):
        made = {key: cast(inner, to, of) for key, inner in value.items()}
        if all(made[key] is inner for key, inner in value.items()):
            return value
        # A class of its own, such as the outputs of transformers' models, is made of its entries by name.
        return made if type(value) is dict else type(value)(**made)
    if isinstance(value, tuple | list):
        inner = [cast(item, to, of) for item in value]
        if all(new is old for new, old in zip(inner, value, strict=True)):
            return value
        return type(value)(*inner) if hasattr(value, "_fields") else type(value)(inner)
    return value


def tensors(value: Any) -> list[torch.Tensor]:
    """Every tensor of the structure, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for inner in value.values() for tensor in tensors(inner)]
    if isinstance(value, tuple | list):
        return [tensor for inner in value for tensor in tensors(inner)]
    return []
