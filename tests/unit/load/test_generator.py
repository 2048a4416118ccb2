"""The load generator against real servers on this machine."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauten.core.tensor import Array, Arrays
from tauten.errors import EngineError, InputError, ServeError
from tauten.run.load.client import Address, Client, encode_get
from tauten.run.load.generator import load_test, run_load
from tauten.run.load.scenario import Scenario
from tests.unit.serve.tiny import WAIT_S, Broken, Double, Gated, Running, ask, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Double()) as server:
        yield server


def scenario(url: str, **fields: Any) -> Scenario:
    loop = {} if "rate" in fields else {"concurrency": 2}
    return Scenario(
        **{"url": url, "model": "m", "seconds": 0.3, "warmup_s": 0.1, "timeout_s": WAIT_S, **loop, **fields}
    )


def success_count(server: Running) -> int:
    (stats,) = ask(server.port, "GET", "/v2/models/m/stats").json()["model_stats"]
    return int(stats["inference_stats"]["success"]["count"])


@pytest.mark.parametrize("binary", [True, False])
def test_a_closed_loop_keeps_its_clients_busy(server: Running, binary: bool) -> None:
    before = success_count(server)
    result = load_test(scenario(server.url, concurrency=3, batch=4, binary=binary))
    assert result.errors == {}
    assert result.unfinished == 0
    assert not result.interrupted
    assert result.seconds == 0.3
    # The first request and those of the warm-up are sent and not counted.
    assert 0 < result.requests < success_count(server) - before
    assert result.rows_per_s == pytest.approx(4 * result.requests_per_s)
    assert result.latency_ms is not None
    assert 0 < result.latency_ms.p50 <= result.latency_ms.p95 <= result.latency_ms.p99 <= result.latency_ms.max
    assert result.sent_bytes > result.requests * 4 * 3 * 4
    assert result.received_bytes > result.requests * 4 * 3 * 4


def test_an_open_loop_sends_what_its_schedule_says(server: Running) -> None:
    before = success_count(server)
    result = load_test(scenario(server.url, rate=200, seed=5))
    again = load_test(scenario(server.url, rate=200, seed=5))
    other = load_test(scenario(server.url, rate=200, seed=6))
    assert result.requests == again.requests != other.requests
    assert result.requests + result.unfinished <= success_count(server) - before


def test_an_open_loop_charges_a_stall_to_every_request_that_was_due() -> None:
    engine = Gated()
    engine.gate.set()
    with running(engine) as server:

        def stall() -> None:
            engine.gate.clear()
            time.sleep(0.5)
            engine.gate.set()

        timer = threading.Timer(0.2, stall)
        timer.start()
        result = load_test(scenario(server.url, rate=100, seconds=1.0, warmup_s=0.0, connections=1))
        timer.join()
    assert result.errors == {}
    assert result.unfinished == 0
    assert result.latency_ms is not None
    # One connection is held for half a second; some 50 requests were due meanwhile and waited 0.25 s on average. A
    # generator that counts from when it could send would see one slow request and a median of the others.
    assert result.latency_ms.mean > 50
    assert result.latency_ms.p95 > 250


def test_refusals_are_counted_by_status() -> None:
    class Slow(Double):
        def run(self, inputs: Mapping[str, Array]) -> Arrays:
            time.sleep(0.005)
            return super().run(inputs)

    with running(Slow(), queue=0) as server:
        result = load_test(scenario(server.url, concurrency=8))
    assert set(result.errors) == {"429"}
    assert result.requests > 0
    assert result.failures == result.errors["429"] > 0


def test_an_answer_that_does_not_come_is_counted_as_a_timeout() -> None:
    engine = Gated()
    engine.gate.set()
    with running(engine) as server:
        timer = threading.Timer(0.2, engine.gate.clear)
        timer.start()
        result = load_test(scenario(server.url, concurrency=1, seconds=0.5, warmup_s=0, timeout_s=0.3))
        engine.gate.set()
        timer.join()
    assert set(result.errors) == {"timeout"}


def test_a_server_that_goes_away_is_counted_and_not_hammered() -> None:
    with running(Double()) as server:
        timer = threading.Timer(0.3, server.stop_soon)
        timer.start()
        result = load_test(scenario(server.url, concurrency=1, seconds=1.0, warmup_s=0))
        timer.join()
    assert result.requests > 0
    assert set(result.errors) == {"connection"}
    assert result.errors["connection"] < 100


def test_a_test_that_is_stopped_gives_what_it_has(server: Running) -> None:
    async def main() -> Any:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.4, stop.set)
        return await run_load(scenario(server.url, seconds=600), stop=stop)

    result = asyncio.run(main())
    assert result.interrupted
    assert result.requests > 0
    assert 0.1 < result.seconds < 60
    assert result.requests_per_s == pytest.approx(result.requests / result.seconds, rel=0.2)


def test_a_test_that_is_stopped_in_its_warm_up_has_measured_nothing(server: Running) -> None:
    async def main() -> Any:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.2, stop.set)
        return await run_load(scenario(server.url, rate=50, warmup_s=60, seconds=600), stop=stop)

    result = asyncio.run(main())
    assert result.interrupted
    assert (result.requests, result.seconds, result.requests_per_s, result.latency_ms) == (0, 0.0, 0.0, None)
    assert result.unfinished == 0


def test_inputs_of_ones_own_are_sent(server: Running) -> None:
    result = load_test(scenario(server.url), inputs={"x": np.zeros((7, 3), np.float32)})
    assert result.rows_per_s == pytest.approx(7 * result.requests_per_s)
    with pytest.raises(InputError, match="expected inputs"):
        load_test(scenario(server.url), inputs={"z": np.zeros((7, 3), np.float32)})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_unknown_model_and_an_unreachable_server_are_errors(server: Running) -> None:
    with pytest.raises(ServeError, match="status 404: no model named 'nope'"):
        load_test(scenario(server.url, model="nope"))
    with pytest.raises(ServeError, match=r"cannot reach a server at 127\.0\.0\.1"):
        load_test(scenario(f"http://127.0.0.1:{free_port()}"))


def test_a_model_that_refuses_the_first_request_is_an_error() -> None:
    with (
        running(Broken(EngineError("no luck"))) as server,
        pytest.raises(ServeError, match=r"refused with status 500: .*no luck"),
    ):
        load_test(scenario(server.url))


@contextmanager
def scripted(*answers: bytes) -> Iterator[int]:
    """A server that gives each connection one of ``answers`` and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def work() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=work)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(WAIT_S)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "closed the connection"),
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "expected JSON, got status 200"),
    ],
)
def test_a_server_of_another_kind_is_an_error(answer: bytes, says: str) -> None:
    with scripted(answer) as port, pytest.raises(ServeError, match=says):
        load_test(scenario(f"http://127.0.0.1:{port}"))


