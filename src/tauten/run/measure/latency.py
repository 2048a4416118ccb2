"""Latency: how long one call takes, at batch 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tauten.core.measure import Measure
from tauten.run.measure._rounds import Nanoseconds
from tauten.run.measure._statistics import bootstrap_percentiles, bootstrap_ratio, percentile

PERCENTILES: Final = {"latency_p50_ms": 50.0, "latency_p95_ms": 95.0, "latency_p99_ms": 99.0}


def latency_measures(rounds: Sequence[Nanoseconds], on: str) -> dict[str, Measure]:
    """``latency_mean_ms``, ``latency_p50_ms``, ``latency_p95_ms`` and ``latency_p99_ms`` of all calls.

    ``rounds`` are durations in nanoseconds, an array a round. Intervals hold 95 %, by bootstrap over rounds.
    """
    in_ms = [values / 1e6 for values in rounds]
    calls = sum(len(values) for values in rounds)
    sums = np.array([values.sum() for values in in_ms])
    counts = np.array([float(len(values)) for values in in_ms])
    found = {"latency_mean_ms": bootstrap_ratio(sums, counts)}
    found.update(zip(PERCENTILES, bootstrap_percentiles(in_ms, list(PERCENTILES.values())), strict=True))
    return {
        name: Measure(value=value, low=low, high=high, unit="ms", better="lower", repeats=calls, on=on)
        for name, (value, low, high) in found.items()
    }


def rounds_p50_ms(rounds: Sequence[Nanoseconds]) -> tuple[float, ...]:
    """The median of each round, so that two things measured in the same rounds can be paired."""
    return tuple(percentile(values / 1e6, 50) for values in rounds)
