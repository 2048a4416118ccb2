"""Which parameters of a module can be put on grids, and what is known of how each is used."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tauten.make.passes.quantize._matrix import fits

Kind = Literal["product", "table", "plain", "vector"]


@dataclass(frozen=True)
class Site:
    """A parameter: ``path`` is its name in the module.

    A ``product`` is the weight of a linear layer or a convolution that alone owns it, a ``table`` that of an embedding;
    ``layer`` is that layer. ``plain`` are other parameters of two dimensions and more, of which only the sizes of
    gradients are known; a ``vector`` has one, or none.
    """

    path: str
    kind: Kind
    parameter: nn.Parameter
    layer: Any = None

    @property
    def weight(self) -> Tensor:
        """The numbers, without gradients, in the parameter's own memory."""
        return self.parameter.detach()

    @property
    def groups(self) -> int:
        """How many independent matrices it holds."""
        return int(getattr(self.layer, "groups", 1)) if self.kind == "product" else 1

    def matrix(self) -> Tensor:
        """The numbers as ``(rows, columns)``; rows are outputs of a product, entries of a table."""
        return self.weight.reshape(len(self.weight) if self.weight.ndim > 1 else 1, -1)


def find_sites(module: nn.Module) -> tuple[list[Site], dict[str, str]]:
    """The parameters that can be rounded, each once, in the module's order; and by name why others cannot."""
    owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                owners[id(parameter)].append((part, name))
    sites, refused = [], {}
    for path, parameter in module.named_parameters():
        why = _unfit(path, parameter)
        if why:
            refused[path] = why
        else:
            sites.append(_site(path, parameter, owners[id(parameter)]))
    return sites, refused


def _unfit(path: str, parameter: nn.Parameter) -> str:
    if "parametrizations." in path:
        return "what is used is computed from it at each call"
    if parameter.dtype != torch.float32:
        return f"it is {str(parameter.dtype).removeprefix('torch.')}, not float32"
    if not parameter.numel():
        return "it is empty"
    if not bool(torch.isfinite(parameter).all()):
        return "it holds numbers that are not finite"
    if not bool(torch.isfinite(parameter.detach().square().sum())):
        return "it holds numbers whose squares float32 does not"
    return ""


def _site(path: str, parameter: nn.Parameter, owners: list[tuple[nn.Module, str]]) -> Site:
    if parameter.ndim < 2:
        return Site(path, "vector", parameter)
    if len(owners) == 1:
        layer, name = owners[0]
        own = type(layer).forward
        if name == "weight" and fits(layer) and own in (nn.Linear.forward, *(k.forward for k in _CONVOLUTIONS)):
            return Site(path, "product", parameter, layer)
        if name == "weight" and isinstance(layer, nn.Embedding) and own is nn.Embedding.forward:
            return Site(path, "table", parameter, layer)
    return Site(path, "plain", parameter)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
