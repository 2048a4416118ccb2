"""A budget divided over layers, so that the outputs move least."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tauten.errors import PassError
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.passes.quantize._calibrate import Data
from tauten.make.passes.quantize._noise import Noise


@dataclass(frozen=True)
class Point:
    """A way to treat one weight: what it takes, and by how much the outputs move."""

    choice: int
    size: float
    loss: float


class Probe:
    """Measures how far the outputs move, on calibration data, when one parameter alone is another."""

    def __init__(self, model: Model, context: Context, samples: int) -> None:
        self._module = model.module
        self._noise = Noise(Data(model, context, samples), model.module)

    def __call__(self, parameter: nn.Parameter, other: Tensor) -> float:
        """The noise's power over that of the outputs; of several outputs, the largest share."""
        was = parameter.detach().clone()
        parameter.data.copy_(other)
        try:
            return max(self._noise.shares(self._module).values(), default=0.0)
        finally:
            parameter.data.copy_(was)


def divide(curves: Mapping[str, Sequence[Point]], limit: float, what: str) -> dict[str, Point]:
    """The point of each curve, so that all sizes together are at most ``limit`` and the sum of losses is small.

    From the largest size on, that step on the lower convex hull of some curve is taken which adds the least loss for
    each byte it saves (greedy, which is the Lagrangian solution but for the last step: Shoham, Gersho, 1988). What is
    left then goes where it takes away most loss a byte. Raises ``PassError`` with the least possible where that is more
    than the limit; ``what`` says who asks, and of what the sizes are.
    """
    hulls = {name: hull(curve) for name, curve in curves.items()}
    at = dict.fromkeys(hulls, 0)
    total = sum(points[0].size for points in hulls.values())
    steps = [(_price(points[0], points[1]), name) for name, points in hulls.items() if len(points) > 1]
    heapq.heapify(steps)
    while total > limit:
        if not steps:
            raise PassError(f"{what}: expected room for at least {total:,.6g}, which is the least; got {limit:,.6g}")
        _, name = heapq.heappop(steps)
        points, here = hulls[name], at[name]
        total += points[here + 1].size - points[here].size
        at[name] = here + 1
        if here + 2 < len(points):
            heapq.heappush(steps, (_price(points[here + 1], points[here + 2]), name))
    chosen = {name: hulls[name][here] for name, here in at.items()}
    return _filled_up(chosen, curves, limit - total)


def hull(curve: Sequence[Point]) -> list[Point]:
    """The lower convex hull, from the largest size to the smallest: each step costs more a byte than the one before."""
    found: list[Point] = []
    for point in sorted(curve, key=lambda point: (-point.size, point.loss)):
        if found and point.loss <= found[-1].loss:  # smaller and no worse
            while found and point.loss <= found[-1].loss:
                found.pop()
        elif found and point.size == found[-1].size:
            continue
        while len(found) > 1 and _price(found[-2], found[-1]) >= _price(found[-1], point):
            found.pop()
        found.append(point)
    return found


def _filled_up(chosen: Mapping[str, Point], curves: Mapping[str, Sequence[Point]], left: float) -> dict[str, Point]:
    """``chosen`` with larger points in place of some, as far as ``left`` goes."""
    found = dict(chosen)
    while True:
        better = [
            (_price(point, found[name]), name, point)
            for name, curve in curves.items()
            for point in curve
            if 0 < point.size - found[name].size <= left and point.loss < found[name].loss
        ]
        if not better:
            return found
        _, name, point = max(better, key=lambda one: one[0])
        left -= point.size - found[name].size
        found[name] = point


def _price(large: Point, small: Point) -> float:
    return (small.loss - large.loss) / (large.size - small.size)
