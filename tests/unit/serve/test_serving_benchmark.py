"""The parts that the serving benchmark's figures rest on: its load generator, its plan, and its arithmetic."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.serving import generator
from bench.serving.figures import collected
from bench.serving.generator import compiled, load
from bench.serving.models import post, rows, v2_binary, v2_json, write_requests
from bench.serving.plan import PLAN, RAW, Point, chosen, foretold_s, slots, turned
from bench.serving.process import Running, free_port
from bench.serving.rounds import Store
from bench.serving.tables import table

linux = pytest.mark.skipif(sys.platform != "linux", reason="the load generator waits by epoll")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Both programs, compiled into a folder of the tests."""
    folder = tmp_path_factory.mktemp("serving")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "FOLDER", folder)
        compiled("load")
        compiled("answer")
        yield folder


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "requests", [post("/", bytes(size), {}) for size in (3000, 5000)])


@contextlib.contextmanager
def canned(*answers: bytes) -> Iterator[int]:
    """A server that gives ``answers`` in turn on each connection, one for each whole request; its port."""

    def serve(connection: socket.socket) -> None:
        index = 0
        with connection, contextlib.suppress(OSError):
            file = connection.makefile("rb")
            while line := file.readline():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split()[1])
                if line == b"\r\n":
                    file.read(length)
                    answer = answers[index % len(answers)]
                    index += 1
                    if not answer:
                        return
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield int(listener.getsockname()[1])


RIGHT = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@linux
def test_a_closed_loop_counts_every_right_answer(programs: Path, requests: Path, tmp_path: Path) -> None:
    port = free_port()

    def answers(port: int) -> bool:
        socket.create_connection(("127.0.0.1", port)).close()
        return True

    command = [str(compiled("answer")), str(port)]
    with Running(command, {}, port, answers, tmp_path / "log", cores="0-1023") as running:
        found = load(port, requests, 8, seconds=0.4, warmup=0.1, pids=running.pids(), wait=True)
        assert running.pids() == [running.pids()[0]]
        assert running.pss_mb() > 0
    assert found["errors"] == {}
    assert found["requests"] == found["right"] > 100
    assert found["req_s"] == pytest.approx(found["right"] / 0.4, rel=1e-3)
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert found["cpu_s"] > 0
    # Eight are under way at any time: Little's law holds, but for what the edges cut.
    assert found["req_s"] * found["mean_ms"] / 1000 == pytest.approx(8, rel=0.25)


@linux
def test_an_open_loop_keeps_its_rate_and_counts_from_when_a_request_was_due(programs: Path, requests: Path) -> None:
    with canned(RIGHT) as port:
        found = load(port, requests, 8, seconds=1.0, warmup=0.1, rate=400, wait=True)
    assert found["errors"] == {}
    assert found["right"] == pytest.approx(400, abs=5 * 20)  # five standard deviations

    def slow(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            while connection.recv(1 << 20):
                time.sleep(0.02)  # fifty a second of the hundred that come
                connection.sendall(RIGHT)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=slow, args=(listener,), daemon=True).start()
        found = load(listener.getsockname()[1], requests, 1, seconds=1.0, warmup=0, rate=100, wait=True)
    # An answer takes 20 ms from when its request was sent; they wait ever longer for the only connection.
    assert found["p99_ms"] > 300
    assert found["max_ms"] > 300


