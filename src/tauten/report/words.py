"""Numbers, measures and findings in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tauten.core.measure import Measure

ABSENT = "–"
_BYTE_STEPS = ((10**9, "GB"), (10**6, "MB"), (10**3, "KB"))

NAMES = {
    "quality": "Quality",
    "size_bytes": "Size on disk",
    "latency_mean_ms": "Latency, mean",
    "latency_p50_ms": "Latency, median (p50)",
    "latency_p95_ms": "Latency, p95",
    "latency_p99_ms": "Latency, p99",
    "throughput_per_s": "Throughput",
    "peak_memory_mib": "Peak memory",
    "startup_ms": "Start to first answer",
    "load_ms": "Load: read, check, decode",
}


def number(value: float, digits: int = 3) -> str:
    """A number with about ``digits`` significant digits and thousands apart.

    >>> number(0.034567), number(12345.6), number(98.0), number(0)
    ('0.0346', '12,346', '98.0', '0')
    """
    if not math.isfinite(value):
        return "unbounded" if value > 0 else ABSENT
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"


def size(value: float, digits: int = 3) -> str:
    """Bytes, by thousands.

    >>> size(48_212), size(90), size(46_900_000)
    ('48.2 KB', '90 bytes', '46.9 MB')
    """
    for step, unit in _BYTE_STEPS:
        if abs(value) >= step:
            return f"{number(value / step, digits)} {unit}"
    return f"{value:,.0f} byte{'' if value == 1 else 's'}"


def amount(value: float, unit: str) -> str:
    """A value with its unit. Percentages and points keep two decimals, so that half a point is never rounded away.

    >>> amount(98.333, "%"), amount(0.2, "points"), amount(0.351, "ms"), amount(672000, "bytes")
    ('98.33 %', '0.20 points', '0.351 ms', '672 KB')
    """
    if unit == "bytes":
        return size(value)
    if unit == "1/s":
        return f"{number(value)}/s"
    if unit in ("%", "points"):
        return f"{value:,.2f} {unit}"
    return f"{number(value)} {unit}".strip()


def measured(measure: Measure | None) -> str:
    """A measure's value, or a dash."""
    return ABSENT if measure is None else amount(measure.value, measure.unit)


def interval(measure: Measure | None) -> str:
    """A measure's interval, or nothing where it has none."""
    if measure is None or measure.low == measure.high:
        return ""
    return f"{_bare(measure.low, measure.unit)} to {_bare(measure.high, measure.unit)}"


def _bare(value: float, unit: str) -> str:
    if unit == "bytes":
        return size(value)
    return number(value) if unit == "1/s" else amount(value, unit).removesuffix(unit).strip()


def times(ratio: float) -> str:
    """How many times, to a tenth below a hundred.

    >>> times(4.234), times(14.62), times(1.04), times(1234)
    ('4.2', '14.6', '1.0', '1,234')
    """
    if not math.isfinite(ratio):
        return "countless"
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def compared(ratio: float, better: str, worse: str) -> str:
    """A ratio in words; above 1 is better.

    >>> compared(4.2, "faster", "slower"), compared(0.5, "faster", "slower"), compared(1.01, "faster", "slower")
    ('4.2 times faster', '2.0 times slower', 'about as fast')
    """
    if 0.95 < ratio < 1.05:
        return {"faster": "about as fast", "smaller": "about as large"}.get(better, "about the same")
    if ratio <= 0:
        return worse
    return f"{times(ratio)} times {better}" if ratio > 1 else f"{times(1 / ratio)} times {worse}"


def lost(points: float, on: str = "") -> str:
    """Quality lost, in words.

    >>> lost(0.2, "the test set"), lost(-0.31), lost(0.0)
    ('0.20 points lost on the test set', '0.31 points gained', 'no quality lost')
    """
    where = f" on {on}" if on else ""
    if abs(points) < 0.005:
        return f"no quality lost{where}"
    return f"{abs(points):.2f} points {'lost' if points > 0 else 'gained'}{where}"


def listing(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def value(thing: Any) -> str:
    """A parameter or note as short text."""
    if isinstance(thing, bool):
        return "yes" if thing else "no"
    if isinstance(thing, float):
        return f"{thing:.4g}"
    if isinstance(thing, int):
        return f"{thing:,}"
    if isinstance(thing, Mapping):
        return "; ".join(f"{label(str(key))}: {value(item)}" for key, item in thing.items()) or "none"
    if isinstance(thing, list | tuple):
        return ", ".join(value(item) for item in thing) or "none"
    return "none" if thing is None else str(thing)


def label(key: str) -> str:
    """A JSON key as a label: ``channels_removed`` is ``channels removed``."""
    return key.replace("_", " ")


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(0.00006), duration(0.42), duration(55.1), duration(3725)
    ('under 0.01 s', '0.42 s', '55 s', '1 h 2 min')
    """
    if seconds < 0.01:
        return "under 0.01 s"
    if seconds < 10:
        return f"{number(seconds, 2)} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
