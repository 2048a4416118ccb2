"""The best clusters there are, of numbers on a line: dynamic programming.

Ckmeans.1d.dp (Wang, Song, 2011) in ``O(k n log n)``: where the last cluster begins never goes back as more numbers are
taken in, so that each row of the table is found by halves. All halves of one size are found at once, in NumPy.
"""

from __future__ import annotations

import numpy as np

from tauten.make.passes.compress._kmeans import Floats, Ints, running


class Optimal:
    """The groups of ``points`` ``(n,)``, rising, whose squared errors, times ``mass`` ``(n,)``, are least together.

    What is found for some number of groups is kept for greater ones.
    """

    def __init__(self, points: Floats, mass: Floats) -> None:
        self._table = _Table(points, mass)
        self._count = len(points)
        self._best = self._table.cost(np.zeros(self._count + 1, np.int64), np.arange(self._count + 1))
        self._begins: list[Ints] = []

    def centres(self, clusters: int) -> Floats:
        """The means of so many groups, rising; at most as many as there are points."""
        clusters = min(clusters, self._count)
        while len(self._begins) < clusters - 1:
            self._best, begin = _row(self._table, self._best, len(self._begins) + 1)
            self._begins.append(begin)
        ends = np.empty(clusters + 1, np.int64)
        ends[0], ends[clusters] = 0, self._count
        for number in range(clusters - 1, 0, -1):
            ends[number] = self._begins[number - 1][ends[number + 1]]
        centres: Floats = np.diff(self._table.sums[ends]) / np.diff(self._table.mass[ends])
        return centres


class _Table:
    """What a cluster from one position up to another costs."""

    def __init__(self, points: Floats, mass: Floats) -> None:
        self.mass, self.sums = running(mass), running(mass * points)
        self._squares = running(mass * points**2)

    def cost(self, begin: Ints, end: Ints) -> Floats:
        """The squared error of the points in ``begin`` to ``end``, of many at once; 0 where there are none."""
        mass = self.mass[end] - self.mass[begin]
        sums = self.sums[end] - self.sums[begin]
        inside = np.where(mass > 0, mass, 1)
        return np.maximum(self._squares[end] - self._squares[begin] - sums**2 / inside, 0.0)


def _row(table: _Table, before: Floats, number: int) -> tuple[Floats, Ints]:
    """With one cluster more than the ``number`` of ``before``: the least error of the first points, and where the last
    cluster begins; both by how many points there are."""
    count = len(before) - 1
    best, begins = np.full(count + 1, np.inf), np.zeros(count + 1, np.int64)
    low, high = np.array([number + 1]), np.array([count])
    first, last = np.array([number]), np.array([count - 1])
    while len(low):
        middle = (low + high) // 2
        till = np.minimum(last, middle - 1)
        sizes = till - first + 1
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        begin = np.arange(int(sizes.sum())) - np.repeat(starts - first, sizes)
        error = before[begin] + table.cost(begin, np.repeat(middle, sizes))
        least = np.minimum.reduceat(error, starts)
        hits = np.flatnonzero(error == np.repeat(least, sizes))
        chosen = begin[hits[np.searchsorted(hits, starts)]]
        best[middle], begins[middle] = least, chosen
        low, high, first, last = (
            np.concatenate(pair) for pair in ((low, middle + 1), (middle - 1, high), (first, chosen), (chosen, last))
        )
        open_ = low <= high
        low, high, first, last = low[open_], high[open_], first[open_], last[open_]
    return best, begins
