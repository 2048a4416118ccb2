"""The servers, each with its recommended settings for one core, and how each is asked."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench.serving.generator import compiled
from bench.serving.models import Served, post, raw, v2_binary, v2_json
from bench.serving.plan import LIMIT, Point
from tauten.core.tensor import Array, Arrays

PEERS = Path(__file__).parent / "peers"
MODEL = "m"
"""What the model is called in URLs."""
LENGTH = "Inference-Header-Content-Length"


class Server(ABC):
    """How one server is started and asked. ``environment`` names the virtual environment, "" the one that runs this."""

    name: str
    environment = ""
    modes: tuple[str, ...] = ("binary",)
    cores = "0"

    @abstractmethod
    def command(self, python: Path, model: Served, port: int) -> list[str]:
        """What starts it; ``python`` is that of its environment."""

    def variables(self, model: Served, port: int, point: Point) -> dict[str, str]:
        """Environment variables, for a visit that begins with ``point``."""
        return {"BENCH_ONNX": str(model.onnx.absolute()), "BENCH_PORT": str(port), "PYTHONPATH": str(PEERS)}

    def variant(self, point: Point) -> str:
        """What it is set to for ``point``; servers of different variants are processes of their own."""
        return ""

    @abstractmethod
    def request(self, mode: str, row: Arrays) -> bytes:
        """A whole request for one row."""

    @abstractmethod
    def answer(self, mode: str, headers: Mapping[str, str], body: bytes) -> Array:
        """The row of the first output that a response tells."""


class V2(Server):
    """A server of the Open Inference Protocol at ``path``."""

    modes = ("binary", "json")
    path = f"/v2/models/{MODEL}/infer"

    def request(self, mode: str, row: Arrays) -> bytes:
        if mode == "json":
            return post(self.path, v2_json(row), {"Content-Type": "application/json"})
        body, length = v2_binary(row)
        return post(self.path, body, {"Content-Type": "application/octet-stream", LENGTH: str(length)})

    def answer(self, mode: str, headers: Mapping[str, str], body: bytes) -> Array:
        length = headers.get(LENGTH.lower())
        told = json.loads(body if length is None else body[: int(length)])["outputs"][0]
        if length is None:
            return np.array(told["data"], np.float32)
        return np.frombuffer(body, np.float32, told["parameters"]["binary_data_size"] // 4, int(length))


class Tauten(V2):
    """``tauten serve``, with ``flags`` beside what it takes by itself."""

    modes = ("binary", "json", "raw")

    def __init__(self, name: str = "tauten", flags: tuple[str, ...] = (), cores: str = "0") -> None:
        self.name = name
        self.flags = flags
        self.cores = cores

    def command(self, python: Path, model: Served, port: int) -> list[str]:
        beside = Path(sys.executable).with_name("tauten")
        return [str(beside), "serve", str(model.artifact), "--port", str(port), "--name", MODEL, *self.flags]

    def variables(self, model: Served, port: int, point: Point) -> dict[str, str]:
        return {}

    def request(self, mode: str, row: Arrays) -> bytes:
        if mode == "raw":
            return post(self.path, raw(row), {"Content-Type": "application/octet-stream", LENGTH: "0"})
        return super().request(mode, row)


class Granian(V2):
    """A bare application on granian: one worker, uvloop, HTTP/1, no log."""

    environment = "granian"

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.name = "granian" if interface == "rsgi" else f"granian-{interface}"

    def command(self, python: Path, model: Served, port: int) -> list[str]:
        flags = ["--workers", "1", "--runtime-mode", "st", "--loop", "uvloop", "--http", "1", "--no-ws", "--no-log"]
        app = f"granian_{self.interface}:app"
        start = [str(python.with_name("granian")), "--interface", self.interface, "--host", "127.0.0.1"]
        return [*start, "--port", str(port), *flags, app]


class FastApi(V2):
    """FastAPI on uvicorn, uvloop and httptools."""

    name = environment = "fastapi"
    path = "/infer"

    def command(self, python: Path, model: Served, port: int) -> list[str]:
        return [str(python), str(PEERS / "fastapi_app.py")]


class Mosec(Server):
    """mosec: its own protocol is the tensors' bytes.

    It waits a millisecond at least for a batch that is not full, so its largest batch is what suits the load best: as
    many as there are connections, 16 (the best of 8, 16, 32 and 64) at random arrivals.
    """

    name = environment = "mosec"

    def variables(self, model: Served, port: int, point: Point) -> dict[str, str]:
        return {**super().variables(model, port, point), "BENCH_BATCH": self.variant(point)}

    def variant(self, point: Point) -> str:
        return str(16 if point.rate else point.connections)

    def command(self, python: Path, model: Served, port: int) -> list[str]:
        flags = ["--address", "127.0.0.1", "--port", str(port), "--log-level", "error", "--timeout", "30000"]
        return [str(python), str(PEERS / "mosec_app.py"), *flags]

    def request(self, mode: str, row: Arrays) -> bytes:
        return post("/inference", raw(row), {"Content-Type": "application/octet-stream"})

    def answer(self, mode: str, headers: Mapping[str, str], body: bytes) -> Array:
        return np.frombuffer(body, np.float32)


class Base64(Server):
    """Servers that take JSON alone; the tensors' bytes travel as base64 in it."""

    path: str

    def command(self, python: Path, model: Served, port: int) -> list[str]:
        return [str(python), str(PEERS / f"{self.name}_app.py")]

    @abstractmethod
    def wrap(self, text: str) -> object:
        """The request's document."""

    @abstractmethod
    def unwrap(self, document: bytes) -> str:
        """The text in the response's document."""

    def request(self, mode: str, row: Arrays) -> bytes:
        body = json.dumps(self.wrap(b64encode(raw(row)).decode())).encode()
        return post(self.path, body, {"Content-Type": "application/json"})

    def answer(self, mode: str, headers: Mapping[str, str], body: bytes) -> Array:
        return np.frombuffer(b64decode(self.unwrap(body)), np.float32)


