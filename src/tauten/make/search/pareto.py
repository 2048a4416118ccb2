"""The candidates that no other dominates."""

from __future__ import annotations

from collections.abc import Sequence

from tauten.core.measure import Measure
from tauten.make.search.result import Entry

AXES = ("quality", "size_bytes", "latency_p50_ms")


def dominates(one: Entry, other: Entry) -> bool:
    """``one`` is no worse than ``other`` on every axis that both have, and better outside the noise on at least one."""
    pairs = [(ours, theirs) for axis in AXES if (ours := one.measure(axis)) and (theirs := other.measure(axis))]
    return all(_no_worse(*pair) for pair in pairs) and any(ours.beats(theirs) for ours, theirs in pairs)


def front(entries: Sequence[Entry]) -> list[Entry]:
    """Those that no other dominates, in the order given."""
    return [entry for entry in entries if not any(dominates(other, entry) for other in entries if other is not entry)]


def _no_worse(ours: Measure, theirs: Measure) -> bool:
    return ours.value <= theirs.value if ours.better == "lower" else ours.value >= theirs.value
