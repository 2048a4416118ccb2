"""What a run found that no artifact holds, kept so that a run which goes on need not find it again."""

from __future__ import annotations

from typing import Literal

from tauten.core.measure import Measure
from tauten.core.record import Record
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


class Kept(Value):
    """What was done to a candidate whose manifest leaves out the notes."""

    history: tuple[Record, ...]


class Costs(Value):
    """What each layer costs more in a higher precision, by its path. Milliseconds may be below 0: it is faster so."""

    unit: Literal["ms", "bytes"]
    by_layer: dict[str, float]

    def text(self, cost: float) -> str:
        """A cost in words."""
        size = f"{abs(cost):.3g} ms" if self.unit == "ms" else f"{abs(cost):,.0f} bytes"
        return f"{size} {'less' if cost < 0 else 'more'}"


class Raced(Value):
    """What the measurement of engines found."""

    engines: tuple[EngineTried, ...]
