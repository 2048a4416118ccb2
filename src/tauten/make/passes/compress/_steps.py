"""Steps of grids that a codec finds again: few significant bits, so that no multiple of one is rounded."""

from __future__ import annotations

from typing import Final, overload

import torch
from torch import Tensor

LARGEST_LEVEL: Final = 4095
"""The largest whole number whose product with a short step is exact in float32: 12 bits times 12 bits are 24."""
_UNITS: Final = 4096.0


@overload
def short_step(step: Tensor) -> Tensor: ...
@overload
def short_step(step: float) -> float: ...
def short_step(step: Tensor | float) -> Tensor | float:
    """The nearest number of at most 12 significant bits, for each of a tensor of any shape (of the same dtype), or one.

    ``step * q`` is then exact in float32 for whole ``q`` up to ``LARGEST_LEVEL`` in magnitude, and as all of an array's
    values are whole multiples of it, the step can be found from them alone.
    """
    if isinstance(step, Tensor):
        mantissa, exponent = torch.frexp(step)
        return torch.ldexp((mantissa * _UNITS).round_() / _UNITS, exponent)
    return float(short_step(torch.tensor(step, dtype=torch.float64)))
