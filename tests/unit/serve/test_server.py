"""A server from start to stop, in the process and as a command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import ArtifactError, ConfigError, EngineError, NotReady, ServeError
from tauten.run.serve.call import Call
from tauten.run.serve.model import ServedModel
from tauten.run.serve.server import Server, loop_factory, run_loop
from tauten.run.serve.settings import ServeSettings
from tests.unit.serve.artifacts import linear_artifact, null_artifact
from tests.unit.serve.tiny import (
    GET_LIVE,
    WAIT_S,
    Broken,
    Double,
    Gated,
    InMemory,
    ask,
    ones_request,
    post,
    read_all,
    read_replies,
    running,
    tensor,
    until,
    wire,
)

INFER = post("/v2/models/m/infer", json.dumps(ones_request()).encode())


def test_stopping_finishes_what_is_under_way_and_takes_no_more() -> None:
    engine = Gated()
    with running(engine) as server, wire(server.port) as busy, wire(server.port) as idle, wire(server.port) as slow:
        idle.sendall(GET_LIVE)
        read_replies(idle, 1)
        slow.sendall(INFER[:-4])
        busy.sendall(INFER)
        engine.wait_entered()
        stopped = server.stop_soon()
        assert read_all(idle) == b""
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S)
        assert not stopped.done()
        slow.sendall(INFER[-4:])
        engine.gate.set()
        for connection in (busy, slow):
            reply = read_all(connection)
            assert reply.startswith(b"HTTP/1.1 200 OK")
            assert b"\r\nConnection: close\r\n" in reply
        assert stopped.result(WAIT_S) == 0


def test_stopping_waits_only_so_long() -> None:
    engine = Gated()
    with running(engine, drain_s=0.2) as server, wire(server.port) as connection:
        connection.sendall(INFER)
        engine.wait_entered()
        assert server.stop_soon().result(WAIT_S) == 1
        with contextlib.suppress(ConnectionError):
            assert read_all(connection) == b""
        engine.gate.set()


def test_while_stopping_the_server_is_alive_and_not_ready() -> None:
    engine = Gated()
    ready = b"GET /v2/health/ready HTTP/1.1\r\n\r\n"
    with running(engine) as server, wire(server.port) as connection:
        connection.sendall(INFER + GET_LIVE + ready)
        engine.wait_entered()
        stopped = server.stop_soon()
        until(lambda: server.server._endpoints.draining)
        engine.gate.set()
        replies = read_replies(connection, 3)
        assert [reply.status for reply in replies] == [200, 200, 503]
        assert replies[2].headers["retry-after"] == "1"
        assert stopped.result(WAIT_S) == 0


def test_a_server_can_start_again() -> None:
    async def main() -> list[int]:
        server = Server([ServedModel("m", Double())], ServeSettings(port=0))
        found = []
        for _ in range(2):
            async with server:
                reply = await asyncio.to_thread(ask, server.port, "POST", "/v2/models/m/infer", ones_request())
                found.append(reply.status)
        with pytest.raises(ServeError, match="not started"):
            _ = server.port
        return found

    assert run_loop(main) == [200, 200]


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    with running(Double()) as server:
        other = Server([ServedModel("m", Double())], ServeSettings(port=server.port))
        with pytest.raises(ServeError, match=f"port {server.port} on 127.0.0.1 is in use"):
            run_loop(other.start)


def test_a_host_of_many_addresses_has_one_port() -> None:
    async def main() -> tuple[str, int]:
        async with Server([ServedModel("m", Double())], ServeSettings(host="localhost", port=0)) as server:
            reply = await asyncio.to_thread(ask, server.port, "GET", "/v2", host="localhost")
            return server.url, reply.status

    url, status = run_loop(main)
    assert url.startswith("http://localhost:")
    assert status == 200


def test_a_host_that_is_not_there_is_an_error() -> None:
    server = Server([ServedModel("m", Double())], ServeSettings(host="192.0.2.1", port=1))
    with pytest.raises(ServeError, match=r"cannot listen on port 1 on 192\.0\.2\.1: "):
        run_loop(server.start)


def test_a_model_that_is_not_started_is_not_ready() -> None:
    model = ServedModel("m", Double())
    assert not model.ready
    answered: list[Call] = []
    model.submit(Call((), (), 1, None, answered.append))
    assert isinstance(answered[0].fault, NotReady)
    assert "'m' is not ready" in str(answered[0].fault)


class Liar(InMemory):
    """Answers ``answer`` whatever it declares."""

    def __init__(self, answer: Arrays) -> None:
        super().__init__([TensorSpec(name="x", shape=("batch",))], [TensorSpec(name="y", shape=("batch", 2))])
        self.answer = answer

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        return self.answer


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (Broken(EngineError("no memory")), "does not answer a request of zeros: no memory"),
        (Liar({}), r"expected output 'y', got \[\]"),
        (Liar({"y": np.zeros((1, 2))}), "y: expected dtype float32, got float64"),
        (Liar({"y": np.zeros((1, 3), np.float32)}), r"y: expected shape \(batch, 2\), got \(1, 3\)"),
    ],
)
def test_a_dry_run_finds_a_model_that_cannot_answer(engine: InMemory, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        ServedModel("m", engine).dry_run()


def test_loading_refuses_a_changed_artifact(tmp_path: Path) -> None:
    path = null_artifact(tmp_path / "a")
    assert ServedModel.load(path).name == "nothing"
    (path / "graph.bin").write_bytes(b"nona")
    with pytest.raises(ArtifactError, match=r"graph\.bin"):
        ServedModel.load(path)


@pytest.mark.parametrize(
    "field", [{"port": 70_000}, {"instances": 0}, {"answer_s": 0}, {"limits": {"max_body_bytes": "x"}}]
)
def test_settings_are_checked_where_they_are_made(field: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(field))):
        ServeSettings(**field)


def test_settings_survive_json() -> None:
    settings = ServeSettings(port=1, limits={"max_body_bytes": "2MB"})
    assert settings.limits.max_body_bytes == 2_000_000
    assert ServeSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_the_fastest_event_loop_that_is_installed_is_used() -> None:
    pytest.importorskip("uvloop")
    loop = loop_factory()()
    loop.close()
    assert type(loop).__module__.startswith("uvloop")


# The command.

TAUTEN = [sys.executable, "-m", "tauten.cli.main"]


@contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """``tauten serve --json`` with what it printed when it was ready."""
    process = subprocess.Popen(
        [*TAUTEN, "serve", *arguments, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


def test_the_command_serves_an_artifact(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="builds an ONNX graph")
    with command(str(linear_artifact(tmp_path / "a")), "--instances", "2") as (process, ready):
        assert ready["ready"] is True
        assert ready["models"] == ["linear"]
        port = int(ready["url"].rpartition(":")[2])
        assert ask(port, "GET", "/v2/models/linear").json()["platform"] == "tauten_onnx"
        request = {"inputs": [tensor("x", "FP32", [2, 3], [1, 2, 3, 4, 5, 6])]}
        reply = ask(port, "POST", "/v2/models/linear/infer", request)
        assert reply.json()["outputs"] == [
            {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [4.0, 5.0, 10.0, 11.0]}
        ]
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0


@pytest.mark.parametrize("where", ["--instances", "--workers"])
def test_what_was_made_at_the_start_is_no_longer_searched_for_garbage(tmp_path: Path, where: str) -> None:
    """A collection of all that was imported takes tens of milliseconds, in which no request is answered."""
    handler = tmp_path / "frozen.py"
    handler.write_text("import gc\ndef after(outputs): return {'y': outputs['y'] + gc.get_freeze_count()}\n", "utf-8")
    with command(str(null_artifact(tmp_path / "a")), "--handler", str(handler), where, "1") as (_, ready):
        port = int(ready["url"].rpartition(":")[2])
        request = {"inputs": [tensor("x", "FP32", [1, 3], [1, 2, 3])]}
        reply = ask(port, "POST", "/v2/models/nothing/infer", request)
        assert reply.json()["outputs"][0]["data"][0] > 10_000


def test_sigterm_finishes_a_request_that_is_coming_in(tmp_path: Path) -> None:
    body = json.dumps({"inputs": [tensor("x", "FP32", [1, 3], [1, 2, 3])]}).encode()
    request = post("/v2/models/other/infer", body)
    with command(str(null_artifact(tmp_path / "a")), "--name", "other") as (process, ready):
        port = int(ready["url"].rpartition(":")[2])
        with wire(port) as connection, wire(port) as idle:
            connection.sendall(GET_LIVE + request[:-5])
            assert read_replies(connection, 1)[0].status == 200
            process.send_signal(signal.SIGTERM)
            assert read_all(idle) == b""  # the server has begun to stop
            assert process.poll() is None
            connection.sendall(request[-5:])
            reply = read_all(connection)
            assert reply.startswith(b"HTTP/1.1 200 OK")
            assert b'"data":[0.0]' in reply
        assert process.wait(WAIT_S) == 0


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TAUTEN, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_ready_line_is_one_line(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*TAUTEN, "serve", str(null_artifact(tmp_path / "a")), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready: nothing at http://127.0.0.1:")
    process.terminate()
    rest, _ = process.communicate(timeout=WAIT_S)
    assert (rest, process.returncode) == ("", 0)


def test_the_command_refuses_a_port_in_use(tmp_path: Path) -> None:
    path = str(null_artifact(tmp_path / "a"))
    with running(Double()) as server:
        done = run_command("serve", path, "--port", str(server.port), "--json")
    assert done.returncode == 1
    assert f"port {server.port} on 127.0.0.1 is in use" in json.loads(done.stdout)["error"]["message"]


@pytest.mark.parametrize("damage", ["changed", "missing", "none"])
def test_the_command_refuses_a_damaged_artifact(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a"
    if damage != "none":
        null_artifact(path)
    if damage == "changed":
        (path / "weights.bin").write_bytes(b"\xff" * (path / "weights.bin").stat().st_size)
    elif damage == "missing":
        (path / "graph.bin").unlink()
    done = run_command("serve", str(path), "--port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert str(path) in done.stderr


def test_the_running_half_needs_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from tauten.run.serve.model import ServedModel; from tauten.run.serve.server import Server;"
        f"Server([ServedModel.load({str(null_artifact(tmp_path / 'a'))!r})]);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'onnxruntime')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
