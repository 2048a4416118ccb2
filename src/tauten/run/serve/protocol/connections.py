"""The open connections: their deadlines, the date they put in their answers, and their end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from email.utils import formatdate
from typing import Final, Protocol

from tauten.run.serve.protocol.heads import Heads

GRACE_S: Final = 1.0
"""How long a stopping server waits for requests that were on their way, on connections that are open."""

_SWEEP_S: Final = 0.5
_ACCEPT_TURNS: Final = 8


class Connection(Protocol):
    """What is asked of a connection."""

    read_deadline: float
    write_deadline: float

    def timed_out(self) -> None: ...

    def drain(self) -> None: ...

    def leave(self) -> None: ...

    def abort(self) -> bool: ...


class Connections:
    """Every open connection of a server; belongs to one event loop.

    One timer serves all: deadlines are kept to within half a second.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.date_line = b""
        self.heads = Heads()
        self._open: set[Connection] = set()
        self._accepted = 0
        self._draining = False
        self._leaving = False
        self._all_closed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Begin to look at deadlines."""
        self._sweep()

    def add(self, connection: Connection) -> None:
        self._open.add(connection)
        self._accepted += 1
        if self._leaving:
            connection.leave()
        elif self._draining:
            connection.drain()

    def discard(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._all_closed.set()

    async def all_accepted(self, most: int) -> None:
        """Wait until no client is left, of at most ``most``, that the system has taken and this has not: it would be
        reset when the port closes."""
        idle = 0
        for _ in range(most + _ACCEPT_TURNS):
            before = self._accepted
            await asyncio.sleep(0)  # event loops accept one, or a few, in a turn
            idle = idle + 1 if self._accepted == before else 0
            if idle == _ACCEPT_TURNS:
                return

    async def drain(self, timeout_s: float) -> int:
        """Let every connection finish what it has begun, and what it begins within a moment; then close it.

        A client that keeps its connection cannot know that the server stops, and may have sent a request already: it
        is answered, and told with the answer that the connection ends. After ``timeout_s`` cut the rest, and say how
        many had a request or an answer under way.
        """
        self._draining = True
        self._all_closed.clear()
        for connection in tuple(self._open):
            connection.drain()
        grace_s = min(GRACE_S, timeout_s / 2)
        await self._closed_within(grace_s)
        self._leaving = True
        for connection in tuple(self._open):
            connection.leave()
        await self._closed_within(timeout_s - grace_s)
        cut = sum([connection.abort() for connection in tuple(self._open)])
        if self._timer is not None:
            self._timer.cancel()
        return cut

    async def _closed_within(self, seconds: float) -> None:
        if self._open:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._all_closed.wait()

    def _sweep(self) -> None:
        now = self.loop.time()
        self.date_line = b"Date: %b\r\n" % formatdate(usegmt=True).encode("ascii")
        for connection in tuple(self._open):
            if connection.read_deadline <= now or connection.write_deadline <= now:
                connection.timed_out()
        self._timer = self.loop.call_later(_SWEEP_S, self._sweep)
