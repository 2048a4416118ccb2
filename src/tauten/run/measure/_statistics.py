"""Intervals: the bootstrap for what is repeated, Wilson and Agresti-Min for what is right or wrong.

Everything here is arithmetic on arrays; no clock, no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float, float]
"""Value, low, high."""

RESAMPLES: Final = 1000
Z95: Final = 1.959963984540054

# Student's t, two-sided 95 %, by degrees of freedom from 1; beyond the table the normal's quantile is near enough.
_T95: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def percentile(values: Floats, q: float) -> float:
    """The smallest value that at least ``q`` percent of ``values`` do not exceed (nearest rank, no interpolation)."""
    ordered = np.sort(values)
    return float(ordered[_rank(len(ordered), q)])


def _rank(count: int, q: float) -> int:
    return max(0, min(count - 1, math.ceil(count * q / 100) - 1))


def bootstrap_percentiles(rounds: Sequence[Floats], qs: Sequence[float], *, seed: int = 0) -> list[Interval]:
    """Percentiles of all values together, with 95 % intervals by resampling whole rounds.

    Values of one round share what the machine did meanwhile, so rounds are the units that are drawn
    (cluster bootstrap; Efron and Tibshirani, 1993; percentile intervals).
    """
    pooled = np.concatenate(list(rounds))
    owner = np.repeat(np.arange(len(rounds)), [len(values) for values in rounds])
    order = np.argsort(pooled, kind="stable")
    pooled, owner = pooled[order], owner[order]
    found = np.empty((RESAMPLES, len(qs)))
    for index, drawn in enumerate(_draws(len(rounds), seed)):
        # A round that is drawn k times counts k times: the percentile is where the running count passes its share.
        running = np.cumsum(drawn[owner])
        ranks = np.maximum(np.ceil(running[-1] * np.asarray(qs) / 100), 1)
        found[index] = pooled[np.searchsorted(running, ranks)]
    return [_interval(float(pooled[_rank(len(pooled), q)]), found[:, column]) for column, q in enumerate(qs)]


def bootstrap_ratio(numerators: Floats, denominators: Floats, *, seed: int = 0) -> Interval:
    """The sum of ``numerators`` over the sum of ``denominators``, drawing pairs; with ones below, a mean."""
    found = np.empty(RESAMPLES)
    for index, drawn in enumerate(_draws(len(numerators), seed)):
        found[index] = (drawn @ numerators) / (drawn @ denominators)
    return _interval(float(numerators.sum() / denominators.sum()), found)


def wilson(hits: float, count: int) -> Interval:
    """A share and its 95 % score interval (Wilson, 1927): sane at 0 and 1, where the bootstrap has no width."""
    share = hits / count
    middle = (share + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
    reach = Z95 / (1 + Z95**2 / count) * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    return share, min(share, max(0.0, middle - reach)), max(share, min(1.0, middle + reach))


def paired_shares(lost: int, won: int, count: int) -> Interval:
    """The difference of two shares on the same samples, ``(lost - won) / count``, with its 95 % interval.

    ``lost`` samples only the first has right, ``won`` only the second. Half a sample is added to each of the four
    cells (Agresti and Min, 2005), so that no disagreement at all still has a width.
    """
    total = count + 2.0
    first, second = lost + 0.5, won + 0.5
    middle = (first - second) / total
    reach = Z95 * math.sqrt(max(0.0, first + second - (first - second) ** 2 / total)) / total
    value = (lost - won) / count
    return value, max(-1.0, min(value, middle - reach)), min(1.0, max(value, middle + reach))


def student(values: Floats) -> Interval:
    """The mean of a few independent repeats, with Student's 95 % interval; one repeat has no width."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, mean, mean
    t = _T95[len(values) - 2] if len(values) - 2 < len(_T95) else Z95
    reach = t * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - reach, mean + reach


def _draws(count: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each of ``count`` units is drawn, shape ``(RESAMPLES, count)``."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)


def _interval(value: float, resampled: Floats) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return value, min(value, float(low)), max(value, float(high))
