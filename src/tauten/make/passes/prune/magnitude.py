"""Sets the smallest weights to zero (Han et al., 2015)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from tauten.errors import PassError, RecipeError
from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Change, Context, Pass

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude(Pass):
    """Zeros for the ``ratio`` of weights that are nearest to zero.

    Weights are parameters of two and more dimensions (linear, convolution, embedding); biases and norms stay whole.
    ``scope`` says whether the share is taken of each layer, or of all weights together.
    The count is exact at any size: ties are broken by position.
    """

    name: ClassVar[str] = "prune.magnitude"
    gives: ClassVar[frozenset[str]] = frozenset({SPARSE})

    ratio: Annotated[float, Field(ge=0, lt=1)]
    scope: Literal["layer", "global"] = "layer"

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise RecipeError(f"{self.name}: ratio: expected 0 or more and below 1, got {self.ratio}")
        if self.scope not in ("layer", "global"):
            raise RecipeError(f"{self.name}: scope: expected layer or global, got {self.scope!r}")

    def __call__(self, model: Model, context: Context) -> Change:
        weights = dict(_weights(model.module))
        if not weights:
            raise PassError("the model has no weights of two or more dimensions")
        together = [list(weights.values())] if self.scope == "global" else [[weight] for weight in weights.values()]
        for listed in together:
            zero_smallest(listed, self.ratio)
        zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
        total = sum(weight.numel() for weight in weights.values())
        notes = {
            "sparsity": sum(zeros.values()) / total,
            "layers": {name: zeros[name] / weight.numel() for name, weight in weights.items()},
        }
        return Change(model.module, notes)


def zero_smallest(weights: Iterable[torch.Tensor], ratio: float) -> None:
    """Set exactly ``round(ratio * n)`` of the ``n`` numbers to zero, in place: those smallest in magnitude."""
    listed = list(weights)
    sizes = [weight.detach().abs().float().cpu().reshape(-1).numpy() for weight in listed]
    joined = np.concatenate(sizes) if len(sizes) > 1 else sizes[0]
    count = round(ratio * joined.size)
    if not count:
        return
    limit = np.partition(joined, count - 1)[count - 1]
    below = joined < limit
    ties = np.flatnonzero(joined == limit)[: count - int(below.sum())]
    below[ties] = True
    start = 0
    with torch.no_grad():
        for weight in listed:
            chosen = torch.from_numpy(below[start : start + weight.numel()]).reshape(weight.shape)
            weight.masked_fill_(chosen.to(weight.device), 0)
            start += weight.numel()


def _weights(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Each tensor once, however many names it has."""
    return ((name, tensor) for name, tensor in module.named_parameters() if tensor.ndim >= 2 and tensor.numel())
