"""How a matrix is coded: the numbers of a stream's header, and how the encoder chooses them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from tauten.codecs._native import SETTINGS, Int32, Settings, coder

TRANSPOSED, SHIFT, LAG, FAR, ROW_FLAGS, COLUMN_FLAGS, SIGNS, LIMIT, RATE, RICH = range(SETTINGS)
"""Where a setting stands. Columns scanned before rows; low bits split off a magnitude; the two distances at which the
elements of a row are alike (0: those of the period, if any); whether empty rows, and columns, are flagged; whether
signs are modelled; how long a context remembers; how fast the mixer learns; all contexts or few."""

USUAL: Final[Settings] = (0, 0, 0, 0, 1, 1, 1, 0, 3, 1)

_TRIALS: Final = 16
_TRIED: Final = (2**18, 2**20)
"""Elements that all trials together may code: the first many at least, three times the matrix's own up to the second
many, and as many as it has beyond: a large matrix is encoded in at most four times what its decoding takes."""
_LARGE: Final = 2**20
_MOST_LAG: Final = 256
_LOOKED_AT: Final = 2**17
_WORTH: Final = 400
"""A rich model must save one part in so many to be worth half the speed, where there is much to decode."""


def is_transposed(settings: Settings) -> bool:
    """Whether columns are scanned before rows."""
    return bool(settings[TRANSPOSED])


def arranged(q: Int32, settings: Settings) -> Int32:
    """The matrix as it is scanned: contiguous, and transposed where the settings say so."""
    return np.ascontiguousarray(q.T if is_transposed(settings) else q)


def chosen(q: Int32, period: int) -> Settings:
    """The settings that suit a matrix (rows, columns): one after the other, whichever takes fewer bits.

    A large matrix is judged by rows taken from all over it.
    """
    live = np.count_nonzero(q.any(1)) * np.count_nonzero(q.any(0))
    if not live:
        return _with(USUAL, {COLUMN_FLAGS: 0})
    tried = max(_TRIED[0], q.size, min(3 * q.size, _TRIED[1]))
    sample = _rows(q, tried // _TRIALS * q.size // int(live))
    search = _Search(sample, period, _with(USUAL, {SHIFT: _shift(q)}))
    search.light(speed_counts=int(live) > _LARGE // 16)
    if search.best[RICH]:
        search.attempt({LAG: lag} for lag in _lags(_rows(q, _LOOKED_AT)))
    search.attempt([{TRANSPOSED: 1, LAG: 0}])
    if live < _LARGE:
        search.attempt({RATE: rate} for rate in ((2,) if search.best[RICH] else (1, 2)))
        search.attempt({LIMIT: limit} for limit in (1, 3))
    else:
        search.best = _with(search.best, {LIMIT: 1, RATE: 2})
    search.attempt([{SIGNS: 0}])
    search.attempt([{ROW_FLAGS: 0}])
    search.attempt([{COLUMN_FLAGS: 0}])
    if search.best[SHIFT]:
        search.attempt({SHIFT: search.best[SHIFT] + more} for more in (-1, 1))
    return search.best


class _Search:
    """Keeps the settings that took the fewest bits so far."""

    def __init__(self, q: Int32, period: int, settings: Settings) -> None:
        self._q, self._period = q, period
        self.best = settings
        self._bits = self._measured(settings)

    def attempt(self, changes: Iterable[dict[int, int]]) -> None:
        """Each change of the best settings so far; the first of equals stays."""
        for settings in [_with(self.best, change) for change in changes]:
            bits = self._measured(settings)
            if bits < self._bits:
                self.best, self._bits = settings, bits

    def light(self, speed_counts: bool) -> None:
        """The light model, if it takes fewer bits, or hardly more where speed counts."""
        settings = _with(self.best, {RICH: 0})
        bits = self._measured(settings)
        if bits < self._bits + (self._bits // _WORTH if speed_counts else 0):
            self.best, self._bits = settings, bits

    def _measured(self, settings: Settings) -> int:
        return coder().measure(arranged(self._q, settings), self._q.shape, self._period, settings, None)


def _with(settings: Settings, change: dict[int, int]) -> Settings:
    return tuple(change.get(place, value) for place, value in enumerate(settings))


def _rows(q: Int32, most: int) -> Int32:
    """Rows of at most so many elements, but at least one, at even distances."""
    step = -(-q.shape[0] // max(1, most // q.shape[1]))
    return q[::step]


def _shift(q: Int32) -> int:
    """Low bits to split off, so that what is left is a few steps of unary at the mean."""
    found = np.abs(q[q != 0].astype(np.int64))
    mean = int(found.sum()) // max(1, int(found.size))
    return max(0, mean.bit_length() - 3)


def _lags(q: Int32) -> list[int]:
    """Distances at which large elements of a row meet more often than their columns' shares say: a picture's width."""
    size = np.abs(q.astype(np.int64))
    large = size * size.size > size.sum()
    counts = large.sum(0, dtype=np.int64)
    most = min(_MOST_LAG, q.shape[1] // 2)
    excess = [0, 0]
    for lag in range(2, most + 1):
        together = int(np.count_nonzero(large[:, lag:] & large[:, :-lag]))
        excess.append(together * q.shape[0] - int(counts[lag:] @ counts[:-lag]))
    peaks = [lag for lag in range(3, most) if excess[lag] > max(0, excess[lag - 1]) and excess[lag] >= excess[lag + 1]]
    return sorted(peaks, key=lambda lag: (-excess[lag], lag))[:3]
