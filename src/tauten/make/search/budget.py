"""Whether a candidate holds a budget, how far it is from it, and which of those that hold it is best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tauten.core.target import Budget
from tauten.errors import MeasureError
from tauten.make.search.result import Entry


@dataclass(frozen=True)
class Excess:
    """One limit that does not hold: by which factor it is passed, and the words for it."""

    factor: float
    text: str


def excesses(budget: Budget, entry: Entry) -> list[Excess]:
    """The limits that ``entry`` does not hold, by the measured values themselves."""
    limits = (
        ("drop", budget.max_drop, entry.drop_points.value if entry.drop_points else None, "points"),
        ("size", budget.max_bytes, _value(entry, "size_bytes"), "bytes"),
        ("p95 latency", budget.max_latency_ms, _value(entry, "latency_p95_ms"), "ms"),
        ("peak memory", budget.max_memory_mib, _value(entry, "peak_memory_mib"), "MiB"),
    )
    found = []
    for what, limit, value, unit in limits:
        if limit is None:
            continue
        if value is None:
            raise MeasureError(f"{entry.name}: the budget limits {what}, which was not measured")
        if value > limit:
            # A limit of zero points is passed by the points themselves.
            factor = value / limit if limit else 1 + value
            found.append(Excess(factor, f"{what} {_number(value)} > {_number(limit)} {unit}"))
    return found


def judge(budget: Budget, entry: Entry) -> Entry:
    """The entry with its violations written in."""
    violations = tuple(excess.text for excess in excesses(budget, entry))
    return entry.model_copy(update={"violations": violations, "within_budget": not violations})


def gain(entry: Entry, baseline: Entry) -> float:
    """How much smaller and faster than the baseline, as one number: the log of size ratio times p50 latency ratio."""
    total = 0.0
    for key in ("size_bytes", "latency_p50_ms"):
        ours, theirs = entry.measure(key), baseline.measure(key)
        if ours and theirs:
            total += math.log(max(ours.ratio(theirs), 1e-12))
    return total


def choose(budget: Budget, entries: Sequence[Entry], baseline: Entry) -> Entry | None:
    """The best of those that hold the budget, or ``None``.

    With a limit on the drop, quality is bought already: the smallest and fastest wins. Without one, quality wins, and
    among those whose drop is within the noise of the best, the smallest and fastest. Where bytes are limited and the
    drop is not, a smaller file is worth nothing more: the best quality at that size wins, and of equals the fastest.
    """
    holding = [entry for entry in entries if entry.within_budget]
    if not holding:
        return None
    if budget.max_drop is None and budget.max_bytes is not None:
        return max(holding, key=lambda entry: (-_lost(entry), -(_value(entry, "latency_p50_ms") or 0.0), entry.name))
    if budget.max_drop is None:
        finest = min(holding, key=_lost)
        holding = [entry for entry in holding if entry is finest or not _loses(entry, finest)]
    return max(holding, key=lambda entry: (gain(entry, baseline), entry.name))


def nearest(budget: Budget, entries: Sequence[Entry], count: int = 3) -> list[Entry]:
    """Those that miss the budget by least: the product of the factors by which limits are passed."""
    return sorted(entries, key=lambda entry: math.prod(excess.factor for excess in excesses(budget, entry)))[:count]


def _lost(entry: Entry) -> float:
    return entry.drop_points.value if entry.drop_points else 0.0


def _loses(entry: Entry, finest: Entry) -> bool:
    ours, theirs = entry.drop_points, finest.drop_points
    return ours is not None and theirs is not None and theirs.beats(ours)


def _value(entry: Entry, key: str) -> float | None:
    measure = entry.measure(key)
    return measure.value if measure else None


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
