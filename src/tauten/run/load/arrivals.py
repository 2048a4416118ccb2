"""When requests start, and what their latencies say: no I/O and no clock."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np

from tauten.run.load.scenario import Latency


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Start times in seconds, below ``seconds``, of a Poisson process of ``rate`` a second; the same for one seed.

    >>> times = list(arrivals(100, 1.0, seed=1))
    >>> times == sorted(times) == list(arrivals(100, 1.0, seed=1))
    True
    """
    draw = random.Random(seed)  # a generator, not an array: a long test at a high rate would not fit in memory
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)


def summarize(latencies_ms: Sequence[float]) -> Latency | None:
    """Mean and percentiles; each percentile is a latency that was seen. ``None`` for none."""
    if not latencies_ms:
        return None
    values = np.asarray(latencies_ms)
    p50, p95, p99 = np.percentile(values, [50, 95, 99], method="inverted_cdf")
    return Latency(mean=float(values.mean()), p50=float(p50), p95=float(p95), p99=float(p99), max=float(values.max()))
