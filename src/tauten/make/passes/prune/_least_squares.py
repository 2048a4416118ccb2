"""Ridge regression from sums over batches, with the strength chosen on batches that were held out."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the mean square of the inputs."""
FIRST = 4
"""The place of the one that is tried first."""
Fitted = tuple[torch.Tensor, torch.Tensor]
"""What to add to weight and bias."""


class Solution(NamedTuple):
    """What to add to a layer's weight, ``(out, in)``, and bias, ``(out,)``; and the share of the error that is left.

    The share is that of held-out samples; 1 where nothing helps.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    left: float


class Sums:
    """All that a linear regression of residuals ``(rows, out)`` on inputs ``(rows, in)`` needs; rows are added up."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.count = 0
        self.inputs = torch.zeros(inputs, dtype=torch.float64)
        self.residuals = torch.zeros(outputs, dtype=torch.float64)
        self.products = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.mixed = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.squares = 0.0

    def add(self, inputs: torch.Tensor, residuals: torch.Tensor) -> None:
        inputs, residuals = (rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in (inputs, residuals))
        self.count += len(inputs)
        self.inputs += inputs.sum(dim=0, dtype=torch.float64)
        self.residuals += residuals.sum(dim=0, dtype=torch.float64)
        self.products += inputs.T @ inputs
        self.mixed += inputs.T @ residuals
        self.squares += float(residuals.square().sum(dtype=torch.float64))

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        made = Sums(len(self.inputs), len(self.residuals))
        for name, value in vars(self).items():
            setattr(made, name, value + getattr(other, name))
        return made

    def centred(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``products`` and ``mixed`` about the means."""
        mean = self.inputs / self.count
        return self.products - torch.outer(mean, self.inputs), self.mixed - torch.outer(mean, self.residuals)

    def error(self, weight: torch.Tensor, bias: torch.Tensor) -> float:
        """The sum of squares that ``weight`` ``(out, in)`` and ``bias`` leave."""
        fitted = (weight @ self.products * weight).sum() + 2 * (weight @ self.inputs) @ bias + self.count * bias @ bias
        return float(self.squares + fitted - 2 * (weight * self.mixed.T).sum() - 2 * bias @ self.residuals)


def solve(fit: Sums, held_out: Sums, *, intercept: bool) -> Solution:
    """The ridge regression (Hoerl, Kennard, 1970) whose strength leaves the least error on ``held_out``.

    It shrinks towards no change of the layer. Where even the strongest one is worse than no change, so it is left.
    """
    nothing = Solution(torch.zeros_like(fit.mixed.T), torch.zeros_like(fit.residuals), 1.0)
    if not fit.count or not held_out.count or not held_out.squares > 0:
        return nothing
    tried: dict[int, tuple[float, Fitted | None]] = {}

    def error(place: int) -> float:
        if place not in tried:
            pair = _fitted(fit, STRENGTHS[place], intercept=intercept)
            found = math.inf if pair is None else held_out.error(*pair)
            tried[place] = (found if math.isfinite(found) else math.inf, pair)
        return tried[place][0]

    # Each trial factors a matrix. The error falls and then rises with the strength, so that a few of them do.
    best = FIRST
    for step in (1, -1):
        while 0 <= best + step < len(STRENGTHS) and error(best + step) < error(best):
            best += step
    if error(best) >= held_out.squares:
        return nothing
    of_all = _fitted(fit.plus(held_out), STRENGTHS[best], intercept=intercept) or tried[best][1]
    return nothing if of_all is None else Solution(*of_all, max(0.0, error(best)) / held_out.squares)


def _fitted(sums: Sums, strength: float, *, intercept: bool) -> Fitted | None:
    products, mixed = sums.centred() if intercept else (sums.products.clone(), sums.mixed)
    diagonal = products.diagonal()
    diagonal += strength * diagonal.mean()
    factor, fault = torch.linalg.cholesky_ex(products)
    if int(fault):
        return None
    weight = torch.cholesky_solve(mixed, factor).T
    if not torch.isfinite(weight).all():
        return None
    bias = (sums.residuals - weight @ sums.inputs) / sums.count if intercept else torch.zeros_like(sums.residuals)
    return weight, bias
