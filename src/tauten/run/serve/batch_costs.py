"""What a batch costs by its rows, learned from batches that ran: no clock, no I/O."""

from __future__ import annotations

from typing import Final

_WEIGHT: Final = 0.1
_TRIES: Final = 3
_EXPLORE: Final = 64
_BETTER: Final = 0.97
_LEAST_GAIN_NS: Final = 1_000_000
_LONGEST_WAIT_NS: Final = 20_000_000


class BatchCosts:
    """Times by batch size, in size classes of powers of two up to ``max_rows``, and what follows from them."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        classes = max_rows.bit_length() + 1
        self._per_row = [0.0] * classes  # mean ns a row, 0 where it has not run
        self._count = [0] * classes
        self._rows = [0.0] * classes  # mean rows of the batches in the class
        self._best = max_rows
        self._fit = 0.0, 0.0
        self._since = 0

    def add(self, rows: int, duration_ns: int) -> None:
        """A batch of ``rows`` ran for ``duration_ns``."""
        index = min(rows, self.max_rows).bit_length()
        count = self._count[index] = self._count[index] + 1
        weight = max(_WEIGHT, 1 / count)
        self._per_row[index] += weight * (duration_ns / rows - self._per_row[index])
        self._rows[index] += weight * (rows - self._rows[index])
        self._since += 1
        if self._since >= _EXPLORE:
            self._since = 0
            self._best, self._fit = self._choose(), self.line()

    def best_rows(self, waiting: int) -> int:
        """How many of ``waiting`` rows shall run at once: the size that takes least a row, as far as is known.

        Larger sizes are tried again now and then, since what they cost may have changed.
        """
        best = self._best
        if waiting <= best or self._since == 0:
            return min(waiting, self.max_rows) or 1
        return best

    def _choose(self) -> int:
        known = [index for index, count in enumerate(self._count) if count >= _TRIES]
        if not known:
            return self.max_rows
        largest = known[-1]
        least = min(self._per_row[index] for index in known)
        # The largest of those that are as good: more rows at once are fewer calls of everything else.
        good = max(index for index in known if self._per_row[index] * _BETTER <= least)
        if good == largest:
            return self.max_rows  # nothing larger is known to be worse
        return max(1, min(self.max_rows, (1 << good) - 1))

    def line(self) -> tuple[float, float]:
        """``(a, b)`` of the time ``a * rows + b`` in ns, from the smallest and the largest class that are known."""
        known = [index for index, count in enumerate(self._count) if count >= _TRIES]
        if len(known) < 2:
            return (self._per_row[known[0]], 0.0) if known else (0.0, 0.0)
        low, high = known[0], known[-1]
        t_low, t_high = self._per_row[low] * self._rows[low], self._per_row[high] * self._rows[high]
        slope = max(0.0, (t_high - t_low) / max(self._rows[high] - self._rows[low], 1e-9))
        return slope, max(0.0, t_low - slope * self._rows[low])

    def estimate_ns(self, rows: int) -> int:
        """What a batch of ``rows`` will take."""
        slope, fixed = self.line()
        return int(slope * rows + fixed)

    def wait_ns(self, calls: int, gap_ns: float) -> int:
        """How long ``calls`` calls gain by waiting for the next, of one row, which is expected in ``gap_ns``.

        Let a batch of n rows take a*n + b. If m calls run now, the next one waits for the rest of their time and then
        takes a + b; if they wait for it, each of the m is later by the gap and by a, and the next is earlier by
        b less the gap. The sum of all waits is less with the wait where ``(m + 1) * gap + m * a < b``. It must be so
        by a millisecond, which is what timers are good for. 0 where nothing is gained.
        """
        slope, fixed = self._fit
        if (calls + 1) * gap_ns + calls * slope + _LEAST_GAIN_NS >= fixed:
            return 0
        return int(min(2 * gap_ns, _LONGEST_WAIT_NS))
