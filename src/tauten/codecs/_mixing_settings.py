"""How a matrix is coded: the numbers of a stream's header, and how the encoder chooses them."""

from __future__ import annotations

from typing import Final

import numpy as np

from tauten.codecs._native import SETTINGS, Int32, Settings

TRANSPOSED, SHIFT, LAG, FAR, ROW_FLAGS, COLUMN_FLAGS, SIGNS, LIMIT, RATE, RICH = range(SETTINGS)
"""Where a setting stands. Columns scanned before rows; low bits split off a magnitude; the two distances at which the
elements of a row are alike (0: those of the period, if any); whether empty rows, and columns, are flagged; whether
signs are modelled; how long a context remembers; how fast the mixer learns; all contexts or few."""

USUAL: Final[Settings] = (0, 0, 0, 0, 1, 1, 1, 0, 3, 1)


def is_transposed(settings: Settings) -> bool:
    """Whether columns are scanned before rows."""
    return bool(settings[TRANSPOSED])


def arranged(q: Int32, settings: Settings) -> Int32:
    """The matrix as it is scanned: contiguous, and transposed where the settings say so."""
    return np.ascontiguousarray(q.T if is_transposed(settings) else q)


def chosen(q: Int32, period: int) -> Settings:
    """The settings that suit a matrix (rows, columns), by what it takes to code it."""
    return _with(USUAL, SHIFT, _shift(q))


def _with(settings: Settings, place: int, value: int) -> Settings:
    return (*settings[:place], value, *settings[place + 1 :])


def _shift(q: Int32) -> int:
    """Low bits to split off, so that what is left is a few steps of unary at the mean."""
    found = np.abs(q[q != 0].astype(np.int64))
    mean = int(found.sum()) // max(1, found.size)
    return max(0, mean.bit_length() - 3)
