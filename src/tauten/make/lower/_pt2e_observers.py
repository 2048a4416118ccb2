"""What PyTorch's quantizers ask for scales: ranges by the plan's own methods, and grids that were already decided.

Imports torchao: to be imported only where it is there (``_pt2e``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import ObserverBase

from tauten.make.layers.quantized import Grid
from tauten.make.model.ranges import BINS, CHOOSERS, Range

_SMALLEST = 2.0**-20  # of a scale: what is zero throughout is rounded by this one


class RangeObserver(ObserverBase):  # type: ignore[misc]
    """The range of one activation: smallest and largest value, and in a second walk a histogram between them.

    A range always holds 0, which padding needs. ``fixed`` is a range that was decided before.
    """

    def __init__(self, dtype: torch.dtype, quant_min: int, quant_max: int, method: str = "minmax", **_: Any) -> None:
        super().__init__(dtype=dtype)
        self.qscheme = torch.per_tensor_affine
        self.quant_min, self.quant_max = quant_min, quant_max
        self.method = method
        self.ends: Range = (0.0, 0.0)
        self.counts = np.zeros(BINS)
        self.counting = False
        self.fixed: Range | None = None

    def start_counting(self) -> None:
        """Begin the second walk."""
        self.counting = True

    def forward(self, x: Tensor) -> Tensor:
        values = x.detach().reshape(-1)
        if values.numel() and values.is_floating_point():
            if self.counting and self.ends[0] < self.ends[1]:
                array = values.float().numpy()
                # Zeros, of which a ReLU makes many, are exact in any range and would outweigh all else.
                self.counts += np.histogram(array[array != 0], bins=BINS, range=self.ends)[0]
            elif not self.counting:
                low, high = (float(end) for end in torch.aminmax(values.nan_to_num(posinf=0, neginf=0)))
                self.ends = min(self.ends[0], low), max(self.ends[1], high)
        return x

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        low, high = self.fixed or self.ends
        if self.fixed is None and self.counts.any():
            low, high = CHOOSERS[self.method](self.counts, self.ends)
        scale = max((high - low) / (self.quant_max - self.quant_min), _SMALLEST)
        zero_point = min(max(self.quant_min - round(low / scale), self.quant_min), self.quant_max)
        return torch.tensor([scale]), torch.tensor([zero_point])


class PerChannelWeightObserver(ObserverBase):  # type: ignore[misc]
    """A weight's scales, symmetric, from its largest magnitude a channel; or those of a grid that it lies on.

    With ``whole``, all channels have the largest one's. The words PerChannel in the name make torchao tell the axis.
    """

    def __init__(
        self, dtype: torch.dtype, quant_min: int, quant_max: int, ch_axis: int = 0, whole: bool = False, **_: Any
    ) -> None:
        super().__init__(dtype=dtype)
        self.qscheme = torch.per_channel_symmetric
        self.quant_min, self.quant_max, self.ch_axis = quant_min, quant_max, ch_axis
        self.whole = whole
        self.grid: Grid | None = None
        self.held = False
        self._scale = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        weight = x.detach().float()
        largest = weight.abs().amax(dim=[dim for dim in range(weight.dim()) if dim != self.ch_axis])
        if self.whole:
            largest = largest.max().expand_as(largest).contiguous()
        self._scale = (largest / self.quant_max).clamp_min(_SMALLEST)
        grid = self.grid
        if grid is not None and grid.axis in (self.ch_axis, None) and not grid.group and _symmetric(grid):
            # Folding a batch norm into a weight takes it off its grid.
            self.held = bool(torch.allclose(grid.decode(grid.encode(weight)), weight, rtol=1e-4, atol=1e-7))
            if self.held:
                self._scale = grid.scale.detach().float().reshape(-1).expand_as(largest).contiguous()
        return x

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        return self._scale, torch.zeros_like(self._scale, dtype=torch.int64)


def _symmetric(grid: Grid) -> bool:
    return grid.zero_point is None or not bool(grid.zero_point.any())
