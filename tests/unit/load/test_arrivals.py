"""When requests start, what is sent, and what the latencies say."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauten.core.tensor import TensorSpec
from tauten.errors import ConfigError, ServeError
from tauten.run.load.arrivals import arrivals, summarize
from tauten.run.load.client import Address
from tauten.run.load.payload import load_npz, random_inputs, read_specs, rows
from tauten.run.load.scenario import LoadResult, Scenario


@given(st.floats(0.1, 1000), st.floats(0.01, 5), st.integers(0, 2**32))
def test_arrivals_are_in_order_in_time_and_repeatable(rate: float, seconds: float, seed: int) -> None:
    times = list(arrivals(rate, seconds, seed))
    assert times == sorted(times)
    assert all(0 <= time < seconds for time in times)
    assert times == list(arrivals(rate, seconds, seed))
    longer = list(arrivals(rate, 2 * seconds, seed))
    assert longer[: len(times)] == times


def test_arrivals_are_a_poisson_process() -> None:
    times = np.array(list(arrivals(200, 100, seed=3)))
    counts = np.histogram(times, bins=1000, range=(0, 100))[0]
    assert counts.mean() == pytest.approx(20, rel=0.05)
    assert counts.var() == pytest.approx(20, rel=0.15)  # mean and variance of a Poisson count are equal
    gaps = np.array([after - before for before, after in pairwise(times)])
    assert (gaps > 1 / 200).mean() == pytest.approx(np.exp(-1), abs=0.02)


def test_other_seeds_give_other_times() -> None:
    assert list(arrivals(100, 1, seed=0)) != list(arrivals(100, 1, seed=1))


def test_a_summary_is_made_of_latencies_that_were_seen() -> None:
    latency = summarize([float(number) for number in range(1, 101)])
    assert latency is not None
    assert (latency.mean, latency.p50, latency.p95, latency.p99, latency.max) == (50.5, 50, 95, 99, 100)
    assert summarize([]) is None


METADATA = {
    "inputs": [
        {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "x", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "fixed", "datatype": "BOOL", "shape": [2]},
    ]
}


def test_inputs_fit_the_metadata() -> None:
    specs = read_specs(METADATA)
    assert [spec.shape for spec in specs] == [("batch", "dim_1"), ("batch", 3), (2,)]
    inputs = random_inputs(specs, batch=4, seed=0)
    assert {name: (array.dtype.name, array.shape) for name, array in inputs.items()} == {
        "ids": ("int64", (4, 1)),
        "x": ("float32", (4, 3)),
        "fixed": ("bool", (2,)),
    }
    assert (inputs["ids"] == 1).all()
    assert len(set(inputs["x"].ravel().tolist())) == 12
    assert rows(inputs, specs) == 4
    np.testing.assert_array_equal(random_inputs(specs, 4, seed=0)["x"], inputs["x"])


def test_a_model_without_a_batch_counts_one_row() -> None:
    specs = (TensorSpec(name="x", shape=(2, 3)),)
    assert rows(random_inputs(specs, batch=8, seed=0), specs) == 1


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"inputs": 3}, {"inputs": [{}]}, {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1]}]}],
)
def test_metadata_that_cannot_be_used_is_an_error(metadata: object) -> None:
    with pytest.raises(ServeError, match="metadata cannot be used"):
        read_specs(metadata)


def test_inputs_come_from_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(load_npz(tmp_path / "in.npz")["x"], np.ones((2, 3)))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04broken", None])
def test_a_file_that_is_no_npz_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "in.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"expected a \.npz file"):
        load_npz(path)


def test_pickled_objects_and_a_single_array_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    np.save(tmp_path / "single.npy", np.ones(3))
    for name in ("pickled.npz", "single.npy"):
        with pytest.raises(ConfigError, match=r"expected a \.npz file"):
            load_npz(tmp_path / name)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "either concurrency"),
        ({"concurrency": 1, "rate": 2}, "either concurrency"),
        ({"concurrency": 0}, "concurrency"),
        ({"rate": 0}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"rate": 1, "seconds": 0}, "seconds"),
        ({"rate": 1, "url": "https://x"}, "http://127.0.0.1:8000"),
    ],
)
def test_a_scenario_is_checked_where_it_is_made(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Scenario(**{"url": "http://127.0.0.1:1", "model": "m", **fields})


def test_scenario_and_result_survive_json() -> None:
    scenario = Scenario(url="http://127.0.0.1:1/", model="m", rate=10)
    assert scenario.url == "http://127.0.0.1:1"
    result = LoadResult(
        scenario=scenario,
        seconds=1.0,
        requests=2,
        requests_per_s=2.0,
        rows_per_s=2.0,
        latency_ms=summarize([1.0, 2.0]),
        errors={"429": 3},
        sent_bytes=1,
        received_bytes=2,
    )
    assert LoadResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result.failures == 3
    assert ("errors: 429", "3") in result.rows()


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000),
        ("http://[::1]:9/", "::1", 9),
        ("http://localhost", "localhost", 80),
    ],
)
def test_an_address_is_read_from_a_url(url: str, host: str, port: int) -> None:
    address = Address.parse(url)
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "http://", "http://h:99999", "http://h/path", "http://h?q", "http://[x"]
)
def test_what_is_no_address_is_an_error(url: str) -> None:
    with pytest.raises(ConfigError, match="expected a URL"):
        Address.parse(url)
