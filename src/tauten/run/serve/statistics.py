"""What a model did since it was loaded: counts, sums of durations, and histograms. No clock, no locks.

It is written by the event loop's thread alone.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BUCKETS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds: 100 microseconds for the smallest models, 10 seconds for the largest."""

PHASES: Final = ("request", "queue", "compute_input", "compute_infer", "compute_output")
FAILURES: Final = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Why a request failed: no place in the queue, the client left, the engine, or anything else (mostly the request)."""


class Histogram:
    """Counts of durations by bucket, and their sum."""

    __slots__ = ("counts", "total_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_ns = 0

    def add(self, duration_ns: int) -> None:
        """A duration; one that equals a bound belongs under it, as Prometheus counts."""
        self.counts[bisect_left(BUCKETS_S, duration_ns * 1e-9)] += 1
        self.total_ns += duration_ns

    @property
    def count(self) -> int:
        return sum(self.counts)


class Statistics:
    """Of one model. ``inferences`` counts samples, ``executions`` calls of the engine."""

    def __init__(self) -> None:
        self.phases = {phase: Histogram() for phase in PHASES}
        self.failures = dict.fromkeys(FAILURES, 0)
        self.failed_ns = 0
        self.successes = 0
        self.inferences = 0
        self.executions = 0
        self.last_inference_ms = 0

    def succeeded(self, samples: int, durations_ns: tuple[int, int, int, int, int], now_ms: int) -> None:
        """One answered request: its samples, its durations in the order of ``PHASES``, the time of day."""
        for histogram, duration_ns in zip(self.phases.values(), durations_ns, strict=True):
            histogram.add(duration_ns)
        self.successes += 1
        self.inferences += samples
        self.executions += 1
        self.last_inference_ms = now_ms

    def failed(self, reason: str, duration_ns: int) -> None:
        """One request that got no answer, for one of the reasons in ``FAILURES``."""
        self.failures[reason] += 1
        self.failed_ns += duration_ns
