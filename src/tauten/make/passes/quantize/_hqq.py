"""Zero points found without data, so that few weights far out do not move all the others (HQQ)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from tauten.make.layers.quantized import Grid
from tauten.make.passes.quantize._scales import from_cells, to_cells

_NORM: Final = 0.7  # of the error: below 1, so that a few large ones cost little
_STEPS: Final = 20
_WEIGHT, _GROWTH = 10.0, 1.01
_SHARES: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of the span, from each of which a search starts


def shift_grid(weight: Tensor, grid: Grid) -> Grid:
    """``grid`` with scales and whole zero points of their own for each of its cells.

    From the span of a cell's numbers, zero points and the error are fitted in turn (half-quadratic splitting). Of what
    comes of several spans, each cell keeps what costs it the least squared error.

    Source: Badri and Shaji, 2023, with zero points that are whole, as engines want them, and several spans.
    """
    cells = to_cells(weight, grid.axis, grid.group)
    half = 2 ** (grid.bits - 1)
    # 0 is always inside, so that it stays exact.
    low, high = cells.amin(1).clamp_max(0)[:, None], cells.amax(1).clamp_min(0)[:, None]
    best: Tensor | None = None
    scale, zero = torch.ones_like(low), torch.zeros_like(low)
    for share in _SHARES:
        step = (high - low) * share / (2 * half - 1)
        step = torch.where(step < torch.finfo(torch.float32).tiny, torch.ones_like(step), step)
        first = -half - low * share / step
        for tried in (first.round(), _fit(cells, step, first, half).round()):
            tried = tried.clamp(-half, half - 1)
            error = (_decode(cells, step, tried, half) - cells).square_().sum(1, keepdim=True)
            better = torch.ones_like(error, dtype=torch.bool) if best is None else error < best
            scale, zero = torch.where(better, step, scale), torch.where(better, tried, zero)
            best = error if best is None else torch.minimum(best, error)
    shape = (weight, grid.axis, grid.group)
    zero_point = from_cells(zero[:, 0], *shape).to(torch.int8)
    return replace(grid, scale=from_cells(scale[:, 0], *shape), zero_point=zero_point)


def _fit(cells: Tensor, step: Tensor, zero: Tensor, half: int) -> Tensor:
    numbers, weight = cells / step, _WEIGHT
    for _ in range(_STEPS):
        codes = (numbers + zero).round().clamp(-half, half - 1)
        off = numbers + zero - codes
        # The proximal step of the norm: what is left of an error when its small part is taken for noise.
        left = (off.abs() - off.abs().clamp_min(1e-12) ** (_NORM - 1) / weight).clamp_min(0)
        zero = (codes - numbers + off.sign() * left).mean(1, keepdim=True)
        weight *= _GROWTH
    return zero


def _decode(cells: Tensor, step: Tensor, zero: Tensor, half: int) -> Tensor:
    # As ``Grid`` encodes: the number is rounded first, and the zero point added.
    return ((cells / step).round().add_(zero).clamp_(-half, half - 1) - zero) * step
