"""A server from start to stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self, TypeVar

from tauten.errors import ServeError
from tauten.run.serve.endpoints import Endpoints
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.connections import Connections
from tauten.run.serve.protocol.http import HttpConnection
from tauten.run.serve.repository import Repository
from tauten.run.serve.settings import ServeSettings

T = TypeVar("T")

log = logging.getLogger("tauten.serve")


class Server:
    """Serves models over HTTP.

    ::

        async with Server([ServedModel.load("build/digits/best")]) as server:
            with stop_signals() as asked:
                print(server.url)
                await asked.wait()
    """

    def __init__(self, models: Iterable[ServedModel], settings: ServeSettings | None = None) -> None:
        self.settings = settings or ServeSettings()
        self._repository = Repository(models)
        self._endpoints = Endpoints(self._repository, version("tauten"), self.settings)
        self._listener: asyncio.Server | None = None
        self._connections: Connections | None = None

    @property
    def models(self) -> list[str]:
        return [model.name for model in self._repository]

    @property
    def port(self) -> int:
        """The port that is open; the system's choice where the settings say 0."""
        if self._listener is None or not self._listener.sockets:
            raise ServeError("the server is not started")
        return int(self._listener.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        host = self.settings.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Open the port. Raises ``ServeError`` where that cannot be."""
        loop = asyncio.get_running_loop()
        connections = Connections(loop)
        limits = self.settings.limits
        for model in self._repository:
            model.start(self.settings)
        try:
            self._listener = await loop.create_server(
                lambda: HttpConnection(self._endpoints, limits, connections),
                await self._host(),
                self.settings.port,
                backlog=1024,
            )
        except OSError as fault:
            self._stop_models()
            raise ServeError(_cannot_listen(self.settings, fault)) from None
        self._connections = connections
        connections.start()

    async def stop(self) -> int:
        """Close the port, finish what is under way within ``drain_s``, and say how many connections had to be cut."""
        if self._listener is None or self._connections is None:
            return 0
        self._endpoints.draining = True
        self._listener.close()
        cut = await self._connections.drain(self.settings.drain_s)
        self._stop_models()
        self._listener = self._connections = None
        self._endpoints.draining = False
        if cut:
            log.warning("cut %d connections that had not finished within %g s", cut, self.settings.drain_s)
        return cut

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _host(self) -> str:
        """The host to listen on; one address of it where the system chooses the port, as it would one for each."""
        if self.settings.port:
            return self.settings.host
        infos = await asyncio.get_running_loop().getaddrinfo(self.settings.host, 0, type=socket.SOCK_STREAM)
        return str(infos[0][4][0])

    def _stop_models(self) -> None:
        for model in self._repository:
            model.stop()


@contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets; once the block has ended, a further one ends the process."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, asked.set)
    try:
        yield asked
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loop: uvloop where it is installed, asyncio's own elsewhere."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def run_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``main()`` in a new event loop, the fastest there is."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main())


def _cannot_listen(settings: ServeSettings, fault: OSError) -> str:
    where = f"port {settings.port} on {settings.host}"
    if fault.errno == errno.EADDRINUSE:
        return f"{where} is in use: stop what listens there, or choose another with --port (0 lets the system choose)"
    return f"cannot listen on {where}: {fault.strerror or fault}"