class LitServe(Base64):
    name = environment = "litserve"
    path = "/predict"

    def wrap(self, text: str) -> object:
        return {"data": text}

    def unwrap(self, document: bytes) -> str:
        return str(json.loads(document)["data"])


class MlServer(Base64):
    name = environment = "mlserver"
    path = f"/v2/models/{MODEL}/infer"

    def wrap(self, text: str) -> object:
        return {"inputs": [{"name": "data", "shape": [1], "datatype": "BYTES", "data": [text]}]}

    def unwrap(self, document: bytes) -> str:
        return str(json.loads(document)["outputs"][0]["data"][0])


class BentoMl(Base64):
    name = environment = "bentoml"
    path = "/infer"

    def command(self, python: Path, model: Served, port: int) -> list[str]:
        start = [str(python.with_name("bentoml")), "serve", "bentoml_app:Service", "--working-dir", str(PEERS)]
        return [*start, "--host", "127.0.0.1", "--port", str(port)]

    def variables(self, model: Served, port: int, point: Point) -> dict[str, str]:
        return {**super().variables(model, port, point), "BENTOML_DO_NOT_TRACK": "True"}

    def wrap(self, text: str) -> object:
        return {"data": [text]}

    def unwrap(self, document: bytes) -> str:
        return str(json.loads(document)[0])


class Limit(V2):
    """A server in C that looks at nothing: it shows what the load generator can reach."""

    name = LIMIT
    modes = ("binary",)

    def command(self, python: Path, model: Served, port: int) -> list[str]:
        return [str(compiled("answer")), str(port)]


CACHE = ("--cache", "memory")
SERVERS: dict[str, Server] = {
    one.name: one
    for one in (
        Tauten(), Granian("rsgi"), Granian("asgi"), Mosec(), FastApi(), LitServe(), MlServer(), BentoMl(), Limit(),
        Tauten("tauten-cache", CACHE),
        Tauten("tauten-null"),
        # On both cores, the second of which the client needs little of where the model takes milliseconds.
        *(Tauten(f"tauten-{count}-instances", ("--instances", str(count)), "0,1") for count in (1, 2)),
    )
}  # fmt: skip
