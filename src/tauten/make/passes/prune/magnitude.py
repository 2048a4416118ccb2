"""Sets the smallest weights to zero (Han et al., 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from tauten.errors import PassError, RecipeError
from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.passes.prune._kinds import Kind, by_kind
from tauten.make.passes.prune._pattern import Pattern, fit_pattern
from tauten.make.passes.prune._share import check_share, sparsity
from tauten.make.passes.prune._smallest import lamp, magnitude, zero_smallest

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude(Pass):
    """Zeros for the ``ratio`` of weights that are nearest to zero.

    ``scope`` says whether the share is taken of each layer, of all weights together (``global``), or of all together
    by layer-adaptive scores (``lamp``; Lee et al., 2021), which spare the layers that a global threshold would empty.
    The count is exact at any size: ties are broken by position.

    Weights are parameters of two and more dimensions (linear, convolution, embedding). ``include`` may name
    ``biases`` and the parameters of ``norms`` besides; each kind is ranked by itself, for their sizes do not compare.

    ``pattern`` ``"N:M"`` keeps the N largest of every M weights that are summed one after the other: input features,
    or a convolution's input channels at one position of its kernel. It stands for its ratio ``1 - N/M``: ``ratio`` is
    left out or equal to it. Layers that it does not fit are left alone and told under ``refused``.
    """

    name: ClassVar[str] = "prune.magnitude"
    gives: ClassVar[frozenset[str]] = frozenset({SPARSE})

    ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    scope: Literal["layer", "global", "lamp"] = "layer"
    pattern: str = ""
    include: tuple[Kind, ...] = ("weights",)

    def __post_init__(self) -> None:
        check_share(self)
        if not self.include or set(self.include) - {"weights", "biases", "norms"}:
            raise RecipeError(f"{self.name}: include: expected some of weights, biases and norms, got {self.include}")
        if self.pattern and tuple(self.include) != ("weights",):
            raise RecipeError(f"{self.name}: include: a pattern holds for weights alone, got {self.include}")

    def __call__(self, model: Model, context: Context) -> Change:
        kinds = {kind: tensors for kind, tensors in by_kind(model.module).items() if kind in self.include}
        chosen = {name: tensor for tensors in kinds.values() for name, tensor in tensors.items()}
        if not chosen:
            raise PassError(f"the model has no {' or '.join(self.include)} to prune")
        notes: dict[str, Any] = {}
        if self.pattern:
            masks, notes["refused"] = fit_pattern(model.module, chosen, Pattern.parse(self.pattern, self.name))
            with torch.no_grad():
                for name, mask in masks.items():
                    chosen[name].masked_fill_(mask, 0)
        else:
            score = lamp if self.scope == "lamp" else magnitude
            for tensors in kinds.values():
                listed = list(tensors.values())
                for together in [[tensor] for tensor in listed] if self.scope == "layer" else [listed]:
                    zero_smallest(together, self.ratio or 0.0, score)
        return Change(model.module, {**notes, **sparsity(chosen)})
