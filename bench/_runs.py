"""Runs of ``tauten optimize`` as a benchmark sees them: only what the report itself says."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench._results import spread
from tauten.cli.console import console
from tauten.cli.progress import LiveProgress
from tauten.cli.task import load_task
from tauten.core.target import Budget
from tauten.make.search.optimize import optimize
from tauten.make.search.result import Result

KEYS = ("size_bytes", "latency_p50_ms", "throughput_per_s.1", "throughput_per_s.32", "peak_memory_mib", "startup_ms")


def run(reference: str, budget: Budget, level: str, seeds: list[int]) -> list[Result]:
    """One fresh run a seed, each in a folder of its own that is thrown away."""
    results = []
    for seed in seeds:
        console.print(f"[bold]{reference}, seed {seed}[/]")
        with tempfile.TemporaryDirectory() as folder, LiveProgress(console) as progress:
            task = load_task(reference)
            results.append(optimize(task, budget=budget, level=level, out=Path(folder), seed=seed, observer=progress))
    return results


def figures(results: list[Result]) -> dict[str, Any]:
    """The best against both baselines: medians over seeds, with the least and the greatest."""
    met = [result for result in results if result.best]
    found: dict[str, Any] = {
        "runs": len(results),
        "met": len(met),
        "best": [result.best.name if result.best else None for result in results],
        "seconds": spread([result.seconds for result in results]),
    }
    if not met:
        return found
    for against in ("baseline", "engine_baseline"):
        gains = [result.improvements[against] for result in met]
        found[against] = {
            key: spread([gain[key].ratio for gain in gains]) for key in KEYS if all(key in gain for gain in gains)
        }
    for name, pick in (("best", lambda r: r.best), ("baseline", lambda r: r.baseline)):
        entries = [pick(result) for result in met]
        found[f"{name}_values"] = {
            key: {**spread([entry.measure(key).value for entry in entries]), "unit": entries[0].measure(key).unit}
            for key in ("quality", *KEYS)
            if all(entry.measure(key) for entry in entries)
        }
    tests = [result.test for result in met if result.test]
    if tests:
        found["test_drop_points"] = spread([test.drop_points.value for test in tests])
        found["test_baseline"] = spread([test.baseline.value for test in tests])
        found["test_best"] = spread([test.best.value for test in tests])
    found["validate_drop_points"] = spread([result.best.drop_points.value for result in met])  # type: ignore[union-attr]
    return found
