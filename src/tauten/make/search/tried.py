"""What timing found outside the last session, kept so that a run which goes on need not time it again."""

from __future__ import annotations

from tauten.core.measure import Measure
from tauten.core.value import Value
from tauten.make.search.result import EngineTried, Improvement


class Tried(Value):
    """A trial's measures of time, and its p50 latency against the one that it was timed beside."""

    measures: dict[str, Measure]
    gain: Improvement

    @property
    def latencies(self) -> dict[str, Measure]:
        """The latencies by key."""
        return {key: measure for key, measure in self.measures.items() if key.startswith("latency")}


class Raced(Value):
    """What the measurement of engines found."""

    engines: tuple[EngineTried, ...]
