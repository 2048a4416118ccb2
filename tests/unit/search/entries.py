"""Entries for tests of what is decided from measures."""

from __future__ import annotations

from tauten.core.measure import Measure
from tauten.make.search.result import Entry


def measure(value: float, unit: str, better: str, noise: float = 0.0) -> Measure:
    return Measure.from_json(
        {"value": value, "low": value - noise, "high": value + noise, "unit": unit, "better": better}
    )


def entry(
    name: str, quality: float = 98.0, size: float = 1e5, p50: float = 0.1, *, noise: float = 0.0, drop: float = 0.0
) -> Entry:
    return Entry(
        name=name,
        recipe={"name": name, "passes": [], "lowering": "onnx"},
        artifact=f"candidates/{name}",
        measures={
            "quality": measure(quality, "%", "higher", noise),
            "size_bytes": measure(size, "bytes", "lower"),
            "latency_p50_ms": measure(p50, "ms", "lower", noise * p50),
            "latency_p95_ms": measure(2 * p50, "ms", "lower"),
            "peak_memory_mib": measure(60, "MiB", "lower"),
            "throughput_per_s": {"1": measure(1000 / p50, "rows/s", "higher")},
        },
        drop_points=measure(drop, "points", "lower", noise),
    )
