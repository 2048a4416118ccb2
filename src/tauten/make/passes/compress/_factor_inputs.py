"""What the rows that a layer multiplies are like: their mean, and how their numbers go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from tauten.make.passes.quantize._calibrate import Data, in_parts, watching
from tauten.make.passes.quantize._matrix import as_rows

_MOST_RELATED: Final = 4096
"""Of rows of more numbers only their own squares are kept: a matrix of all pairs would not be worth its memory."""
_TRUST: Final = 4.0


@dataclass(frozen=True)
class Inputs:
    """Of ``rows`` rows that a layer multiplies, ``mean`` ``(inputs,)`` and ``covariance`` ``(inputs, inputs)``, or
    ``(inputs,)`` of long rows: its diagonal. Of a convolution, rows are patches: channels x kernel. In float32, for
    there are many of these at once."""

    mean: Tensor
    covariance: Tensor
    rows: int

    def moment(self, centred: bool) -> Tensor:
        """The second moment in float64, about the mean or about zero.

        Few rows say little of directions that they do not have, so that it is drawn towards what all directions have
        alike, the more the fewer there are (shrinkage, after Ledoit, Wolf, 2004).
        """
        found, mean = self.covariance.double(), self.mean.double()
        if found.ndim == 1:
            return found if centred else found + mean.square()
        if not centred:
            found += torch.outer(mean, mean)
        share = len(found) / (len(found) + _TRUST * self.rows)
        even = found.diagonal().mean()
        found.mul_(1 - share).diagonal().add_(share * even)
        return found


class _Sums:
    def __init__(self, seed: int) -> None:
        self.rows = 0
        self.total: Any = 0.0
        self.products: Any = 0.0
        self._draw = torch.Generator().manual_seed(seed)

    def add(self, layer: nn.Module, x: Tensor, answer: Tensor) -> None:
        rows = as_rows(layer, x, self._draw)[0]
        if not len(rows):
            return
        self.rows += len(rows)
        self.total = self.total + rows.sum(0, dtype=torch.float64)
        wide = rows.shape[1] > _MOST_RELATED
        self.products = self.products + (rows.square().sum(0) if wide else rows.T @ rows).double()

    def inputs(self) -> Inputs | None:
        """``None`` where nothing was seen, or numbers that are not finite."""
        if not self.rows or not bool(torch.isfinite(self.products).all()):
            return None
        mean = self.total / self.rows
        found = self.products / self.rows
        found -= mean.square() if found.ndim == 1 else torch.outer(mean, mean)
        (found if found.ndim == 1 else found.diagonal()).clamp_(min=0)
        return Inputs(mean.float(), found.float(), self.rows)


def find_inputs(
    module: nn.Module, layers: Mapping[str, nn.Module], data: Data, seed: int
) -> Iterator[tuple[str, Inputs | None]]:
    """What each layer multiplies, in the order of ``layers``: as many at once as memory allows, with a walk for each
    such part. Layers are linear ones and convolutions without groups."""
    for part in in_parts(layers, _sums_bytes):
        sums = {path: _Sums(seed) for path in part}
        with watching(part, {path: one.add for path, one in sums.items()}.__getitem__):
            data.walk(module)
        while sums:
            path = next(iter(sums))
            yield path, sums.pop(path).inputs()


def _sums_bytes(layer: nn.Module) -> int:
    width = layer.get_parameter("weight")[0].numel()
    return 8 * (width**2 if width <= _MOST_RELATED else width)
