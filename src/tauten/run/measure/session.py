"""Latency and throughput of several artifacts in one fresh process, in turn, so that they can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from tauten.core.measure import Measure
from tauten.core.tensor import Array, Arrays
from tauten.errors import MeasureError
from tauten.run.measure._child import PATIENCE_S, run_child
from tauten.run.measure._rounds import Nanoseconds
from tauten.run.measure.latency import latency_measures, rounds_p50_ms
from tauten.run.measure.throughput import throughput_measure

BATCHES: Final = (1, 8, 16, 32)


@dataclass(frozen=True)
class Timing:
    """What one artifact took.

    ``measures`` holds ``latency_mean_ms``, ``latency_p50_ms``, ``latency_p95_ms`` and ``latency_p99_ms`` at batch 1,
    and ``throughput_per_s.N`` for each batch of N rows that the artifact takes. ``rounds_p50_ms`` is the median
    latency of each round; artifacts measured together have the same rounds, so their ratios can be paired.
    """

    measures: dict[str, Measure]
    rounds_p50_ms: tuple[float, ...]


def measure_together(
    artifacts: Mapping[str, Path],
    sample: Mapping[str, Array],
    *,
    threads: int,
    batches: Sequence[int] = BATCHES,
    seconds: float = 1.0,
    steady: float = 0.0,
    progress: Callable[[str, float], None] | None = None,
    patience_s: float = PATIENCE_S,
) -> dict[str, Timing]:
    """Run all ``artifacts`` through their engines with ``threads`` threads, interleaved in short rounds.

    ``sample`` is inputs by name; its rows are cut or repeated to each batch size. ``seconds`` is the measured time of
    each artifact at batch 1; other batches get 0.3 of it. A batch beyond an artifact's target, or other than the one
    that its shapes fix, is left out for that artifact. Warm-up is dropped, and the garbage collector is off.
    Intervals hold 95 %, by bootstrap over rounds. Where ``steady`` is above 0, all stop after half of the rounds once
    everyone's median is known to within that share of itself.

    Raises ``MeasureError`` where an artifact does not load or run, or where the process dies or is silent for
    ``patience_s``.
    """
    if not artifacts:
        raise MeasureError("expected at least one artifact to measure, got none")
    if not (seconds > 0 and threads >= 1 and all(batch >= 1 for batch in batches)):
        raise MeasureError(
            f"expected seconds above 0, threads and batches of at least 1, got {seconds}, {threads} and {list(batches)}"
        )
    spec = {
        "artifacts": {name: str(path.absolute()) for name, path in artifacts.items()},
        "threads": threads,
        "batches": list(batches),
        "seconds": seconds,
        "steady": steady,
    }

    def tell(message: dict[str, Any], _: float) -> None:
        if progress is not None:
            progress(str(message["what"]), float(message["share"]))

    stored = run_child("tauten.run.measure._session_main", spec, sample, tell, patience_s=patience_s)
    return {name: _timing(index, stored, batches, threads) for index, name in enumerate(artifacts)}


def _timing(index: int, stored: Arrays, batches: Sequence[int], threads: int) -> Timing:
    latencies = _unpack(stored, index, 1)
    if latencies is None:
        raise MeasureError("the measuring process left no durations")
    on = f"{threads} thread" + ("s" if threads > 1 else "")
    measures = latency_measures(latencies, f"{on}, batch 1, {len(latencies)} rounds")
    for batch in sorted(set(batches)):
        rounds = _unpack(stored, index, batch)
        if rounds is not None:
            about = f"{on}, batch {batch}, {len(rounds)} rounds"
            measures[f"throughput_per_s.{batch}"] = throughput_measure(rounds, batch, about)
    return Timing(measures, rounds_p50_ms(latencies))


def _unpack(stored: Arrays, index: int, batch: int) -> list[Nanoseconds] | None:
    key = f"{index}_{batch}"
    if f"ns_{key}" not in stored:
        return None
    ends = np.cumsum(stored[f"counts_{key}"].astype(np.int64))
    return np.split(stored[f"ns_{key}"].astype(np.int64), ends[:-1])
