"""The RPCs that are under way: which method answers each, and how they end.

::

    Router.service(details) ── what is asked of an RPC before its message has come: path, token
       └── handle(rpc) ── bytes in, bytes out; a fault becomes a status
    Rpcs ── those under way
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import grpc
from grpc.aio import EOF

from tauten.errors import InputError, MethodNotAllowed, ServeError, TautenError
from tauten.run.serve.around.guard import admits
from tauten.run.serve.call import Call
from tauten.run.serve.protocol.grpc.status import DeadlineExceeded, code_of, details_of, trailers_of

log = logging.getLogger("tauten.serve")

_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
_AHEAD_S: Final = 0.05
"""A client's clock for its deadline begins before the server's, by as much as the RPC's head takes to come."""

_LONGEST_S: Final = 1e6
"""Longer than this is no deadline."""


Metadata = Sequence[tuple[str, str | bytes]]


class Rpc:
    """One RPC under way, as those see it who answer it and who tell of it.

    ``metadata`` is what the client sent beside its messages, names in lower case. ``call`` is the latest that was made
    of its messages, and ``answered`` is called with each that has its answer.
    """

    __slots__ = ("answered", "call", "context", "metadata", "received_bytes", "sent_bytes", "streams")

    def __init__(self, context: Any, metadata: Metadata, *, streams: bool) -> None:
        self.context = context
        self.metadata = metadata
        self.streams = streams
        self.call: Call | None = None
        self.answered: Callable[[Call], None] | None = None
        self.received_bytes = 0
        self.sent_bytes = 0

    def deadline_ns(self, started_ns: int) -> int:
        """When the client stops waiting, by the clock that says ``started_ns`` now; 0 for never."""
        remaining_s = self.context.time_remaining()
        return 0 if remaining_s is None or remaining_s > _LONGEST_S else started_ns + int(remaining_s * 1e9)

    async def read(self) -> Any:
        """The next message of a stream, or ``EOF``."""
        data = await self.context.read()
        if data is not EOF:
            self.received_bytes += len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Answer in a stream."""
        self.sent_bytes += len(data)
        await self.context.write(data)

    def status(self, fault: BaseException | None) -> str:
        """The name of the status that it ends with, where answering it has raised ``fault``."""
        if fault is None:
            return "OK"
        if isinstance(fault, asyncio.CancelledError):
            remaining_s = self.context.time_remaining()
            return "CANCELLED" if remaining_s is None or remaining_s > _AHEAD_S else "DEADLINE_EXCEEDED"
        code = self.context.code()
        name: str = _NAMES.get(getattr(code, "value", (code,))[0], "UNKNOWN")
        return name


Unary = Callable[[bytes, Rpc], Awaitable[bytes]]
"""Answers one message: its bytes to the bytes of the response."""
Stream = Callable[[Rpc, asyncio.Event], Awaitable[None]]
"""Answers a stream, which it reads and writes, until it ends or the server is stopping."""
Handle = Callable[[Rpc], Awaitable[bytes | None]]
"""Answers an RPC: the response, which a stream has written itself. A fault of it is a status by then."""
Around = Callable[[str, Handle], Handle]
"""Puts something around what answers a path."""
Bind = Callable[[Metadata], Any]
"""Makes what gRPC calls for one RPC. It is made for each, as gRPC would read the metadata anew for who asks later."""


@contextmanager
def until_its_end(rpc: Rpc, told: Callable[[str], None]) -> Iterator[None]:
    """``rpc`` is answered in the block; ``told`` hears the name of the status that it ends with, however it ends."""
    failed: BaseException | None = None
    try:
        yield
    except BaseException as fault:
        failed = fault
        raise
    finally:
        told(rpc.status(failed))


class Unauthenticated(ServeError):
    """The token that the server asks for did not come."""

    http_status = 401


class Rpcs:
    """What all RPCs of a server share; belongs to one event loop. ``open`` are the tasks of those under way."""

    def __init__(self, receive_s: float) -> None:
        self.open: set[asyncio.Task[Any]] = set()
        self.stopping = asyncio.Event()
        self._receive_s = receive_s
        self._loop = asyncio.get_running_loop()
        self._reading: dict[asyncio.Task[Any], float] = {}  # until when; the earliest first
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The current task is an RPC."""
        task = asyncio.current_task()
        if task is not None:
            self.open.add(task)
            task.add_done_callback(self.open.discard)

    async def receive(self, context: Any) -> bytes:
        """The message of an RPC that has one. Raises ``InputError`` for none, ``DeadlineExceeded`` for a slow one.

        All share one timer: of their own it would cost each RPC more than reading its message.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("expected an RPC to be a task")
        self._reading[task] = self._loop.time() + self._receive_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._receive_s, self._look)
        try:
            data = await context.read()
        except asyncio.CancelledError:
            if task in self._reading:
                raise
            task.uncancel()
            raise DeadlineExceeded(f"the message did not come within {self._receive_s:g} seconds") from None
        finally:
            self._reading.pop(task, None)
        if data is EOF:
            raise InputError("expected a message, got none")
        message: bytes = data
        return message

    def _look(self) -> None:
        """Cancel those whose message is late."""
        self._timer = None
        now = self._loop.time()
        for task, until in tuple(self._reading.items()):
            if until > now:
                self._timer = self._loop.call_at(until, self._look)
                break
            del self._reading[task]
            task.cancel()


class Router:
    """Finds what answers an RPC, as gRPC asks for it: before the message is read.

    With a ``token``, each RPC must carry it as ``authorization: Bearer TOKEN``, those at the ``open_paths`` excepted.
    ``around`` is put around what answers each path, and around refusals.
    """

    def __init__(
        self,
        rpcs: Rpcs,
        token: str | None = None,
        open_paths: frozenset[str] = frozenset(),
        around: Around = lambda path, handle: handle,
    ) -> None:
        self._rpcs = rpcs
        self._token = None if token is None else token.encode()
        self._open_paths = open_paths
        self._around = around
        self._binds: dict[str, Bind] = {}

    def add(self, unary: Mapping[str, Unary], streams: Mapping[str, Stream]) -> None:
        """Answer at these paths, such as ``/inference.GRPCInferenceService/ServerLive``."""
        for path, answer in unary.items():
            self._binds[path] = self._unary(path, answer)
        for path, stream in streams.items():
            self._binds[path] = self._stream(path, stream)

    def service(self, details: Any) -> Any:
        """What gRPC calls for each RPC."""
        self._rpcs.begin()
        path, metadata = details.method, details.invocation_metadata or ()
        bind = self._binds.get(path)
        if self._token is not None and path not in self._open_paths:
            came = next((value for name, value in metadata if name == "authorization"), "")
            if not admits(came.encode(), self._token):
                bind = self._stream(path, _refuse_token)
        if bind is None:
            bind = self._stream(path, _refuse_path)
        return bind(metadata)

    def _unary(self, path: str, answer: Unary) -> Bind:
        receive = self._rpcs.receive

        async def handle(rpc: Rpc) -> bytes:
            context = rpc.context
            try:
                data = await receive(context)
                rpc.received_bytes = len(data)
                response = await answer(data, rpc)
            except Exception as fault:  # noqa: BLE001 - each becomes a status
                return await _abort(path, context, fault)
            rpc.sent_bytes = len(response)
            return response

        outermost = self._around(path, handle)

        def bind(metadata: Metadata) -> Any:
            async def called(requests: Any, context: Any) -> bytes | None:
                return await outermost(Rpc(context, metadata, streams=False))

            # As a stream of requests, although it is one: else gRPC would wait for it without a limit.
            return grpc.stream_unary_rpc_method_handler(called)

        return bind

    def _stream(self, path: str, stream: Stream) -> Bind:
        stopping = self._rpcs.stopping

        async def handle(rpc: Rpc) -> None:
            try:
                await stream(rpc, stopping)
            except Exception as fault:  # noqa: BLE001 - each becomes a status
                await _abort(path, rpc.context, fault)

        outermost = self._around(path, handle)

        def bind(metadata: Metadata) -> Any:
            async def called(requests: Any, context: Any) -> None:
                await outermost(Rpc(context, metadata, streams=True))

            return grpc.stream_stream_rpc_method_handler(called)

        return bind


async def _refuse_token(rpc: Rpc, stopping: asyncio.Event) -> None:
    raise Unauthenticated("expected the metadata 'authorization: Bearer TOKEN' with this server's token")


async def _refuse_path(rpc: Rpc, stopping: asyncio.Event) -> None:
    raise MethodNotAllowed("no such method here: reflection tells which there are")


async def _abort(path: str, context: Any, fault: Exception) -> bytes:
    """End an RPC with the status of ``fault``. Does not return."""
    if isinstance(fault, TautenError):
        trailers = (*(context.trailing_metadata() or ()), *trailers_of(fault))
        await context.abort(code_of(fault), details_of(fault), trailers)
    else:
        log.error("%s failed", path, exc_info=fault)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error: the server's log has the details")
    return b""
