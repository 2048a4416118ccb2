"""The client for code that waits."""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from tauten.client.connections import Connection, tls_context
from tauten.client.conversation import Exchange, Pause, Requests, Url, converse, model_path, parameters_of
from tauten.client.retries import Retries
from tauten.core.tensor import Arrays
from tauten.errors import ServeError
from tauten.run.load.client import Answer

T = TypeVar("T")


class Client:
    """Asks a server for predictions, by the Open Inference Protocol V2 over HTTP. Safe to use from many threads.

    ::

        with tauten.Client("http://127.0.0.1:8000") as client:
            outputs = client.infer("digits", {"image": images})

    Tensors travel as bytes, or as JSON where ``binary`` is false. A request is tried again as ``retries`` says where
    the server is busy, not ready or cannot be reached; all tries together take at most ``timeout_s``. ``token`` is sent
    as a bearer token; ``tls`` says how to encrypt for an ``https`` URL, by default with the system's certificates. At
    most ``connections`` stay open while nobody uses them.

    What fails is raised as ``InputError`` (400), ``NotFound`` (404), ``TooLarge`` (413), ``Overloaded`` (429),
    ``NotReady`` (503), or ``ServeError`` for anything else and where no server answers.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 30.0,
        retries: Retries | None = None,
        binary: bool = True,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        connections: int = 8,
    ) -> None:
        self._url = Url.parse(url)
        self._requests = Requests(self._url, token)
        self._timeout_s = timeout_s
        self._retries = retries or Retries()
        self._binary = binary
        self._tls = tls_context(self._url, tls)
        self._most_idle = connections
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str | None = None,
        outputs: Sequence[str] = (),
        binary: bool | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        priority: int = 0,
    ) -> Arrays:
        """The model's outputs by name: those in ``outputs``, all where none is named.

        The server gives the request up once ``deadline_s`` have passed since it came, and runs requests of a lower
        ``priority`` first. Arrays that came as bytes are read-only.
        """
        exchange = self._requests.infer(
            model,
            version,
            inputs,
            outputs,
            binary=self._binary if binary is None else binary,
            parameters=parameters_of(deadline_s, priority),
        )
        return self._talk(exchange, self._retries, self._timeout_s if timeout_s is None else timeout_s)

    def metadata(self, model: str | None = None, *, version: str | None = None) -> dict[str, Any]:
        """What the server says of a model, or of itself where none is named."""
        return self._talk(self._requests.document(model_path(model, version)), self._retries, self._timeout_s)

    def live(self) -> bool:
        """Whether a server answers. Asks once."""
        return self._holds("/v2/health/live")

    def ready(self, model: str | None = None, *, version: str | None = None) -> bool:
        """Whether a model takes requests, or all of them where none is named. Asks once."""
        return self._holds("/v2/health/ready" if model is None else f"{model_path(model, version)}/ready")

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _holds(self, path: str) -> bool:
        try:
            return self._talk(self._requests.status(path), Retries(tries=1), self._timeout_s)
        except ServeError:
            return False

    def _talk(self, exchange: Exchange[T], retries: Retries, timeout_s: float) -> T:
        talk = converse(exchange, self._url.authority, retries, timeout_s, time.monotonic, random.random)
        step = next(talk)
        try:
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(talk)
                    continue
                try:
                    outcome: Answer | OSError = self._send(exchange, step.within_s)
                except OSError as fault:
                    outcome = fault
                step = talk.send(outcome)
        except StopIteration as end:
            value: T = end.value
            return value

    def _send(self, exchange: Exchange[T], within_s: float) -> Answer:
        with self._lock:
            connection = self._idle.pop() if self._idle else Connection(self._url, self._tls)
        kept = connection.open
        end = time.monotonic() + within_s
        try:
            answer = connection.send(exchange.head, exchange.body, within_s)
        except ConnectionError:
            if not kept:
                raise
            # The server may have closed it while nobody used it, which is no fault of anybody.
            answer = connection.send(exchange.head, exchange.body, end - time.monotonic())
        with self._lock:
            if connection.open and len(self._idle) < self._most_idle:
                self._idle.append(connection)
                return answer
        connection.close()
        return answer
