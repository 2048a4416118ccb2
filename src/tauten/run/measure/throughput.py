"""Throughput: rows a second, when one caller sends one batch after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tauten.core.measure import Measure
from tauten.run.measure._rounds import Nanoseconds
from tauten.run.measure._statistics import bootstrap_ratio


def throughput_measure(rounds: Sequence[Nanoseconds], batch: int, on: str) -> Measure:
    """Rows per second over all calls of ``batch`` rows each.

    ``rounds`` are durations in nanoseconds, an array a round. The interval holds 95 %, by bootstrap over rounds.
    """
    rows = np.array([float(len(values) * batch) for values in rounds])
    seconds = np.array([values.sum() / 1e9 for values in rounds])
    value, low, high = bootstrap_ratio(rows, seconds)
    calls = sum(len(values) for values in rounds)
    return Measure(value=value, low=low, high=high, unit="1/s", better="higher", repeats=calls, on=on)
