"""Measuring together, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tauten.core.target import Target
from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import MeasureError
from tauten.run.engines.null import Null
from tauten.run.measure._session_main import in_turn
from tauten.run.measure.session import measure_together

Make = Callable[..., Path]
SAMPLE = {"image": np.zeros((3, 4), np.float32)}
LATENCIES = {"latency_mean_ms", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms"}


def together(artifacts: dict[str, Path], **options: object) -> dict:
    return measure_together(artifacts, SAMPLE, **{"threads": 1, "seconds": 0.05, **options})


def test_all_are_measured_in_the_same_rounds(artifact_of: Make) -> None:
    told: list[tuple[str, float]] = []
    found = together(
        {"one": artifact_of("null", "a"), "other/ü": artifact_of("null", "b")},
        batches=(1, 8, 16, 32),
        progress=lambda what, share: told.append((what, share)),
    )
    assert list(found) == ["one", "other/ü"]
    for timing in found.values():
        # The target's batch is 16: 32 is left out.
        assert set(timing.measures) == LATENCIES | {f"throughput_per_s.{batch}" for batch in (1, 8, 16)}
        assert all(m.low <= m.value <= m.high and m.value > 0 for m in timing.measures.values())
        assert timing.measures["latency_p50_ms"].value <= timing.measures["latency_p99_ms"].value
        assert timing.measures["latency_p50_ms"].on == "1 thread, batch 1, 20 rounds"
    assert len(found["one"].rounds_p50_ms) == len(found["other/ü"].rounds_p50_ms) == 20
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_batches_that_shapes_or_target_do_not_take_are_left_out(artifact_of: Make) -> None:
    fixed = artifact_of("null", "fixed", inputs=(TensorSpec(name="image", shape=(1, 4)),))
    small = artifact_of("null", "small", target=Target(name="t", batch=8))
    found = together({"fixed": fixed, "small": small}, batches=(8, 16))
    assert set(found["fixed"].measures) == LATENCIES
    assert set(found["small"].measures) == LATENCIES | {"throughput_per_s.8"}


@pytest.mark.parametrize(
    ("batch", "expected"), [(1, [[0], [1], [2], [0]]), (2, [[0, 1], [0, 1]]), (5, [[0, 1, 2, 0, 1]])]
)
def test_calls_walk_over_the_rows(batch: int, expected: list[list[int]]) -> None:
    seen: list[list[float]] = []

    class Recording(Null):
        def run(self, inputs: Mapping[str, Array]) -> Arrays:
            seen.append(inputs["x"][:, 0].tolist())
            return {}

    specs = (TensorSpec(name="x", shape=("batch", 1)),)
    call = in_turn(Recording(specs, ()), {"x": np.arange(3, dtype=np.float32)[:, None]}, batch)
    for _ in expected:
        call()
    assert seen == expected


def test_the_threads_reach_the_engine(artifact_of: Make) -> None:
    assert "2 threads" in together({"x": artifact_of("threads")}, threads=2)["x"].measures["latency_p50_ms"].on
    with pytest.raises(MeasureError, match="expected 2 threads, got 1"):
        together({"x": artifact_of("threads")}, threads=1)


def test_what_an_engine_prints_disturbs_nothing(artifact_of: Make) -> None:
    assert together({"x": artifact_of("chatty")})["x"].measures


def test_the_process_imports_no_more_than_it_needs(
    artifact_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("numpy", "json", "tauten"):  # files of the working directory must not be picked up
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    assert together({"x": artifact_of("strict")})["x"].measures


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ("crash", r"(?s)killed by signal 9.*about to crash"),
        ("fail", "the accelerator is on strike"),
        ("bug", r"(?s)exit code 1.*RuntimeError: a bug of its own"),
        ("perpetual", "x: .*no engine named 'perpetual'"),
    ],
)
def test_an_engine_that_fails_is_a_clear_error(artifact_of: Make, engine: str, told: str) -> None:
    with pytest.raises(MeasureError, match=told):
        together({"fine": artifact_of("null"), "x": artifact_of(engine)})


def test_a_damaged_artifact_is_a_clear_error(artifact_of: Make) -> None:
    path = artifact_of("null")
    (path / "graph.bin").write_bytes(b"NO GRAPH")
    with pytest.raises(MeasureError, match=r"x: .*graph\.bin: .*sha256 differs"):
        together({"x": path})


def test_a_sample_that_does_not_fit_is_a_clear_error(artifact_of: Make) -> None:
    with pytest.raises(MeasureError, match="expected shape"):
        measure_together({"x": artifact_of("null")}, {"image": np.zeros((1, 5), np.float32)}, threads=1, seconds=0.05)
    with pytest.raises(MeasureError, match="expected an array for 'image'"):
        measure_together({"x": artifact_of("null")}, {"photo": np.zeros((1, 4))}, threads=1, seconds=0.05)


@pytest.mark.parametrize("options", [{"seconds": 0}, {"threads": 0}, {"batches": (0,)}, {"seconds": float("nan")}])
def test_impossible_requests_are_refused_before_anything_starts(tmp_path: Path, options: dict) -> None:
    with pytest.raises(MeasureError, match="expected seconds above 0"):
        together({"x": tmp_path}, **options)
    with pytest.raises(MeasureError, match="at least one artifact"):
        together({})


def gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_silent_process_is_stopped(artifact_of: Make, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="silent for 2 s"):
        together({"x": artifact_of("silent")}, patience_s=2)
    assert gone(int((tmp_path / "pid").read_text()))


PARENT = """
    import sys
    from pathlib import Path
    import numpy as np
    from tauten.run.measure.session import measure_together
    try:
        measure_together({"x": Path(sys.argv[1])}, {"image": np.zeros((1, 4), np.float32)}, threads=1)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_ctrl_c_ends_the_measuring_process_too(artifact_of: Make, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(PARENT), str(artifact_of("silent"))]) as parent:
        for _ in range(600):
            if pid.exists() and pid.read_text():
                break
            time.sleep(0.05)
        assert os.getpgid(int(pid.read_text())) != os.getpgrp(), "a terminal's Ctrl-C would reach it first"
        parent.send_signal(signal.SIGINT)
        assert parent.wait(30) == 130
    assert gone(int(pid.read_text()))
