"""Rounding weights one column after another, the later ones making good what the earlier ones lost (GPTQ)."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_DAMPING: Final = 0.01  # of the mean diagonal, added to it: few samples leave directions that nothing is known of
_BLOCK: Final = 128


def round_in_turn(matrix: Tensor, scale: Tensor, zero_point: Tensor, bits: int, moment: Tensor) -> Tensor | None:
    """Codes for ``matrix``, all ``(groups, outputs, inputs)``; ``scale`` and ``zero_point`` are spread over it.

    ``moment`` is ``(groups, inputs, inputs)``, the mean of ``x x^T``. Columns are taken in the order of their inputs'
    power. Numbers that are 0 stay 0. ``None`` where the moments cannot be inverted.

    Source: Frantar et al., 2023, with scales fixed beforehand.
    """
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    order = torch.argsort(moment.diagonal(dim1=1, dim2=2).sum(0), descending=True)
    weight = matrix[:, :, order].clone()
    scale, zero_point = (part.expand_as(matrix)[:, :, order] for part in (scale, zero_point))
    kept = weight != 0
    inverse = _inverse_root(moment[:, order][:, :, order])
    if inverse is None:
        return None
    codes = torch.empty_like(weight)
    for start in range(0, weight.shape[2], _BLOCK):
        end = min(start + _BLOCK, weight.shape[2])
        errors = torch.zeros_like(weight[:, :, start:end])
        for column in range(start, end):
            now, step, zero = weight[:, :, column], scale[:, :, column], zero_point[:, :, column]
            code = torch.where(kept[:, :, column], (now / step).round().add(zero).clamp(low, high), zero)
            codes[:, :, column] = code
            error = (now - (code - zero) * step) / inverse[:, column, column, None]
            weight[:, :, column:end] -= error[:, :, None] * inverse[:, None, column, column:end]
            errors[:, :, column - start] = error
        weight[:, :, end:] -= errors @ inverse[:, start:end, end:]
    back = torch.empty_like(codes)
    back[:, :, order] = codes
    return back


def _inverse_root(moment: Tensor) -> Tensor | None:
    """The upper Cholesky factor of the damped moments' inverse."""
    moment = moment.double()
    diagonal = moment.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    # Inputs that are always 0 say nothing of their weights.
    fill = torch.where(mean > 0, mean, torch.ones_like(mean))
    damped = moment + torch.diag_embed(_DAMPING * fill + torch.where(diagonal == 0, fill, 0.0))
    root, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(root), upper=True)
    return None if bool(failed.any()) else upper.float()
