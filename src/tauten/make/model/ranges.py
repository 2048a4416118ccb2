"""Where the range of a quantized value ends, read off a histogram of it: rounding inside against cutting outside."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

BINS: Final = 2048
"""How many bins a histogram of values has, from the smallest to the largest."""

_LEVELS: Final = 256
_TAIL: Final = 1e-5  # the share of values that a percentile range leaves out at each end
_SHARES: Final = np.linspace(1.0, 0.125, 71)  # of the largest magnitude, tried by the entropy method
_FEWEST: Final = 8  # values a bin; with fewer, chance tells the histograms apart and everything would be cut

Range = tuple[float, float]
Counts = npt.NDArray[np.float64]


def percentile(counts: Counts, ends: Range, tail: float = _TAIL) -> Range:
    """Where all but ``tail`` of the values at each end lie."""
    edges = np.linspace(*ends, len(counts) + 1)
    below = np.cumsum(counts) / counts.sum()
    first = int(np.searchsorted(below, tail, side="right"))
    last = int(np.searchsorted(below, 1 - tail, side="left"))
    return min(float(edges[first]), 0.0), max(float(edges[min(last, len(counts) - 1) + 1]), 0.0)


def least_error(counts: Counts, ends: Range) -> Range:
    """The share of the range at which rounding to 256 steps and clipping together cost the least squared error.

    Source: the minimization of Banner et al., 2019, here over the histogram itself in place of a fitted distribution.
    """
    centres = np.linspace(*ends, 2 * len(counts) + 1)[1::2]

    def error(share: float) -> float:
        low, high = ends[0] * share, ends[1] * share
        step = (high - low) / (_LEVELS - 1)
        outside = centres - np.clip(centres, low, high)
        return float((counts * np.where(outside == 0, step**2 / 12, outside**2)).sum())

    best = float(min(_SHARES, key=lambda share: error(float(share))))
    return ends[0] * best, ends[1] * best


def least_divergence(counts: Counts, ends: Range) -> Range:
    """The bound on magnitudes at which 8-bit rounding changes the histogram least (Kullback-Leibler divergence).

    Source: Migacz, 2017; here on the values rather than their magnitudes, so that a range may lie aside of 0, and with
    bins joined where there are few values.
    """
    while counts.sum() < _FEWEST * len(counts) and len(counts) > _LEVELS:
        counts = counts.reshape(-1, 2).sum(axis=1)
    largest = max(-ends[0], ends[1])
    best = largest * float(min(_SHARES, key=lambda share: _divergence(counts, ends, largest * float(share))))
    return max(ends[0], -best), min(ends[1], best)


def _divergence(counts: Counts, ends: Range, bound: float) -> float:
    centres = np.linspace(*ends, 2 * len(counts) + 1)[1::2]
    inside = np.flatnonzero(np.abs(centres) <= bound)
    first, last = int(inside[0]), int(inside[-1]) + 1
    kept = counts[first:last]
    clipped = kept.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    level = np.arange(len(kept)) * _LEVELS // len(kept)
    filled = kept > 0
    # Each level's values are spread evenly over the bins of it that held any.
    total = np.bincount(level, kept, minlength=_LEVELS)
    holders = np.bincount(level, filled, minlength=_LEVELS)
    spread = np.where(filled, (total / np.maximum(holders, 1))[level], 0)
    # A little everywhere, so that values which were clipped onto an empty bin count, and count finitely.
    p, q = (1e-6 / len(kept) + array / array.sum() for array in (clipped, spread))
    return float((p * np.log(p / q)).sum())


CHOOSERS: Final = {"percentile": percentile, "mse": least_error, "entropy": least_divergence}
"""The histogram methods by their names: ``(counts (bins,), ends) -> range``."""
