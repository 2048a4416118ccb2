"""Small engines and a server in a thread, for the tests of server and load generator."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np

from tauten.artifact.read import Artifact
from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import EngineError
from tauten.run.engines.engine import Engine
from tauten.run.serve.model import ServedModel
from tauten.run.serve.server import Server, loop_factory
from tauten.run.serve.settings import ServeSettings

WAIT_S = 20
PENDING = "nv_inference_pending_request_count{"

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class InMemory(Engine):
    """An engine that is made in a test and not loaded."""

    @classmethod
    def load(cls, artifact: Artifact, *, threads: int) -> Self:
        raise EngineError("made in tests only")


class Double(InMemory):
    """``double`` is twice ``x``, ``total`` its sum over each row."""

    def __init__(self) -> None:
        super().__init__(
            [TensorSpec(name="x", shape=("batch", 3))],
            [TensorSpec(name="double", shape=("batch", 3)), TensorSpec(name="total", shape=("batch",))],
        )

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        x = np.asarray(inputs["x"], np.float32)
        return {"double": x * 2, "total": x.sum(axis=1)}


class Same(InMemory):
    """Answers each input under the name ``out_NAME``."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        super().__init__(specs, [spec.model_copy(update={"name": f"out_{spec.name}"}) for spec in specs])

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        return {f"out_{name}": array for name, array in inputs.items()}


class Gated(Double):
    """Waits in ``run`` until ``gate`` is set; ``entered`` counts the calls that got there."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.calls = 0

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        self.calls += 1
        self.entered.release()
        if not self.gate.wait(WAIT_S):
            raise EngineError("nobody opened the gate")
        return super().run(inputs)

    def wait_entered(self) -> None:
        if not self.entered.acquire(timeout=WAIT_S):
            raise TimeoutError("no request came to the engine")


class Broken(Double):
    """Raises ``fault`` for every request."""

    def __init__(self, fault: Exception) -> None:
        super().__init__()
        self.fault = fault

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        raise self.fault


class Running(NamedTuple):
    """A server in a thread, and its event loop."""

    server: Server
    loop: asyncio.AbstractEventLoop
    port: int
    url: str

    def waiting(self) -> int:
        """Requests for the first model that wait for a thread."""
        line = next(
            line for line in ask(self.port, "GET", "/metrics").body.decode().splitlines() if line.startswith(PENDING)
        )
        return int(float(line.split()[-1]))

    def stop_soon(self) -> Any:
        """Begin to stop; the future's result is the number of connections that were cut."""
        return asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop)


@contextmanager
def running(
    *engines: Engine, names: Sequence[str] = ("m", "n"), factory: LoopFactory | None = None, **settings: Any
) -> Iterator[Running]:
    """A server of ``engines`` on a port that the system chose, in the event loop that ``tauten serve`` uses."""
    models = [ServedModel(name, engine) for name, engine in zip(names, engines, strict=False)]
    with serving(Server(models, ServeSettings(**{"port": 0, "instances": 1, **settings})), factory) as found:
        yield found


@contextmanager
def serving(server: Server, factory: LoopFactory | None = None) -> Iterator[Running]:
    """``server``, started in a thread."""
    with asyncio.Runner(loop_factory=factory or loop_factory()) as runner:
        loop = runner.get_loop()
        runner.run(server.start())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield Running(server, loop, server.port, server.url)
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(WAIT_S)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(WAIT_S)


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
) -> Reply:
    """One request on its own connection; a body that is no bytes travels as JSON."""
    connection = http.client.HTTPConnection(host, port, timeout=WAIT_S)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, dict(headers or {}))
        answer = connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def tensor(name: str, datatype: str, shape: Sequence[int], data: object) -> dict[str, Any]:
    """One input of a JSON request."""
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data}


def ones_request(rows: int = 1, **extra: object) -> dict[str, Any]:
    """A request of ones for ``Double``."""
    return {"inputs": [tensor("x", "FP32", [rows, 3], [1.0] * (3 * rows))], **extra}


@contextmanager
def wire(port: int) -> Iterator[socket.socket]:
    """A bare connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read_replies(connection: socket.socket, count: int) -> list[Reply]:
    """``count`` responses, in order."""
    file = connection.makefile("rb")
    found = []
    for _ in range(count):
        status = int(file.readline().split()[1])
        headers = {}
        while (line := file.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        found.append(Reply(status, headers, file.read(int(headers.get("content-length", "0")))))
    return found


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A whole POST request as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: t", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def until(holds: Callable[[], object]) -> None:
    """Wait for another thread to make ``holds()`` true."""
    end = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError("it never came to hold")
        time.sleep(0.005)


GET_LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"
