"""Which parameters are weights, biases, and those of norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

Kind = Literal["weights", "biases", "norms"]
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def by_kind(module: nn.Module) -> Mapping[Kind, dict[str, nn.Parameter]]:
    """Each tensor once, however many names it has, under its first.

    ``norms`` are all parameters of normalization layers, those of a library's own kind told by a class name with
    "norm" in it; ``weights`` have two and more dimensions; ``biases`` have fewer and are called so. What is left, such
    as the scale of a layer's output, is of no kind.
    """
    found: dict[Kind, dict[str, nn.Parameter]] = {"weights": {}, "biases": {}, "norms": {}}
    of_norms = {id(tensor) for owner in module.modules() if _is_norm(owner) for tensor in owner.parameters(False)}
    for name, tensor in module.named_parameters():
        if not tensor.numel():
            continue
        if id(tensor) in of_norms:
            found["norms"][name] = tensor
        elif tensor.ndim >= 2:
            found["weights"][name] = tensor
        elif "bias" in name.rpartition(".")[2]:
            found["biases"][name] = tensor
    return found


def _is_norm(owner: nn.Module) -> bool:
    if isinstance(owner, _NORMS):
        return True
    own = list(owner.parameters(recurse=False))
    return "norm" in type(owner).__name__.lower() and bool(own) and all(tensor.ndim < 2 for tensor in own)
