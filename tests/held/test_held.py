"""What the server bears, with real processes: the scenes of the serving benchmark, small."""

from __future__ import annotations

import pytest

from bench.serving import held
from bench.serving.models import Served, nothing

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """One that answers zeros."""
    return nothing("held", 64)


def test_malformed_requests_are_answered_and_change_nothing(model: Served) -> None:
    counts = held.malformed(model, count=1500, seed=7)
    assert counts["malformed_growth_percent"] < 5
    statuses = {int(status) for status in counts["malformed_statuses"]}
    assert {400, 404} <= statuses  # it does send what it says


def test_malformed_messages_over_grpc_are_answered_and_change_nothing(model: Served) -> None:
    pytest.importorskip("grpc")
    counts = held.malformed_grpc(model, count=1500, seed=7)
    assert counts["malformed_grpc_growth_percent"] < 8
    assert {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"} <= counts["malformed_grpc_statuses"].keys()


@pytest.mark.slow
def test_killed_workers_lose_no_request(model: Served) -> None:
    counts = held.killed(model, kills=3, every_s=1.0)
    assert counts["lost"] == 0
    assert counts["killed_answered"] > 10


@pytest.mark.slow
def test_slow_clients_are_not_felt_by_others(model: Served) -> None:
    counts = held.slow(model, connections=800, trickling=100, seconds=1.0)
    assert counts["slow_connections"] == 800


@pytest.mark.slow
def test_an_overloaded_server_goes_on_answering_and_recovers(model: Served) -> None:
    counts = held.overload(model, connections=600, seconds=1.0, rounds=1)
    assert counts["overload_goodput_ratio"] > 0.2  # the figure itself is the benchmark's
    assert counts["overload_recovered_ratio"] > 0.2
    assert counts["overload_refused"] > 0


@pytest.mark.slow
def test_memory_does_not_grow_with_work(model: Served) -> None:
    counts = held.soak(model, seconds=6.0)
    assert counts["soak_growth_percent"] < 5
    assert len(counts["soak_mb"]) == 10