@linux
def test_what_is_no_right_answer_is_counted_by_its_kind(programs: Path, requests: Path) -> None:
    refused = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"
    with canned(RIGHT, refused) as port:
        found = load(port, requests, 2, seconds=0.3, warmup=0, wait=True)
    assert found["errors"].keys() == {"503"}
    assert found["errors"]["503"] == pytest.approx(found["right"], abs=2)
    with canned(RIGHT, b"") as port:  # closes instead of its second answer
        found = load(port, requests, 2, seconds=0.3, warmup=0, wait=True)
    assert found["errors"].keys() == {"closed"}
    with canned(RIGHT, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nlonger") as port:
        found = load(port, requests, 2, seconds=0.3, warmup=0, wait=True)
    assert found["errors"].keys() == {"malformed"}
    with canned(b"HTTP/1.1 200 OK\r\n\r\n") as port:
        found = load(port, requests, 2, seconds=0.3, warmup=0, wait=True)
    assert found["errors"].keys() == {"malformed"}
    assert found["right"] == 0


def test_requests_say_what_was_meant() -> None:
    row = rows({"ids": np.arange(6).reshape(2, 3), "x": np.array([[0.5], [0.123456]], np.float32)})[1]
    told = json.loads(v2_json(row))["inputs"]
    assert [one["data"] for one in told] == [[3, 4, 5], [0.123456]]
    body, length = v2_binary(row)
    told = json.loads(body[:length])["inputs"]
    assert [(one["shape"], one["datatype"]) for one in told] == [([1, 3], "INT64"), ([1, 1], "FP32")]
    assert sum(one["parameters"]["binary_data_size"] for one in told) == len(body) - length
    assert np.frombuffer(body, np.float32, 1, length + 24).tolist() == row["x"].ravel().tolist()


def test_turns_begin_elsewhere_and_the_plan_fits_into_its_time() -> None:
    assert [turned("abc", by) for by in range(3)] == [["a", "b", "c"], ["a", "c", "b"], ["c", "a", "b"]]
    assert turned((), 1) == []
    assert foretold_s(PLAN, 5, 1.0) < 35 * 60
    (part,) = chosen(PLAN, {"granian"}, {"lenet-json-c32"})
    assert [(str(row.point), row.servers) for row in part.rows] == [("lenet-json-c32", ("granian",))]
    assert slots(part) == 4


def _record(turn: int, server: str, req_s: float, load: str = "c32", mode: str = "binary") -> dict[str, Any]:
    point = Point("lenet", mode, load)
    return {
        "round": 0, "turn": turn, "row": "S/lenet-binary-c32", "server": server, "point": str(point),
        "model": point.model, "mode": mode, "load": load, "size": 0, "req_s": req_s, "requests": int(req_s * 4),
        "seconds": 4.0, "cpu_s": 4.0, "p50_ms": 1.0, "p99_ms": 2.0, "max_ms": 3.0, "errors": {}, "ready_s": 0.5,
        "pss_mb": 60.0, "pss_loaded_mb": 70.0,
    }  # fmt: skip


def test_ratios_are_taken_within_the_turn() -> None:
    rates = {"granian": (1000, 2000, 4000), "tauten": (3000, 5000, 12_000)}
    records = [_record(turn, server, rate) for server, found in rates.items() for turn, rate in enumerate(found)]
    for turn in range(3):
        records += [
            _record(turn, RAW, 10_000 * (turn + 1) * share, load, RAW) for load, share in (("b1", 1), ("b32", 0.5))
        ]
    figures = collected(records, {})
    ours, granian = (next(one for one in figures["points"] if one["server"] == name) for name in ("tauten", "granian"))
    assert (ours["ratio_to_granian"], ours["ratio_to_granian_spread"]) == (3.0, [2.5, 3.0])
    assert ours["ratio_to_raw"] == pytest.approx(0.3)
    assert ours["ratio_to_raw_b32"] == pytest.approx(0.6)
    assert granian["tauten_over_it"] == 3.0
    assert (ours["req_s"], ours["req_s_spread"]) == (5000, [3000, 12_000])
    assert ours["cpu_s_per_1k"] == pytest.approx(4 / 20)
    (server,) = [one for one in figures["servers"] if one["server"] == "tauten"]
    assert server["ready_s"] == 0.5
    assert "| S, 32 connections | 5,000 | 2,000 |  | **3.00 (2.50 to 3.00)** |" in table(figures)


def test_finished_rows_are_kept_and_unfinished_ones_replaced(tmp_path: Path) -> None:
    path = tmp_path / "measured.jsonl"
    store = Store(path, {"seconds": 1.0})
    (group,) = chosen(PLAN, {"tauten", "granian"}, {"others"})
    (row,) = group.rows
    records = [{"round": 0, "row": f"others/{row.point}", "server": name} for name in row.servers]
    store.add(records[:1])
    assert not store.has(0, group, row)
    store.add(records)
    again = Store(path, {"seconds": 1.0})
    assert again.records == records
    assert again.has(0, group, row)
    assert not again.has(1, group, row)
    again.forget([group])
    assert Store(path, {"seconds": 1.0}).records == []
    with pytest.raises(SystemExit, match="begin with --fresh"):
        Store(path, {"seconds": 2.0})
