"""What a batch costs by its rows, learned from batches that ran: no clock, no I/O."""

from __future__ import annotations

from math import sqrt
from typing import Final

_TRIES: Final = 3
# In full batches:
_EXPLORE: Final = 8, 32
_ENOUGH: Final = 4
_MEMORY: Final = 32
_EARLY: Final = 24  # choices: later ones are rarer
_BETTER: Final = 0.97
_SURE: Final = 2.0
_LEAST_GAIN_NS: Final = 1_000_000
_LONGEST_WAIT_NS: Final = 20_000_000


class BatchCosts:
    """Times by batch size, in size classes of powers of two up to ``max_rows``, and what follows from them.

    A batch that is interrupted, as by another process on its core, takes several times as long as one that is not.
    That befalls large batches often and small ones rarely, and then all the more. So classes are compared by as many
    rows, not as many batches, and a size is preferred to a larger one only where it is better by more than the errors
    of both.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        classes = max_rows.bit_length() + 1
        self._memory = _MEMORY * max_rows
        # Sums by class; old batches fade.
        self._count = [0.0] * classes
        self._rows = [0.0] * classes
        self._ns = [0.0] * classes
        self._squares = [0.0] * classes  # of ns, each over its rows
        self._best = max_rows
        self._fit = 0.0, 0.0
        self._until = _EXPLORE[0] * max_rows  # rows before the next choice
        self._choices = 0
        self._trial = 0  # the rows that are tried in place of the best
        self._trial_left = 0

    def add(self, rows: int, duration_ns: int) -> None:
        """A batch of ``rows`` ran for ``duration_ns``."""
        index = min(rows, self.max_rows).bit_length()
        self._count[index] += 1
        self._rows[index] += rows
        self._ns[index] += duration_ns
        self._squares[index] += duration_ns * duration_ns / rows
        if self._rows[index] > self._memory:
            for sums in (self._count, self._rows, self._ns, self._squares):
                sums[index] /= 2
        if self._trial:
            self._trial_left -= rows
            if self._trial_left <= 0:
                self._trial = 0
        self._until -= rows
        if self._until <= 0:
            self._until = _EXPLORE[self._choices >= _EARLY] * self.max_rows
            self._best, self._fit = self._choose(), self.line()
            self._try_another()

    def best_rows(self, waiting: int) -> int:
        """How many of ``waiting`` rows shall run at once: the size that takes least a row, as far as is known.

        Now and then it is another size, since what they cost may have changed: in turn all that wait, and a smaller one
        where as many wait as may run at once.
        """
        most = min(waiting, self.max_rows) or 1
        if self._trial and (self._trial >= most or most == self.max_rows):
            return min(most, self._trial)
        return min(most, self._best)

    def _try_another(self) -> None:
        """Let a full batch's rows run in batches of another size."""
        self._choices += 1
        smaller = 1 + self._choices // 2 % (len(self._count) - 1)
        self._trial = self.max_rows if self._choices % 2 else min(self.max_rows, (1 << smaller) - 1)
        self._trial_left = self.max_rows

    def _choose(self) -> int:
        known = [index for index, rows in enumerate(self._rows) if rows >= _ENOUGH * self.max_rows]
        if not known:
            return self.max_rows
        means = {index: self._ns[index] / self._rows[index] for index in known}
        errors = {index: self._error(index, means[index]) for index in known}
        least = min(known, key=lambda index: means[index] + errors[index])
        # The largest of those that may be as good: more rows at once are fewer calls of everything else.
        good = max(
            index
            for index in known
            if means[index] * _BETTER <= means[least] + _SURE * sqrt(errors[index] ** 2 + errors[least] ** 2)
        )
        if good == known[-1]:
            return self.max_rows  # nothing larger is known to be worse
        return max(1, min(self.max_rows, (1 << good) - 1))

    def _error(self, index: int, mean: float) -> float:
        """The standard error of a class's mean, in ns a row."""
        variance = max(0.0, self._squares[index] / self._rows[index] - mean * mean)
        return sqrt(variance / self._count[index])

    def line(self) -> tuple[float, float]:
        """``(a, b)`` of the time ``a * rows + b`` in ns, from the smallest and the largest class that are known."""
        known = [index for index, count in enumerate(self._count) if count >= _TRIES]
        if not known:
            return 0.0, 0.0
        low, high = known[0], known[-1]
        if low == high:
            return self._ns[low] / self._rows[low], 0.0
        rows_low, rows_high = (self._rows[index] / self._count[index] for index in (low, high))
        t_low, t_high = (self._ns[index] / self._count[index] for index in (low, high))
        slope = max(0.0, (t_high - t_low) / max(rows_high - rows_low, 1e-9))
        return slope, max(0.0, t_low - slope * rows_low)

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
