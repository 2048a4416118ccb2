"""How many samples at once memory allows: the largest batch whose measured peak stays within a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tauten.artifact.read import read_artifact
from tauten.core.rows import has_batch, resize_rows
from tauten.core.tensor import Array
from tauten.errors import MeasureError
from tauten.run.measure._child import PATIENCE_S, run_child


def largest_rows(count: int, needed: Callable[[int], float], limit: float) -> tuple[int, dict[int, float]]:
    """The most rows, up to ``count``, that need no more than the limit, with all that was measured.

    0 where one row needs more. From one row on in doubles, so that no trial goes far beyond the limit, then by halves
    in between.
    """
    figures: dict[int, float] = {}

    def holds(rows: int) -> bool:
        figures[rows] = needed(rows)
        return figures[rows] <= limit

    good, bad = 0, 1
    while holds(bad):
        good, bad = bad, min(count, 2 * bad)
        if good == count:
            return good, figures
    while bad - good > 1:
        tried = (good + bad) // 2
        good, bad = (tried, bad) if holds(tried) else (good, tried)
    return good, figures


def rows_within(
    artifact: Path,
    sample: Mapping[str, Array],
    limit_mib: float,
    *,
    threads: int,
    most: int,
    patience_s: float = PATIENCE_S,
) -> int:
    """The largest batch, up to ``most``, that a fresh process answers with no more than ``limit_mib`` of memory.

    The whole process counts, interpreter, engine and batch included. A process that dies needs too much. Raises
    ``MeasureError`` with the figures where a batch of one does, or where the artifact's batch is fixed.
    """
    inputs = read_artifact(artifact).manifest.inputs
    if not has_batch(inputs):
        raise MeasureError(
            f"{artifact}: its inputs have no dimension that counts samples, so that no batch can be chosen"
        )
    faults: dict[int, MeasureError] = {}

    def needed(rows: int) -> float:
        found: list[float] = []

        def note(message: dict[str, Any], since_start_s: float) -> None:
            if "peak_bytes" in message:
                found.append(float(message["peak_bytes"]) / 2**20)

        spec = {"artifact": str(artifact.absolute()), "threads": threads}
        arrays = resize_rows(inputs, sample, rows)
        try:
            run_child("tauten.run.measure._fresh_main", spec, arrays, note, patience_s=patience_s)
        except MeasureError as fault:
            faults[rows] = fault
        return found[-1] if found else math.inf

    rows, figures = largest_rows(most, needed, limit_mib)
    if rows == 0 and 1 in faults:
        raise MeasureError(f"{artifact}: a batch of one could not be measured: {faults[1]}")
    if rows == 0:
        raise MeasureError(f"{artifact}: a batch of one takes {figures[1]:.1f} MiB, and {limit_mib:g} MiB are allowed")
    return rows
