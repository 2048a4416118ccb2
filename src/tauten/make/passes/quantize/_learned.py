"""Rounding up or down as it serves the layer's outputs, learned by gradient (AdaRound)."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

STEPS: Final = 300
MOST_WORK: Final = 2**31
"""Products a step; a layer that needs more is rounded in turn instead, which costs as much as a few steps."""

_LEARNING_RATE: Final = 0.1
_WARM_UP: Final = 0.2  # of the steps, without the pull towards whole numbers
_PULL: Final = 15.0
_EXPONENTS: Final = (20.0, 2.0)  # of the pull, from first to last
_LOW, _HIGH = -0.1, 1.1  # what the sigmoid is stretched to, so that it can reach 0 and 1


def learn_rounding(matrix: Tensor, scale: Tensor, zero_point: Tensor, bits: int, moment: Tensor) -> Tensor:
    """Codes for ``matrix``, all ``(groups, outputs, inputs)``, each one of the two around its weight.

    The squared error of the outputs is ``D moment D^T`` of the weights' change ``D``; its gradient is known without
    data, so a step is one product of matrices. Numbers that are 0 stay 0. Starts from the weights' own fractions.

    Source: Nagel et al., 2020, on the second moments of the inputs in place of batches of them.
    """
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale, zero_point = scale.expand_as(matrix), zero_point.expand_as(matrix)
    down = (matrix / scale).floor()
    share = (matrix / scale - down).clamp(0.001, 0.999)
    down = down + zero_point
    kept = matrix != 0
    nearest = ((matrix / scale).round() + zero_point).clamp(low, high)
    baseline = error_of((nearest - zero_point) * scale - matrix, moment).clamp_min(1e-20)[..., None]
    free = torch.logit((share - _LOW) / (_HIGH - _LOW))
    first, second = torch.zeros_like(free), torch.zeros_like(free)
    for step in range(1, STEPS + 1):
        slope = torch.sigmoid(free)
        up = (slope * (_HIGH - _LOW) + _LOW).clamp(0, 1)
        inside = (up > 0) & (up < 1) & kept
        code = down + up
        change = (code.clamp(low, high) - zero_point) * scale - matrix
        gradient = 2 * (change @ moment) * scale / baseline * ((code >= low) & (code <= high))
        done = (step / STEPS - _WARM_UP) / (1 - _WARM_UP)
        if done > 0:
            course = (1 + math.cos(done * math.pi)) / 2
            exponent = _EXPONENTS[1] + (_EXPONENTS[0] - _EXPONENTS[1]) * course
            far = 2 * up - 1
            # Of 1 - |far|^exponent, a weight's part of what the row's error is measured in.
            gradient -= _PULL / matrix.shape[2] * 2 * exponent * far.abs() ** (exponent - 1) * far.sign()
        gradient *= inside * slope * (1 - slope) * (_HIGH - _LOW)
        # Adam (Kingma and Ba, 2015).
        first.mul_(0.9).add_(gradient, alpha=0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        rate = _LEARNING_RATE / (1 - 0.9**step)
        free -= rate * first / ((second / (1 - 0.999**step)).sqrt() + 1e-12)
    up = torch.where(kept, (free >= 0).float(), 0.0)
    return (down + up).clamp(low, high)


def error_of(change: Tensor, moment: Tensor) -> Tensor:
    """The mean squared change of each output, ``(groups, outputs)``, when its weights change by ``change``."""
    return ((change @ moment) * change).sum(-1).clamp_min(0)
