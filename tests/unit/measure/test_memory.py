"""Memory and start-up of fresh processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tauten.errors import ArtifactError, MeasureError
from tauten.run.measure.memory import measure_fresh

Make = Callable[..., Path]
SAMPLE = {"image": np.zeros((3, 4), np.float32)}


def test_peak_memory_is_that_of_the_fresh_process_alone(artifact_of: Make) -> None:
    ballast = np.ones(300 * 2**20, np.uint8)  # what this process holds must not count
    large_sample = {"image": np.zeros((10_000_000, 4), np.float32)}  # nor the rows that are not run
    light = measure_fresh(artifact_of("strict"), large_sample, threads=1, repeats=2)
    heavy = measure_fresh(artifact_of("heavy"), SAMPLE, threads=1, repeats=2)
    assert ballast.any()
    assert set(light) == {"peak_memory_mib", "startup_ms", "load_ms"}
    assert 10 < light["peak_memory_mib"].value < 150
    assert 90 < heavy["peak_memory_mib"].value - light["peak_memory_mib"].value < 130
    assert heavy["peak_memory_mib"].repeats == 2
    assert light["startup_ms"].low >= 0
    assert light["startup_ms"].value > 10
    assert 0 < light["load_ms"].value < light["startup_ms"].value


@pytest.mark.parametrize(
    ("engine", "told"), [("crash", "killed by signal 9"), ("fail", "on strike"), ("bug", "a bug of its own")]
)
def test_failures_are_clear(artifact_of: Make, engine: str, told: str) -> None:
    with pytest.raises(MeasureError, match=told):
        measure_fresh(artifact_of(engine), SAMPLE, threads=1, repeats=1)


def test_a_damaged_artifact_is_refused(artifact_of: Make) -> None:
    path = artifact_of("null")
    (path / "graph.bin").unlink()
    with pytest.raises(ArtifactError, match=r"graph\.bin"):
        measure_fresh(path, SAMPLE, threads=1)


def test_one_repeat_at_least(artifact_of: Make) -> None:
    with pytest.raises(MeasureError, match="at least 1"):
        measure_fresh(artifact_of("null"), SAMPLE, threads=1, repeats=0)
