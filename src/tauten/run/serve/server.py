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
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from tauten.errors import ConfigError, ExtraMissing, ServeError
from tauten.run.serve.around import Around
from tauten.run.serve.catalog import Catalog
from tauten.run.serve.checks import thread_warnings
from tauten.run.serve.endpoints import Endpoints
from tauten.run.serve.instances import cores
from tauten.run.serve.manager import Load, Manager
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.connections import Connections
from tauten.run.serve.protocol.http import HttpConnection
from tauten.run.serve.repository import Repository
from tauten.run.serve.settings import Security, ServeSettings

if TYPE_CHECKING:
    import ssl

    from tauten.run.serve.cache.opened import Cache
    from tauten.run.serve.fronts import Front
    from tauten.run.serve.grpc_server import GrpcServer
    from tauten.run.serve.together import Together

T = TypeVar("T")

log = logging.getLogger("tauten.serve")

_BACKLOG: Final = 1024
"""Connections that may wait to be accepted."""


class Server:
    """Serves models over HTTP, and over gRPC where the settings have a port for it.

    ::

        async with Server([ServedModel.load("build/digits/best")]) as server:
            with stop_signals() as asked:
                print(server.url)
                await asked.wait()

    ``catalog`` says where on disk models are found when they change, and others when they are asked for; ``load`` makes
    a model of what is found. ``front`` says which of several servers on one port this is.
    """

    def __init__(
        self,
        models: Iterable[ServedModel],
        settings: ServeSettings | None = None,
        *,
        catalog: Catalog | None = None,
        load: Load | None = None,
        front: Front | None = None,
    ) -> None:
        self.settings = settings or ServeSettings()
        self._repository = Repository(models, catalog.pins if catalog is not None else None)
        self.manager = Manager(self._repository, self.settings, self._start_model, catalog, load)
        if not self._repository.names and not self.manager.managed:
            raise ConfigError("expected at least one model to serve, got none")
        self._endpoints = Endpoints(self._repository, self.manager, version("tauten"), self.settings)
        self._around = Around(self.settings)
        self._handler = self._around.http(self._endpoints)
        self._tls = tls(self.settings.security)
        self._front = front
        self._together: Together | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self._warned: set[str] = set()
        self._repository.on_change(self._warn)
        self._cache: Cache | None = None
        self._grpc = _grpc_server(self._repository, self.settings, self.manager, self._around)
        self._listener: asyncio.Server | None = None
        self._connections: Connections | None = None

    @property
    def models(self) -> list[str]:
        """The names of those that are served now."""
        return self._repository.names

    @property
    def port(self) -> int:
        """The port that is open; the system's choice where the settings say 0."""
        if self._listener is None or not self._listener.sockets:
            raise ServeError("the server is not started")
        return int(self._listener.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        host = self.settings.host
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    @property
    def grpc_target(self) -> str | None:
        """Where gRPC clients connect to, as host and port; ``None`` where the settings have no port for them."""
        if self._grpc is None:
            return None
        host = self.settings.host
        return f"[{host}]:{self._grpc.port}" if ":" in host else f"{host}:{self._grpc.port}"

    async def start(self) -> None:
        """Open the ports, and load what lies in the catalog's directory. Raises ``ServeError`` where no port opens."""
        loop = asyncio.get_running_loop()
        connections = Connections(loop)
        limits = self.settings.limits
        if self.settings.cache is not None:
            from tauten.run.serve.cache.opened import Cache

            self._cache = Cache(self.settings.cache)
            await self._cache.open()
        for model in self._repository:
            self._start_model(model)
        if self._front is not None:
            await self._join(self._front)  # before anyone can ask it about all of them
        try:
            self._listener = await loop.create_server(
                lambda: HttpConnection(self._handler, limits, connections),
                await self._host(),
                self.settings.port if self._front is None else self._front.port,
                backlog=_BACKLOG,
                ssl=self._tls,
                reuse_port=True if self._front is not None else None,
            )
        except OSError as fault:
            await self._leave()
            raise ServeError(_cannot_listen(self.settings, fault)) from None
        if self._grpc is not None:
            try:
                await self._grpc.start()
            except ServeError:
                self._listener.close()
                self._listener = None
                await self._leave()
                raise
        self._connections = connections
        connections.start()
        self._warn()
        await self.manager.start()
        if self._together is not None and self._front is not None and self._front.again:
            await self._together.agree()
        if self.settings.watch_s is not None:
            self._begin(self.manager.watch(self.settings.watch_s))
        self._begin(asyncio.to_thread(lambda: self._endpoints.metrics))  # before the first scrape waits for it

    def reload(self) -> None:
        """Begin to load what has changed on disk."""
        if not self._endpoints.draining:
            self._begin(self.manager.refresh(again=True))

    async def stop(self) -> int:
        """Close the ports, finish what is under way within ``drain_s``, and say how much of it had to be cut.

        That is counted in connections, and over gRPC in requests.
        """
        if self._listener is None or self._connections is None:
            return 0
        self._endpoints.draining = True
        await self._connections.all_accepted(_BACKLOG)
        self._listener.close()
        draining = asyncio.ensure_future(self._connections.drain(self.settings.drain_s))
        calls_cut = 0 if self._grpc is None else await self._grpc.stop()
        cut = await draining
        for task in self._tasks:
            task.cancel()
        await self.manager.close()
        await self._leave()
        await asyncio.to_thread(self._around.close)
        self._listener = self._connections = None
        self._endpoints.draining = False
        if cut:
            log.warning("cut %d connections that had not finished within %g s", cut, self.settings.drain_s)
        return cut + calls_cut

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _host(self) -> str:
        """The host to listen on; one address of it where the system chooses the port, as it would one for each."""
        if self.settings.port and self._front is None:
            return self.settings.host
        infos = await asyncio.get_running_loop().getaddrinfo(self.settings.host, 0, type=socket.SOCK_STREAM)
        return str(infos[0][4][0])

    async def _join(self, front: Front) -> None:
        """Be one of those who share the port, and answer for all of them."""
        from tauten.run.serve.past import Past
        from tauten.run.serve.siblings import Siblings
        from tauten.run.serve.together import Together

        endpoints = self._endpoints
        siblings = Siblings(front.index, front.count, front.folder)
        past = Past(front.folder, front.index)
        together = Together(
            siblings, past, self._repository, self.manager, endpoints.metrics_here, lambda: endpoints.draining
        )
        await together.start()
        self.manager.together = self._together = together
        endpoints.join(together)

    def _warn(self) -> None:
        """Tell, once, of what will make calls wait for each other."""
        models = list(self._repository)
        if not models or (self._front is not None and self._front.index):
            return
        instances, threads = max(model.instances for model in models), max(model.threads for model in models)
        for line in thread_warnings(len(models), instances, threads, cores(), self.settings.fronts):
            if line not in self._warned:
                self._warned.add(line)
                log.warning("%s", line)

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        """Do ``work`` beside all else, until the server stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start_model(self, model: ServedModel) -> None:
        """Let ``model`` take requests."""
        model.start(self.settings, self._cache)

    async def _leave(self) -> None:
        """Take no requests, and answer none of those who share the port."""
        for model in self._repository:
            model.stop()
        if self._cache is not None:
            await self._cache.close()
            self._cache = None
        if self._together is not None:
            await self._together.stop()


def _grpc_server(
    repository: Repository, settings: ServeSettings, manager: Manager, around: Around
) -> GrpcServer | None:
    """What serves gRPC, where that is asked for. Raises ``ExtraMissing`` where it is and the extra is not installed."""
    if settings.grpc_port is None:
        return None
    try:
        from tauten.run.serve.grpc_server import GrpcServer
    except ModuleNotFoundError as fault:
        if (fault.name or "").partition(".")[0] not in ("grpc", "google"):
            raise
        raise ExtraMissing(f"gRPC ({fault.name} is not installed)", "grpc") from None
    return GrpcServer(repository, settings, version("tauten"), manager, around.spans)


def tls(security: Security) -> ssl.SSLContext | None:
    """What the port speaks TLS with, if it does. Raises ``ConfigError`` for files that hold no certificate and key."""
    if security.certificate is None:
        return None
    from tauten.run.serve.tls import server_context

    return server_context(security.certificate, security.key)


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


@contextmanager
def reload_signal(server: Server) -> Iterator[None]:
    """While the block runs, SIGHUP makes ``server`` load what has changed on disk."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, server.reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


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
