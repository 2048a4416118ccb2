"""What an artifact whose weights are coded leaves out of its manifest: a page of text is much where bytes are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tauten.core.measure import Measure
from tauten.core.record import Record

KEPT: Final = (
    "quality",
    "drop_points",
    "size_bytes",
    "latency_p50_ms",
    "latency_p95_ms",
    "load_ms",
    "peak_memory_mib",
)
"""The measures that stay in the manifest; a run's ``result.json`` holds all of them."""
MEASURE_BYTES: Final = 160
"""What a measure takes of a manifest at most."""
_DIGITS: Final = 6


def slim_history(history: Sequence[Record]) -> tuple[Record, ...]:
    """The records without their notes, and without the parameters, which the recipe has."""
    return tuple(record.model_copy(update={"notes": {}, "parameters": {}}) for record in history)


def slim_measures(measures: Mapping[str, Measure]) -> dict[str, Measure]:
    """The measures that stay, in six digits."""
    return {name: _rounded(measure) for name, measure in measures.items() if name in KEPT}


def _rounded(measure: Measure) -> Measure:
    if measure.unit == "bytes":
        return measure
    # Rounding keeps the order of the three.
    ends: dict[str, Any] = {name: float(f"{getattr(measure, name):.{_DIGITS}g}") for name in ("value", "low", "high")}
    return measure.model_copy(update=ends)
