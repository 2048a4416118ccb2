"""Sets the smallest weights to zero (Han et al., 2015)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
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
    ``scope`` says whether the share is taken of each layer, of all weights together (``global``), or of all together
    by layer-adaptive scores (``lamp``; Lee et al., 2021), which spare the layers that a global threshold would empty.
    The count is exact at any size: ties are broken by position.
    """

    name: ClassVar[str] = "prune.magnitude"
    gives: ClassVar[frozenset[str]] = frozenset({SPARSE})

    ratio: Annotated[float, Field(ge=0, lt=1)]
    scope: Literal["layer", "global", "lamp"] = "layer"

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise RecipeError(f"{self.name}: ratio: expected 0 or more and below 1, got {self.ratio}")
        if self.scope not in ("layer", "global", "lamp"):
            raise RecipeError(f"{self.name}: scope: expected layer, global or lamp, got {self.scope!r}")

    def __call__(self, model: Model, context: Context) -> Change:
        weights = dict(_weights(model.module))
        if not weights:
            raise PassError("the model has no weights of two or more dimensions")
        together = [[weight] for weight in weights.values()] if self.scope == "layer" else [list(weights.values())]
        for listed in together:
            zero_smallest(listed, self.ratio, lamp if self.scope == "lamp" else magnitude)
        zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
        total = sum(weight.numel() for weight in weights.values())
        notes = {
            "sparsity": sum(zeros.values()) / total,
            "layers": {name: zeros[name] / weight.numel() for name, weight in weights.items()},
        }
        return Change(model.module, notes)


Scores = npt.NDArray[np.floating[Any]]


def magnitude(weight: torch.Tensor) -> Scores:
    """The absolute value of each weight, flat."""
    return weight.detach().abs().float().cpu().reshape(-1).numpy()


def lamp(weight: torch.Tensor) -> Scores:
    """Each weight's square over the sum of its layer's squares that are at least as large, flat (Lee et al., 2021).

    The largest weight of a layer scores 1, so that no threshold below 1 empties a layer.
    """
    squares = magnitude(weight).astype(np.float64) ** 2
    order = np.argsort(squares, kind="stable")
    ascending = squares[order]
    rest = np.cumsum(ascending[::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = np.divide(ascending, rest, out=np.zeros_like(ascending), where=rest > 0)
    return scores


def zero_smallest(
    weights: Iterable[torch.Tensor], ratio: float, score: Callable[[torch.Tensor], Scores] = magnitude
) -> None:
    """Set exactly ``round(ratio * n)`` of the ``n`` numbers to zero, in place: those that score least."""
    listed = list(weights)
    sizes = [score(weight) for weight in listed]
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
