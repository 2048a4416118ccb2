"""k-means of numbers on a line, exact and fast.

On a line a cluster is an interval, so numbers are sorted once, and with running sums a round of Lloyd's algorithm
(1982) costs as much as there are clusters, not numbers: ten million weights take a sort and little more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ROUNDS: Final = 1000
_STILL: Final = 1e-7
"""The share of the error by which a round must make it smaller, or it is the last."""
_LEAST_MASS: Final = 1e-4
"""Of the mean: what nothing depends on counts a little too, or it would be put anywhere."""
_PLACES: Final = 4096


class Line:
    """Numbers in rising order, with running sums: what any number of clusterings of them need.

    ``values`` are ``(n,)`` finite numbers, at least one; ``importance`` ``(n,)`` of 0 or more multiplies each one's
    squared error (left out: 1), and is scaled to a mean of 1.
    """

    def __init__(self, values: npt.NDArray[Any], importance: npt.NDArray[Any] | None = None) -> None:
        mass: Floats | None = None
        if importance is None or not importance.any():
            self.points: Floats = np.sort(values).astype(np.float64)
        else:
            order = np.argsort(values, kind="stable")
            self.points = values[order].astype(np.float64)
            mass = importance[order].astype(np.float64)
            mass = np.maximum(mass / mass.mean(), _LEAST_MASS)
        # About the mean, for squares of numbers that all lie far from zero would leave no digits for their differences.
        self.centre = float(self.points.mean())
        self.points -= self.centre
        self._mass = None if mass is None else running(mass)
        moved = self.points if mass is None else self.points * mass
        self._sums = running(moved)
        self.squares = float(np.dot(moved, self.points))
        self.kept: dict[str, object] = {}
        """What one clustering has found out and another may use."""

    def __len__(self) -> int:
        return len(self.points)

    def mass(self, ends: Ints) -> Floats:
        """The mass between each position of ``ends`` and the next, ``(len(ends) - 1,)``."""
        return np.diff(ends.astype(np.float64) if self._mass is None else self._mass[ends])

    def sums(self, ends: Ints) -> Floats:
        """The sum of the numbers, each times its mass, between each position and the next."""
        return np.diff(self._sums[ends])

    def places(self, most: int = _PLACES) -> tuple[Floats, Floats]:
        """At most ``most`` points that stand for all, and their masses: each number where there are no more.

        Half of the borders between them share the numbers evenly, half the range, so that the few and large are told
        apart as well as the many and small.
        """
        count = len(self.points)
        if count <= most:
            ends = np.arange(count + 1)
        else:
            even = np.linspace(0, count, most // 2 + 1).astype(np.int64)
            wide = np.searchsorted(self.points, np.linspace(self.points[0], self.points[-1], most // 2 + 1)[1:-1])
            ends = np.unique(np.concatenate([even, wide]))
        mass = self.mass(ends)
        return self.sums(ends) / mass, mass


@dataclass(frozen=True)
class Clusters:
    """``values`` ``(k,)``, rising, each the mean of the ``counts`` numbers that are nearest to it.

    ``error`` is the sum of squared distances (each times its importance), ``rounds`` how often Lloyd's algorithm went
    through them.
    """

    values: Floats
    counts: Ints
    error: float
    rounds: int

    def index(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Which of the values is nearest to each number: its place, in the shape of ``values``."""
        bounds = (self.values[1:] + self.values[:-1]) / 2
        return np.searchsorted(bounds, values, side="right").astype(np.int32)


def entropy(counts: npt.NDArray[Any]) -> float:
    """Bits that one of the counted symbols takes at least, coded for itself (Shannon, 1948)."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def running(values: Floats) -> Floats:
    """Sums of all numbers before each position: ``(n,) -> (n + 1,)``."""
    found = np.zeros(len(values) + 1)
    np.cumsum(values, out=found[1:])
    return found


def refine(line: Line, start: Floats) -> Clusters:
    """Lloyd's algorithm from the centres ``start`` ``(k,)`` on, to where it stands still; never worse than they.

    ``start`` counts as ``line.points`` do, from the centre. A cluster that has lost all its numbers goes to the number
    that is worst off; where there are fewer different numbers than clusters, there are fewer clusters.
    """
    values = np.sort(start)
    error, rounds = math.inf, 0
    while rounds < _ROUNDS:
        rounds += 1
        ends = _ends(line, values)
        mass, sums = line.mass(ends), line.sums(ends)
        filled = mass > 0
        means = np.where(filled, sums / np.where(filled, mass, 1), values)
        found = _error(line, mass, sums)
        if filled.all() and not found < error * (1 - _STILL):
            break
        moved = means if filled.all() else _filled_up(line, means, ends, mass, sums)
        if len(moved) == len(values) and np.array_equal(moved, values):
            break
        values, error = np.sort(moved), found
    ends = _ends(line, values)
    mass, sums = line.mass(ends), line.sums(ends)
    filled = mass > 0
    means = sums[filled] / mass[filled]
    return Clusters(means + line.centre, np.diff(ends)[filled], _error(line, mass, sums), rounds)


def error_of(line: Line, centres: Floats) -> float:
    """The sum of squared distances of all numbers to the nearest of ``centres``, as they are."""
    values = np.sort(centres)
    ends = _ends(line, values)
    mass, sums = line.mass(ends), line.sums(ends)
    return max(0.0, float(line.squares - 2 * (sums * values).sum() + (mass * values**2).sum()))


def _ends(line: Line, values: Floats) -> Ints:
    """Where each value's numbers end, in ``line.points``: ``(k + 1,)`` from 0 on."""
    inner = np.searchsorted(line.points, (values[1:] + values[:-1]) / 2)
    return np.concatenate([[0], inner, [len(line)]]).astype(np.int64)


def _error(line: Line, mass: Floats, sums: Floats) -> float:
    filled = mass > 0
    return max(0.0, float(line.squares - (sums[filled] ** 2 / mass[filled]).sum()))


def _filled_up(line: Line, means: Floats, ends: Ints, mass: Floats, sums: Floats) -> Floats:
    """The means with those of empty clusters put to the numbers farthest from their own; without them where all are
    at home."""
    filled = np.flatnonzero(mass > 0)
    low, high = line.points[ends[filled]], line.points[ends[filled + 1] - 1]
    own = means[filled]
    farthest = np.where(own - low > high - own, low, high)
    worst = mass[filled] * (high - low) ** 2
    order = np.argsort(-worst, kind="stable")
    empty = len(means) - len(filled)
    able = order[worst[order] > 0][:empty]
    if not len(able):
        return own
    # Those for which there is no place yet wait beside the first.
    return np.concatenate([own, farthest[able], np.repeat(own[:1], empty - len(able))])
