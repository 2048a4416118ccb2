"""Rounding a matrix number by number, what is left taking up what rounding lost, for the least error and bits.

The error of a matrix is ``tr(G E H E^T)``: ``E`` what rounding changes, ``H`` the mean of ``x x^T`` over inputs, ``G``
that of ``g g^T`` over gradients of the answers (Martens and Grosse, 2015). With both, the numbers are rounded in
diagonals, as each waits only for those before it in its row and in its column. Sources: Frantar et al., 2023 (columns
in turn), Babai, 1986 (the nearest plane, of which that is an instance); rate in the choice as in Sullivan and Wiegand,
1998.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tauten.make.passes.compress._steps import LARGEST_LEVEL
from tauten.make.passes.compress._symbols import Symbols

_BLOCK: Final = 64
_ROWS: Final = 8192


@dataclass(frozen=True)
class Factor:
    """One side of a curvature: ``root`` is upper with ones on its diagonal, ``power`` what is left of each number.

    ``power`` is ``(n,)``, the curvature along each number when those after it are free to answer; after rounding number
    ``i`` with error ``e``, those after it move by ``-e * root[i]``. ``root`` is ``None`` where they are not related.
    """

    power: Tensor
    root: Tensor | None = None


def factor(moment: Tensor, damping: float) -> Factor:
    """The factor of a symmetric ``(n, n)`` moment, to whose diagonal ``damping`` times its mean is added.

    What cannot be inverted, and a vector ``(n,)``, is taken as unrelated.
    """
    if moment.ndim == 1:
        return Factor(_floor(moment.double(), damping).float())
    moment = moment.double()
    diagonal = _floor(moment.diagonal(), damping)
    damped = moment.clone()
    damped.diagonal().copy_(diagonal)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if not int(failed):
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed):
            own = upper.diagonal()
            return Factor((1 / own.square()).float(), (upper / own[:, None]).float())
    return Factor(diagonal.float())


def _floor(diagonal: Tensor, damping: float) -> Tensor:
    mean = float(diagonal.mean()) or 1.0
    return diagonal + damping * mean


@dataclass(frozen=True)
class Rule:
    """How a number is chosen: the nearest multiple of its step, or the one before, where bits are worth it.

    ``steps`` ``(rows,)`` are the rows' steps, ``slope`` the error that one bit is worth; ``symbols`` says what bits a
    number takes.
    """

    steps: Tensor
    slope: float = 0.0
    symbols: Symbols | None = None

    def choose(
        self, wanted: Tensor, steps: Tensor, rows: Tensor | slice, columns: Tensor | slice | int, power: Tensor
    ) -> Tensor:
        """Whole numbers for ``wanted``; ``power`` is the error's weight at each; all of one shape, as ``steps`` are."""
        exact = wanted / steps
        nearest = exact.round().clamp_(-LARGEST_LEVEL, LARGEST_LEVEL)
        if self.symbols is None or not self.slope:
            return nearest
        inner = nearest - nearest.sign()
        weight = power * steps.square() / self.slope
        dear = (exact - nearest).square_() * weight + self.symbols.cost(rows, columns, nearest)
        cheap = (exact - inner).square_() * weight + self.symbols.cost(rows, columns, inner)
        return torch.where(cheap < dear, inner, nearest)


def round_columns(matrix: Tensor, inputs: Factor, outputs: Tensor, rule: Rule) -> Tensor:
    """Whole numbers for ``matrix`` ``(rows, columns)``, column by column; rows are weighted by ``outputs`` ``(rows,)``.

    Numbers that are 0 stay 0.
    """
    levels = torch.empty_like(matrix)
    for first in range(0, len(matrix), _ROWS):
        rows = slice(first, min(first + _ROWS, len(matrix)))
        levels[rows] = _columns(matrix[rows].clone(), inputs, outputs[rows], rule, rows)
    return levels


def _columns(wanted: Tensor, inputs: Factor, outputs: Tensor, rule: Rule, rows: slice) -> Tensor:
    kept = wanted != 0
    steps = rule.steps[rows]
    count = wanted.shape[1]
    if inputs.root is None:
        power = outputs[:, None] * inputs.power
        return rule.choose(wanted, steps[:, None], rows, slice(0, count), power) * kept
    # Transposed: each column lies in one piece.
    left, levels = wanted.T.contiguous(), torch.empty(wanted.shape[::-1])
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = torch.empty((end - start, len(wanted)))
        for column in range(start, end):
            now = left[column]
            chosen = rule.choose(now, steps, rows, column, outputs * inputs.power[column]) * kept[:, column]
            levels[column] = chosen
            error = errors[column - start]
            torch.sub(now, chosen * steps, out=error)
            if column + 1 < end:
                left[column + 1 : end].addr_(inputs.root[column, column + 1 : end], error, alpha=-1)
        if end < count:
            left[end:].addmm_(inputs.root[start:end, end:].T, errors, alpha=-1)
    return levels.T


def round_diagonals(matrix: Tensor, inputs: Factor, outputs: Factor, rule: Rule) -> Tensor:
    """Whole numbers for ``matrix`` ``(rows, columns)``, in diagonals, errors taken up along rows and columns.

    Both factors need roots. Numbers that are 0 stay 0.
    """
    across, down = inputs.root, outputs.root
    if across is None or down is None:
        raise ValueError("round_diagonals: expected factors with roots")
    rows, columns = matrix.shape
    kept = matrix != 0
    levels = torch.zeros_like(matrix)
    # What a number shall be by its row's errors alone, and, transposed, what its column's add to that.
    target, shift = matrix.clone(), torch.zeros((columns, rows))
    for diagonal in range(rows + columns - 1):
        first, last = max(0, diagonal - columns + 1), min(rows - 1, diagonal)
        at = torch.arange(first, last + 1)
        of = diagonal - at
        low, high = diagonal - last, diagonal - first + 1
        own = target[at, of]
        wanted = own + shift[of, at]
        power = outputs.power[at] * inputs.power[of]
        width = rule.steps[at]
        chosen = rule.choose(wanted, width, at, of, power) * kept[at, of]
        levels[at, of] = chosen
        value = chosen * width
        if low + 1 < columns:
            ahead = across[low:high, low + 1 :].flip(0)
            target[first : last + 1, low + 1 :].addcmul_((own - value)[:, None], ahead, value=-1)
        if first + 1 < rows:
            below = down[first : last + 1, first + 1 :].flip(0)
            shift[low:high, first + 1 :].addcmul_((wanted - value).flip(0)[:, None], below, value=-1)
    return levels
