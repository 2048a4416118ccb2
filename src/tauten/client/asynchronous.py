"""The client for code in an event loop."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from tauten.client.connections import tls_context
from tauten.client.conversation import Exchange, Pause, Requests, Url, converse, model_path, parameters_of
from tauten.client.retries import Retries
from tauten.core.tensor import Arrays
from tauten.errors import ServeError
from tauten.run.load.client import Address, Answer
from tauten.run.load.client import Client as Connection

T = TypeVar("T")

_LEAVE_TURNS: Final = 20


class AsyncClient:
    """``Client`` for an event loop: the same, with ``await``. Belongs to the loop in which it is first used.

    ::

        async with tauten.AsyncClient("http://127.0.0.1:8000") as client:
            outputs = await client.infer("digits", {"image": images})

    At most ``connections`` requests are on their way at once; more wait for their turn.
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
        connections: int = 64,
    ) -> None:
        self._url = Url.parse(url)
        self._requests = Requests(self._url, token)
        self._timeout_s = timeout_s
        self._retries = retries or Retries()
        self._binary = binary
        self._tls = tls_context(self._url, tls)
        self._places = asyncio.Semaphore(connections)
        self._idle: list[Connection] = []

    async def infer(
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
        """As ``Client.infer``."""
        exchange = self._requests.infer(
            model,
            version,
            inputs,
            outputs,
            binary=self._binary if binary is None else binary,
            parameters=parameters_of(deadline_s, priority),
        )
        return await self._talk(exchange, self._retries, self._timeout_s if timeout_s is None else timeout_s)

    async def metadata(self, model: str | None = None, *, version: str | None = None) -> dict[str, Any]:
        """As ``Client.metadata``."""
        return await self._talk(self._requests.document(model_path(model, version)), self._retries, self._timeout_s)

    async def live(self) -> bool:
        """As ``Client.live``."""
        return await self._holds("/v2/health/live")

    async def ready(self, model: str | None = None, *, version: str | None = None) -> bool:
        """As ``Client.ready``."""
        return await self._holds("/v2/health/ready" if model is None else f"{model_path(model, version)}/ready")

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        await asyncio.sleep(0)  # a connection is gone in the loop's next turn; encrypted ones take leave of each other
        waited = 0
        while waited < _LEAVE_TURNS and not all(connection.gone for connection in idle):
            waited += 1
            await asyncio.sleep(0.01)
        for connection in idle:
            connection.abort()
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _holds(self, path: str) -> bool:
        try:
            return await self._talk(self._requests.status(path), Retries(tries=1), self._timeout_s)
        except ServeError:
            return False

    async def _talk(self, exchange: Exchange[T], retries: Retries, timeout_s: float) -> T:
        now = asyncio.get_running_loop().time
        talk = converse(exchange, self._url.authority, retries, timeout_s, now, random.random)
        step = next(talk)
        try:
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(talk)
                    continue
                try:
                    async with asyncio.timeout(step.within_s), self._places:
                        outcome: Answer | OSError = await self._send(exchange)
                except OSError as fault:
                    outcome = fault
                step = talk.send(outcome)
        except StopIteration as end:
            value: T = end.value
            return value

    async def _send(self, exchange: Exchange[T]) -> Answer:
        connection = self._idle.pop() if self._idle else Connection(Address(self._url.host, self._url.port), self._tls)
        kept = connection.open
        request = b"".join([exchange.head, *exchange.body])
        try:
            try:
                answer = await connection.send(request)
            except ConnectionError:
                if not kept:
                    raise
                # The server may have closed it while nobody used it, which is no fault of anybody.
                answer = await connection.send(request)
        except BaseException:
            connection.abort()
            raise
        self._idle.append(connection)
        return answer