def test_a_client_connects_again_after_a_close_and_passes_over_continue() -> None:
    close = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n"

    async def main(port: int) -> list[bytes]:
        client = Client(Address("127.0.0.1", port))
        bodies = [(await client.send(encode_get(Address("127.0.0.1", port), "/"))).body for _ in range(2)]
        client.close()
        return bodies

    with scripted(close + b"a", close + b"b") as port:
        assert asyncio.run(main(port)) == [b"a", b"b"]


# The command.


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tauten.cli.main", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_prints_one_document(server: Running) -> None:
    done = bench(server.url, "--model", "m", "--rate", "100", "--seconds", "0.5", "--batch", "2", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["scenario"]["rate"] == 100
    assert document["rows_per_s"] == pytest.approx(2 * document["requests_per_s"])
    assert document["latency_ms"]["p50"] > 0


def test_the_command_prints_a_table(server: Running, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((2, 3), np.float32))
    done = bench(server.url, "--model", "m", "--seconds", "0.3", "--json-body", "--inputs", str(tmp_path / "in.npz"))
    assert done.returncode == 0, done.stderr
    for word in ("requests/s", "rows/s", "p50 ms", "p95 ms", "p99 ms", "mean ms"):
        assert word in done.stdout


def test_the_command_says_what_is_wrong(server: Running) -> None:
    unknown = bench(server.url, "--model", "nope", "--json")
    assert unknown.returncode == 1
    assert "no model named 'nope'" in json.loads(unknown.stdout)["error"]["message"]
    unreachable = bench(f"http://127.0.0.1:{free_port()}", "--model", "m")
    assert unreachable.returncode == 1
    assert "error: cannot reach a server at 127.0.0.1" in unreachable.stderr
    both = bench(server.url, "--model", "m", "--rate", "3", "--concurrency", "2")
    assert both.returncode == 2
    assert both.stderr.strip().endswith("either concurrency (closed loop) or rate (open loop)")


def test_ctrl_c_shows_what_was_measured() -> None:
    with running(Double()) as server:
        command = [sys.executable, "-m", "tauten.cli.main", "bench", server.url, "--model", "m", "--seconds", "600"]
        process = subprocess.Popen([*command, "--warmup", "0", "--json"], stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + WAIT_S
        while success_count(server) < 50 and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=WAIT_S)
    document = json.loads(output)
    assert process.returncode == 130
    assert document["interrupted"] is True
    assert document["requests"] > 0
