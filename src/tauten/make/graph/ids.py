"""Which elements of which dimensions are one and the same channel: a union-find over arrays of ids."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

IdArray = npt.NDArray[np.int64]


class Ids:
    """Ids ``0, 1, …`` in disjoint sets, any of which may be frozen with a reason.

    Union-find after Tarjan (1975) with path compression; the smaller root wins, and whole arrays are merged at once,
    so that the cost is a few NumPy calls an operation, not a Python step a channel.
    """

    def __init__(self) -> None:
        self._parent: IdArray = np.empty(1024, dtype=np.int64)
        self._count = 0
        self._frozen: list[tuple[IdArray, str]] = []

    def __len__(self) -> int:
        return self._count

    def fresh(self, count: int) -> IdArray:
        """``count`` new ids, each a set of its own."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            grown = np.empty(max(self._count, 2 * len(self._parent)), dtype=np.int64)
            grown[:start] = self._parent[:start]
            self._parent = grown
        made = np.arange(start, self._count, dtype=np.int64)
        self._parent[start : self._count] = made
        return made

    def find(self, ids: IdArray) -> IdArray:
        """The root of each id, in the same shape."""
        root = self._parent[ids]
        while not np.array_equal(root, above := self._parent[root]):
            root = above
        self._parent[ids] = root
        return root

    def union(self, left: IdArray, right: IdArray) -> None:
        """Merge ``left[k]`` with ``right[k]`` for each ``k``; shapes broadcast."""
        one, other = (array.ravel() for array in np.broadcast_arrays(left, right))
        while True:
            one, other = self.find(one), self.find(other)
            apart = one != other
            if not apart.any():
                return
            one, other = one[apart], other[apart]
            # An id may be told to follow several roots at once: the smallest wins, the rest follow in the next round.
            np.minimum.at(self._parent, np.maximum(one, other), np.minimum(one, other))

    def freeze(self, ids: IdArray, reason: str) -> None:
        """Say that these ids can never be removed. The first reason of a set is the one that is told."""
        if ids.size:
            self._frozen.append((np.unique(ids), reason))

    def frozen(self) -> tuple[IdArray, list[str]]:
        """For each id the index of its set's reason in the list, or -1 where the set is free."""
        reasons: list[str] = []
        known: dict[str, int] = {}
        of_root = np.full(self._count, -1, dtype=np.int64)
        for ids, reason in self._frozen:
            index = known.setdefault(reason, len(known))
            if index == len(reasons):
                reasons.append(reason)
            roots = self.find(ids)
            roots = roots[of_root[roots] < 0]
            of_root[roots] = index
        return of_root[self.find(np.arange(self._count, dtype=np.int64))], reasons


def concatenate(arrays: Iterable[IdArray]) -> IdArray:
    """The arrays one after the other; an empty array where there are none."""
    listed = list(arrays)
    return np.concatenate(listed) if listed else np.empty(0, dtype=np.int64)
