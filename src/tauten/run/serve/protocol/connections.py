"""The open connections: their deadlines, the date they put in their answers, and their end."""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from typing import Final, Protocol

from tauten.run.serve.protocol.heads import Heads

_SWEEP_S: Final = 0.5


class Connection(Protocol):
    """What is asked of a connection."""

    read_deadline: float
    write_deadline: float

    def timed_out(self) -> None: ...

    def drain(self) -> None: ...

    def abort(self) -> None: ...


class Connections:
    """Every open connection of a server; belongs to one event loop.

    One timer serves all: deadlines are kept to within half a second.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.date_line = b""
        self.heads = Heads()
        self._open: set[Connection] = set()
        self._draining = False
        self._all_closed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Begin to look at deadlines."""
        self._sweep()

    def add(self, connection: Connection) -> None:
        self._open.add(connection)
        if self._draining:
            connection.drain()

    def discard(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._all_closed.set()

    async def drain(self, timeout_s: float) -> int:
        """Let every connection finish what it has begun; after ``timeout_s`` cut the rest, and say how many."""
        self._draining = True
        self._all_closed.clear()
        for connection in tuple(self._open):
            connection.drain()
        if self._open:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._all_closed.wait()
            except TimeoutError:
                pass
        cut = tuple(self._open)
        for connection in cut:
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()
        return len(cut)

    def _sweep(self) -> None:
        now = self.loop.time()
        self.date_line = b"Date: %b\r\n" % formatdate(usegmt=True).encode("ascii")
        for connection in tuple(self._open):
            if connection.read_deadline <= now or connection.write_deadline <= now:
                connection.timed_out()
        self._timer = self.loop.call_later(_SWEEP_S, self._sweep)
