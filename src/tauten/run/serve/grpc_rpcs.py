"""The RPCs that are under way: which method answers each, and how they end.

::

    Router.service(details) ── what is asked of an RPC before its message has come: path, token
       └── handler ── bytes in, bytes out; a fault becomes a status
    Rpcs ── those under way
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from grpc.aio import EOF

from tauten.errors import InputError, ServeError, TautenError
from tauten.run.serve.around.guard import admits
from tauten.run.serve.protocol.grpc.status import DeadlineExceeded, code_of, details_of, trailers_of

Unary = Callable[[bytes, Any], Awaitable[bytes]]
"""Answers one message: its bytes and the RPC's context to the bytes of the response."""
Stream = Callable[[Any, asyncio.Event], Awaitable[None]]
"""Answers a stream, which it reads and writes by the RPC's context, until it ends or the server is stopping."""
Handle = Callable[[Any, Any], Awaitable[bytes | None]]
"""What gRPC calls for an RPC: the requests and the context to the response, which a stream has written itself."""

log = logging.getLogger("tauten.serve")


class Unauthenticated(ServeError):
    """The token that the server asks for did not come."""

    http_status = 401


class Rpcs:
    """What all RPCs of a server share; belongs to one event loop. ``open`` are the tasks of those under way."""

    def __init__(self, receive_s: float) -> None:
        self.receive_s = receive_s
        self.open: set[asyncio.Task[Any]] = set()
        self.stopping = asyncio.Event()

    def begin(self) -> None:
        """The current task is an RPC."""
        task = asyncio.current_task()
        if task is not None:
            self.open.add(task)
            task.add_done_callback(self.open.discard)


class Router:
    """Finds what answers an RPC, as gRPC asks for it: before the message is read.

    With a ``token``, each RPC must carry it as ``authorization: Bearer TOKEN``, those at the ``open_paths`` excepted.
    ``around`` is put around what answers each path.
    """

    def __init__(
        self,
        rpcs: Rpcs,
        token: str | None = None,
        open_paths: frozenset[str] = frozenset(),
        around: Callable[[str, Handle], Handle] = lambda path, handle: handle,
    ) -> None:
        self._rpcs = rpcs
        self._token = None if token is None else token.encode()
        self._open_paths = open_paths
        self._around = around
        self._handlers: dict[str, Any] = {}
        self._refusal = self._stream_handler("authorization", self._refuse)

    def add(self, unary: Mapping[str, Unary], streams: Mapping[str, Stream]) -> None:
        """Answer at these paths, such as ``/inference.GRPCInferenceService/ServerLive``."""
        for path, answer in unary.items():
            self._handlers[path] = self._unary_handler(path, answer)
        for path, stream in streams.items():
            self._handlers[path] = self._stream_handler(path, stream)

    def service(self, details: Any) -> Any:
        """What gRPC calls for each RPC; ``None`` becomes UNIMPLEMENTED."""
        handler = self._handlers.get(details.method)
        if handler is not None:
            self._rpcs.begin()
            if self._token is not None and details.method not in self._open_paths:
                came = next((value for name, value in details.invocation_metadata if name == "authorization"), "")
                if not admits(came.encode(), self._token):
                    return self._refusal
        return handler

    async def _refuse(self, context: Any, stopping: asyncio.Event) -> None:
        raise Unauthenticated("expected the metadata 'authorization: Bearer TOKEN' with this server's token")

    def _unary_handler(self, path: str, answer: Unary) -> Any:
        receive_s = self._rpcs.receive_s

        async def handle(requests: Any, context: Any) -> bytes:
            try:
                try:
                    async with asyncio.timeout(receive_s):
                        data = await context.read()
                except TimeoutError:
                    raise DeadlineExceeded(f"the message did not come within {receive_s:g} seconds") from None
                if data is EOF:
                    raise InputError("expected a message, got none")
                return await answer(data, context)
            except Exception as fault:  # noqa: BLE001 - each becomes a status
                return await _abort(path, context, fault)

        # As a stream of requests, although it is one: else gRPC would wait for it without a limit.
        return grpc.stream_unary_rpc_method_handler(self._around(path, handle))

    def _stream_handler(self, path: str, stream: Stream) -> Any:
        stopping = self._rpcs.stopping

        async def handle(requests: Any, context: Any) -> None:
            try:
                await stream(context, stopping)
            except Exception as fault:  # noqa: BLE001 - each becomes a status
                await _abort(path, context, fault)

        return grpc.stream_stream_rpc_method_handler(self._around(path, handle))


async def _abort(path: str, context: Any, fault: Exception) -> bytes:
    """End an RPC with the status of ``fault``. Does not return."""
    if isinstance(fault, TautenError):
        trailers = (*(context.trailing_metadata() or ()), *trailers_of(fault))
        await context.abort(code_of(fault), details_of(fault), trailers)
    else:
        log.error("%s failed", path, exc_info=fault)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error: the server's log has the details")
    return b""
