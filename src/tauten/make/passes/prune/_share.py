"""How much becomes zero: said by a ratio or by a pattern; and how much did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch

from tauten.errors import RecipeError
from tauten.make.passes.prune._pattern import Pattern

SCOPES = ("layer", "global", "lamp")
_CLOSE = 1e-6


class Shared(Protocol):
    """What passes that set weights to zero have in common."""

    @property
    def name(self) -> str: ...
    @property
    def ratio(self) -> float | None: ...
    @property
    def scope(self) -> Literal["layer", "global", "lamp"]: ...
    @property
    def pattern(self) -> str: ...


def check_share(step: Shared) -> float:
    """The share that becomes zero; ``RecipeError`` where ratio, scope and pattern do not fit together."""
    if step.scope not in SCOPES:
        raise RecipeError(f"{step.name}: scope: expected layer, global or lamp, got {step.scope!r}")
    if step.ratio is not None and not 0 <= step.ratio < 1:
        raise RecipeError(f"{step.name}: ratio: expected 0 or more and below 1, got {step.ratio}")
    if not step.pattern:
        if step.ratio is None:
            raise RecipeError(f"{step.name}: ratio: expected the share that becomes zero, or a pattern such as '2:4'")
        return step.ratio
    pattern = Pattern.parse(step.pattern, step.name)
    if step.scope != "layer":
        raise RecipeError(f"{step.name}: scope: a pattern takes the same share of each layer, so only 'layer' fits it")
    if step.ratio is not None and abs(step.ratio - pattern.ratio) > _CLOSE:
        raise RecipeError(
            f"{step.name}: ratio: the pattern {step.pattern} is a ratio of {pattern.ratio:.6g}; leave ratio out or "
            f"give that, got {step.ratio}"
        )
    return pattern.ratio


def sparsity(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Notes for the record: the share of zeros in all and in each tensor.

    ``held`` names the vectors among them: zeros in matrices and kernels stay zero in training by the fact that the
    model is sparse, those in vectors (a bias often starts at zero) only where a pass says that it made them.
    """
    zeros = {name: int((tensor == 0).sum()) for name, tensor in tensors.items()}
    return {
        "sparsity": sum(zeros.values()) / sum(tensor.numel() for tensor in tensors.values()),
        "layers": {name: zeros[name] / tensor.numel() for name, tensor in tensors.items()},
        "held": [name for name, tensor in tensors.items() if tensor.ndim < 2],
    }
