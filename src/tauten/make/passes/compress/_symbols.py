"""What whole numbers of a matrix cost in bits: one histogram of magnitudes for each size that is expected of them.

A matrix' numbers are not alike: rows and columns have sizes of their own, which an adaptive coder learns. Here the
product of both means sorts numbers into classes, each of which has a table of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_CLASSES: Final = 40
_AN_OCTAVE: Final = 4  # classes
_LOWEST: Final = -4.0  # log2 of the mean magnitude of the first class
_MOST: Final = 255  # magnitudes above cost two bits more for each octave
_ROWS: Final = 4096  # at once
_SMOOTHING: Final = 4.0  # numbers that a geometric distribution adds to a class


@dataclass(frozen=True)
class Symbols:
    """Classes ``(rows, columns)`` as ``uint8`` and bits ``(classes, magnitudes)``, the sign's among them."""

    classes: Tensor
    bits: Tensor

    def cost(self, rows: Tensor | slice, columns: Tensor | slice | int, levels: Tensor) -> Tensor:
        """Bits of ``levels`` at these places; all three are indexed together."""
        return self._look(self.classes[rows, columns], levels.abs())

    def total(self, levels: Tensor) -> float:
        """Bits of the whole matrix."""
        bits = 0.0
        for rows in _parts(levels):
            bits += float(self._look(self.classes[rows], levels[rows].abs()).sum(dtype=torch.float64))
        return bits

    def _look(self, classes: Tensor, sizes: Tensor) -> Tensor:
        found = self.bits[classes.long(), sizes.clamp(max=_MOST).long()]
        if float(sizes.max()) > _MOST:
            found = found + 2 * (sizes / _MOST).clamp_(min=1).log2_()
        return found


def read_symbols(levels: Tensor) -> Symbols:
    """What ``levels`` ``(rows, columns)``, whole numbers, cost by their own histograms."""
    size = levels.abs()
    rows = size.mean(1, dtype=torch.float64)
    columns = size.mean(0, dtype=torch.float64)
    mean = float(rows.mean()) or 1.0
    floor = 2.0**_LOWEST
    row_log = (rows / mean).clamp_(min=1e-6).log2_().float()
    column_log = columns.clamp_(min=floor * 1e-3).log2_().float()
    classes = torch.empty(levels.shape, dtype=torch.uint8)
    counts = torch.zeros(_CLASSES * (_MOST + 1), dtype=torch.float64)
    for part in _parts(levels):
        told = row_log[part, None] + column_log
        classes[part] = ((told - _LOWEST) * _AN_OCTAVE).round_().clamp_(0, _CLASSES - 1).byte()
        index = classes[part].long() * (_MOST + 1) + size[part].clamp(max=_MOST).long()
        counts += torch.bincount(index.flatten(), minlength=len(counts))
    return Symbols(classes, _bits(counts.reshape(_CLASSES, _MOST + 1)))


def _parts(matrix: Tensor) -> Iterator[slice]:
    """Rows in parts, so that what is computed on the way stays small."""
    return (slice(start, start + _ROWS) for start in range(0, len(matrix), _ROWS))


def _bits(counts: Tensor) -> Tensor:
    middle = 2.0 ** (_LOWEST + torch.arange(_CLASSES, dtype=torch.float64) / _AN_OCTAVE)
    ratio = (middle / (1 + middle))[:, None]
    magnitude = torch.arange(_MOST + 1, dtype=torch.float64)
    prior = (1 - ratio) * ratio**magnitude
    smooth = counts + _SMOOTHING * prior + 1e-9
    bits = -(smooth / smooth.sum(1, keepdim=True)).log2()
    bits[:, 1:] += 1
    return bits.float()
