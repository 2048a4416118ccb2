"""The figures: that they count what happened, under the names that dashboards know."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tauten.errors import EngineError
from tauten.run.serve.call import Batch
from tauten.run.serve.statistics import BUCKETS_S, PHASES, Histogram, Statistics
from tests.unit.serve.tiny import Broken, Double, Running, ask, ones_request, running

Key = tuple[str, str, str]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Double(), Broken(EngineError("broken"))) as server:
        yield server


def samples(server: Running) -> dict[Key, float]:
    """Every sample by name, model and the label that tells it from its like."""
    reply = ask(server.port, "GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        for sample in family.samples:
            if family.name.startswith("process_"):
                continue
            assert sample.labels["version"] == "1"
            other = sample.labels.get("reason") or sample.labels.get("le") or ""
            found[sample.name, sample.labels["model"], other] = sample.value
    return found


def test_answers_are_counted_by_request_and_by_sample(server: Running) -> None:
    before = samples(server)
    for rows in (1, 4):
        assert ask(server.port, "POST", "/v2/models/m/infer", ones_request(rows)).status == 200
    after = samples(server)

    def grew(name: str, other: str = "") -> float:
        return after[name, "m", other] - before[name, "m", other]

    assert grew("nv_inference_request_success") == 2
    assert grew("nv_inference_count") == 5
    assert grew("nv_inference_exec_count") == 2
    assert after["nv_inference_pending_request_count", "m", ""] == 0
    for phase in PHASES:
        name = f"tauten_{phase}_duration_seconds"
        assert grew(f"{name}_count") == grew(f"{name}_bucket", "+Inf") == 2
        assert grew(f"{name}_sum") * 1e6 == pytest.approx(grew(f"nv_inference_{phase}_duration_us"), abs=1)
    whole = grew("nv_inference_request_duration_us")
    parts = sum(grew(f"nv_inference_{phase}_duration_us") for phase in PHASES if phase != "request")
    assert 0 < parts <= whole + len(PHASES)  # each is rounded to whole microseconds


def test_failures_are_counted_by_reason(server: Running) -> None:
    before = samples(server)
    ask(server.port, "POST", "/v2/models/n/infer", ones_request())
    ask(server.port, "POST", "/v2/models/n/infer", {})
    after = samples(server)
    grown = {key[2]: after[key] - before[key] for key in after if key[:2] == ("nv_inference_request_failure", "n")}
    assert grown == {"REJECTED": 0, "CANCELED": 0, "BACKEND": 1, "OTHER": 1}
    assert after["nv_inference_request_success", "n", ""] == 0


def test_batches_and_the_process_are_told(server: Running) -> None:
    before = ask(server.port, "GET", "/metrics").body.decode()
    ask(server.port, "POST", "/v2/models/m/infer", ones_request(3))
    after = ask(server.port, "GET", "/metrics").body.decode()

    def value(text: str, name: str) -> float:
        (line,) = (line for line in text.splitlines() if line.startswith(name))
        return float(line.split()[-1])

    for bound, more in (("1.0", 0), ("2.0", 0), ("4.0", 1), ("+Inf", 1)):
        name = f'tauten_batch_rows_bucket{{le="{bound}",model="m"'
        assert value(after, name) - value(before, name) == more
    assert value(after, 'tauten_batch_rows_sum{model="m"') - value(before, 'tauten_batch_rows_sum{model="m"') == 3
    assert value(after, 'tauten_instances{model="m"') == 1
    if sys.platform == "linux":
        assert value(after, "process_resident_memory_bytes") > 10**7
        assert value(after, "process_cpu_seconds_total") > 0


def test_statistics_are_those_of_the_metrics(server: Running) -> None:
    ask(server.port, "POST", "/v2/models/m/infer", ones_request(3))
    found = samples(server)
    (stats,) = ask(server.port, "GET", "/v2/models/m/stats").json()["model_stats"]
    assert (stats["name"], stats["version"]) == ("m", "1")
    assert stats["inference_count"] == found["nv_inference_count", "m", ""]
    assert stats["execution_count"] == found["nv_inference_exec_count", "m", ""]
    assert stats["last_inference"] > 0
    spent = stats["inference_stats"]
    assert spent["success"]["count"] == found["nv_inference_request_success", "m", ""]
    assert spent["compute_infer"]["ns"] // 1000 == found["nv_inference_compute_infer_duration_us", "m", ""]
    assert spent["fail"]["count"] == 0


@given(st.lists(st.integers(0, 20 * 10**9)))
def test_a_histogram_counts_each_duration_once_under_its_bound(durations_ns: list[int]) -> None:
    histogram = Histogram()
    for begin in range(0, len(durations_ns), 3):
        histogram.add_all(np.array(durations_ns[begin : begin + 3], np.int64))
    assert histogram.total_ns == sum(durations_ns)
    seen = 0
    for bound, count in zip(BUCKETS_S, histogram.counts, strict=False):
        seen += count
        assert seen == sum(duration_ns * 1e-9 <= bound for duration_ns in durations_ns)
    assert seen + histogram.counts[-1] == len(durations_ns)


def test_every_phase_needs_its_duration() -> None:
    statistics = Statistics()
    statistics.succeeded(1, (1, 2, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="zip"):
        _ = statistics.phases


def test_what_is_written_is_counted_when_it_is_asked_for_and_when_it_has_grown() -> None:
    statistics = Statistics()
    for number in range(5000):
        statistics.succeeded(2, (number, 1, 2, 3, 4))
        assert len(statistics._fresh) <= 1024
    assert statistics.inferences == 10_000
    assert statistics.phases["request"].count == statistics.successes == 5000
    assert statistics.phases["request"].total_ns == sum(range(5000))
    assert statistics.phases["compute_output"].total_ns == 20_000


def test_batches_are_counted_by_their_rows() -> None:
    statistics = Statistics()
    for rows, duration_ns in ((1, 10), (4, 30), (1, 20)):
        statistics.executed(Batch([], rows, "test"), duration_ns)
    assert statistics.executions == 3
    assert statistics.batches == {1: (2, 30), 4: (1, 30)}
