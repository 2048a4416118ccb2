"""What a model did since it was loaded: counts, sums of durations, and histograms. No locks.

It is written by the event loop's thread alone.
"""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tauten.run.serve.call import Batch

BUCKETS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds: 100 microseconds for the smallest models, 10 seconds for the largest."""

_BUCKETS_NS: Final = np.round(np.array(BUCKETS_S) * 1e9).astype(np.int64)
_FRESH: Final = 1024

PHASES: Final = ("request", "queue", "compute_input", "compute_infer", "compute_output")
FAILURES: Final = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Why a request failed: no place in the queue, the client left, the engine, or anything else (mostly the request)."""


class Histogram:
    """Counts of durations by bucket, and their sum."""

    __slots__ = ("counts", "total_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_ns = 0

    def add_all(self, durations_ns: npt.NDArray[np.int64]) -> None:
        """Durations; one that equals a bound belongs under it, as Prometheus counts."""
        places = np.searchsorted(_BUCKETS_NS, durations_ns, side="left")
        for place, count in enumerate(np.bincount(places, minlength=len(self.counts)).tolist()):
            self.counts[place] += count
        self.total_ns += int(durations_ns.sum())

    @property
    def count(self) -> int:
        return sum(self.counts)


class Statistics:
    """Of one model. ``inferences`` counts samples, ``executions`` calls of the engine, ``batches`` those by rows.

    ``positions`` (rows times columns) are those of the requests that may share a batch with others of other lengths,
    ``padded`` those that were added so that they could.

    What is written for each request is a short list's end; it is counted when it has grown, or when it is asked for.
    """

    def __init__(self) -> None:
        self._phases = {phase: Histogram() for phase in PHASES}
        self._fresh: list[tuple[int, int, int, int, int]] = []
        self.failures = dict.fromkeys(FAILURES, 0)
        self.failed_ns = 0
        self.successes = 0
        self.inferences = 0
        self.executions = 0
        self.batches: dict[int, tuple[int, int]] = {}
        self.positions = 0
        self.padded = 0
        self.last_inference_ms = 0

    @property
    def phases(self) -> dict[str, Histogram]:
        """The histograms, with all that was written."""
        self._count()
        return self._phases

    def succeeded(self, samples: int, durations_ns: tuple[int, int, int, int, int]) -> None:
        """One answered request: its samples, its durations in the order of ``PHASES``."""
        self.successes += 1
        self.inferences += samples
        fresh = self._fresh
        fresh.append(durations_ns)
        if len(fresh) >= _FRESH:
            self._count()

    def executed(self, batch: Batch, duration_ns: int) -> None:
        """One call of the engine."""
        rows = batch.rows
        self.executions += 1
        self.padded += batch.padded
        count, total_ns = self.batches.get(rows, (0, 0))
        self.batches[rows] = (count + 1, total_ns + duration_ns)
        self.last_inference_ms = int(time() * 1000)

    def failed(self, reason: str, duration_ns: int) -> None:
        """One request that got no answer, for one of the reasons in ``FAILURES``."""
        self.failures[reason] += 1
        self.failed_ns += duration_ns

    def _count(self) -> None:
        if not self._fresh:
            return
        columns = np.array(self._fresh, np.int64).T
        self._fresh.clear()
        for histogram, durations_ns in zip(self._phases.values(), columns, strict=True):
            histogram.add_all(durations_ns)
