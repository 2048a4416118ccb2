"""Memory and start-up of a fresh process that loads an artifact and runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from tauten.artifact.read import read_artifact
from tauten.core.measure import Measure
from tauten.core.rows import resize_rows
from tauten.core.tensor import Array
from tauten.errors import MeasureError
from tauten.run.measure._child import PATIENCE_S, run_child
from tauten.run.measure._statistics import student

_UNITS: Final = {"peak_memory_mib": "MiB", "startup_ms": "ms", "load_ms": "ms"}


def measure_fresh(
    artifact: Path,
    sample: Mapping[str, Array],
    *,
    threads: int,
    repeats: int = 3,
    patience_s: float = PATIENCE_S,
) -> dict[str, Measure]:
    """``peak_memory_mib``, ``startup_ms`` and ``load_ms`` of fresh processes, one a repeat.

    Each loads the artifact and answers the first row of ``sample`` (batch 1). ``peak_memory_mib`` is the most physical
    memory that the whole process held, interpreter and engine included, in MiB; ``startup_ms`` is from starting the
    process to its first answer, with files in the system's cache. ``load_ms`` is the part of it that is the artifact's
    own: its files are read and checked, its weights decoded, and the engine made ready; the libraries of engine and
    codec are imported before. Values are geometric means of the repeats, intervals
    hold 95 % (Student's t over their logarithms). Raises ``MeasureError``.
    """
    if repeats < 1 or threads < 1:
        raise MeasureError(f"expected repeats and threads of at least 1, got {repeats} and {threads}")
    # One row, cut here: the rest of the sample must not weigh in the process that is measured.
    row = resize_rows(read_artifact(artifact).manifest.inputs, sample, 1)
    spec = {"artifact": str(artifact.absolute()), "threads": threads}
    found = [_once(spec, row, patience_s) for _ in range(repeats)]
    on = f"fresh process, {threads} thread" + ("s" if threads > 1 else "") + ", batch 1"
    return {key: _measure([once[key] for once in found], unit, on) for key, unit in _UNITS.items()}


def _once(spec: Mapping[str, Any], sample: Mapping[str, Array], patience_s: float) -> dict[str, float]:
    """The measures of one process by key."""
    found: dict[str, float] = {}

    def note(message: dict[str, Any], since_start_s: float) -> None:
        if "answered" in message:
            found["startup_ms"] = since_start_s * 1e3
            found["load_ms"] = float(message["load_ms"])
        if "peak_bytes" in message:
            found["peak_memory_mib"] = float(message["peak_bytes"]) / 2**20

    run_child("tauten.run.measure._fresh_main", spec, sample, note, patience_s=patience_s)
    if set(found) != set(_UNITS):
        raise MeasureError("the measuring process ended without an answer")
    return found


def _measure(values: list[float], unit: str, on: str) -> Measure:
    # Of logarithms, since none of these can be zero or less: a ratio of two keeps a finite interval.
    value, low, high = np.exp(student(np.log(values)))
    return Measure(
        value=float(value), low=float(low), high=float(high), unit=unit, better="lower", repeats=len(values), on=on
    )
