"""A server that remembers answers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import tauten
from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.run.serve.cache.settings import CacheSettings
from tests.unit.serve.artifacts import null_artifact
from tests.unit.serve.redis_server import PROGRAM, REASON, redis_server
from tests.unit.serve.tiny import Double, Gated, InMemory, Running, ask, ones_request, running

MEMORY = CacheSettings()


class Counting(Double):
    """Counts the rows that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        self.rows += len(inputs["x"])
        return super().run(inputs)


class Mean(InMemory):
    """Answers one number for the whole request: there is no batch."""

    def __init__(self) -> None:
        super().__init__([TensorSpec(name="x", shape=("n",))], [TensorSpec(name="mean", shape=())])
        self.calls = 0

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        self.calls += 1
        return {"mean": np.asarray(np.asarray(inputs["x"], np.float32).mean())}


def metric(server: Running, name: str) -> float:
    lines = ask(server.port, "GET", "/metrics").body.decode().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[-1])


def test_a_request_that_came_before_is_not_computed_again() -> None:
    engine = Counting()
    with running(engine, cache=MEMORY) as server, tauten.Client(server.url) as client:
        for x in ([[1, 2, 3]], [[4, 5, 6], [1, 2, 3]], [[4, 5, 6]], [[1, 2, 3], [1, 2, 3]]):
            rows = np.array(x, np.float32)
            outputs = client.infer("m", {"x": rows})
            np.testing.assert_array_equal(outputs["double"], rows * 2)
            np.testing.assert_array_equal(outputs["total"], rows.sum(axis=1))
        assert engine.rows == 2
        assert metric(server, "nv_cache_num_hits_per_model{") == 4
        assert metric(server, "nv_cache_num_misses_per_model{") == 2
        assert metric(server, "nv_cache_num_entries") == 2
        assert metric(server, "tauten_cache_bytes") > 0


def test_what_is_asked_of_an_answer_may_differ() -> None:
    engine = Counting()
    with running(engine, cache=MEMORY) as server, tauten.Client(server.url) as client:
        x = np.ones((1, 3), np.float32)
        assert list(client.infer("m", {"x": x}, outputs=["total"])) == ["total"]
        assert list(client.infer("m", {"x": x}, outputs=["double"], binary=False)) == ["double"]
        reply = ask(server.port, "POST", "/v2/models/m/infer", ones_request(id="mine"), {"Tauten-Explain": "1"})
        assert reply.json()["id"] == "mine"
        assert reply.headers["tauten-cached"] == "1"
        assert engine.rows == 1


def test_two_models_have_answers_of_their_own() -> None:
    with running(Counting(), Counting(), cache=MEMORY) as server, tauten.Client(server.url) as client:
        for name in ("m", "n"):
            client.infer(name, {"x": np.ones((1, 3), np.float32)})
        assert metric(server, "nv_cache_num_entries") == 2


def test_a_model_without_a_batch_remembers_whole_requests() -> None:
    engine = Mean()
    with running(engine, cache=MEMORY) as server, tauten.Client(server.url) as client:
        for x in ([1, 2], [1, 2], [1, 2, 3], [1, 2, 3]):
            assert client.infer("m", {"x": np.array(x, np.float32)})["mean"] == np.mean(x)
        assert engine.calls == 2


def test_equal_requests_in_flight_are_computed_once() -> None:
    engine = Gated()
    with running(engine, cache=MEMORY, run_in="thread") as server, tauten.Client(server.url) as client:
        found: list[Arrays] = []
        asked = [
            threading.Thread(target=lambda: found.append(client.infer("m", {"x": np.ones((1, 3), np.float32)})))
            for _ in range(8)
        ]
        for thread in asked:
            thread.start()
        engine.wait_entered()
        while metric(server, "tauten_cache_shared{") < 7:
            time.sleep(0.01)
        engine.gate.set()
        for thread in asked:
            thread.join()
        assert engine.calls == 1
        assert all((outputs["double"] == 2).all() for outputs in found)
        assert len(found) == 8


def test_without_a_cache_nothing_is_remembered() -> None:
    engine = Counting()
    with running(engine) as server, tauten.Client(server.url) as client:
        for _ in range(2):
            client.infer("m", {"x": np.ones((1, 3), np.float32)})
        assert engine.rows == 2
        assert b"nv_cache" not in ask(server.port, "GET", "/metrics").body


def test_a_server_starts_and_stops_with_redis_under_load(tmp_path: Path) -> None:
    if PROGRAM is None:
        pytest.skip(REASON)
    settings = {"cache": CacheSettings(where="memory")}
    with redis_server(tmp_path) as redis:
        settings["cache"] = CacheSettings(where=redis.url, max_bytes=20_000)
        with (
            running(Double(), **settings) as server,
            tauten.Client(server.url, retries=tauten.Retries(tries=1)) as client,
        ):
            faults: list[BaseException] = []
            done = threading.Event()

            def load(seed: int) -> None:
                draw = np.random.default_rng(seed)
                try:
                    while not done.is_set():
                        x = draw.integers(0, 4, (int(draw.integers(1, 4)), 3)).astype(np.float32)
                        np.testing.assert_array_equal(client.infer("m", {"x": x})["double"], x * 2)
                except BaseException as fault:  # noqa: BLE001 - told in the test's own thread
                    faults.append(fault)

            threads = [threading.Thread(target=load, args=(seed,)) for seed in range(4)]
            for thread in threads:
                thread.start()
            for step in (redis.kill, redis.start, redis.freeze, redis.thaw, redis.kill):
                time.sleep(0.3)
                step()
            time.sleep(0.3)
            done.set()
            for thread in threads:
                thread.join()
            assert faults == []
            assert metric(server, "nv_cache_num_hits_per_model{") > 0


def test_settings_survive_json() -> None:
    settings = CacheSettings(where="redis://127.0.0.1:6379/0", max_bytes="64MB", age_s=60)  # type: ignore[arg-type]
    assert settings.max_bytes == 64_000_000
    assert CacheSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--cache", "64MB"],
            "error: --cache: expected 'memory' or a URL such as redis://127.0.0.1:6379/0 (got",
        ),
        (["--cache", "memory", "--cache-size", "64XB"], "error: --cache-size: expected a size such as 50KB"),
        (["--cache", "memory", "--cache-age", "0"], "error: --cache-age: "),
        (["--cache", "64MB", "--cache-age", "0"], "; --cache-age: "),
    ],
)
def test_a_wrong_option_is_told_by_its_name(options: list[str], said: str, tmp_path: Path) -> None:
    tauten = str(Path(sys.executable).with_name("tauten"))
    command = [tauten, "serve", str(null_artifact(tmp_path / "nothing")), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr.replace("\n", " ")
    assert "CacheSettings" not in done.stderr
