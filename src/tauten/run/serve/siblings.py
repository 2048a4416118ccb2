"""How servers that share a port talk to each other: each answers questions at a socket of its own in their folder.

A question is one line of JSON, ``{"what": "load", "about": "digits"}``, and its answer is all that comes until the end:
JSON, or text of Prometheus' format. The folder belongs to whoever started them, so nobody else can ask.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

Answer = Callable[[str, str], Awaitable[bytes]]
"""What it is, and about what: never an empty answer."""

ABSENT: Final = None
"""The answer of one that is not there: it starts again, and takes no connections meanwhile."""
SILENT: Final = b""
"""The answer of one that is there and does not answer in time."""

_ANSWER_S: Final = 2.0
_MOST_BYTES: Final = 16 * 2**20
_LOOK_S: Final = 0.02
_LOCK: Final = "changing.lock"

log = logging.getLogger("tauten.serve")


class Siblings:
    """One of ``count`` servers that have ``folder`` in common. Belongs to one event loop."""

    def __init__(self, index: int, count: int, folder: Path) -> None:
        self.index = index
        self.count = count
        self._folder = folder
        self._paths = [folder / f"{number}.sock" for number in range(count)]
        self._server: asyncio.Server | None = None
        self._answer: Answer | None = None

    async def start(self, answer: Answer) -> None:
        """Answer the others with what ``answer`` says."""
        self._answer = answer
        path = self._paths[self.index]
        path.unlink(missing_ok=True)  # of one that was killed
        self._server = await asyncio.start_unix_server(self._tell, path)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._paths[self.index].unlink(missing_ok=True)

    async def ask(self, what: str, about: str = "", within_s: float = _ANSWER_S) -> dict[int, bytes | None]:
        """What each of the others answers, by its number; ``ABSENT`` or ``SILENT`` where one does not."""
        others = [number for number in range(self.count) if number != self.index]
        question = json.dumps({"what": what, "about": about}).encode() + b"\n"
        answers = await asyncio.gather(*(self._ask(self._paths[number], question, within_s) for number in others))
        return dict(zip(others, answers, strict=True))

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """While the block runs, none of the others is in such a block; one that is killed leaves it."""
        descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_LOOK_S)
            yield
        finally:
            os.close(descriptor)

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = json.loads(await reader.readline())
            if self._answer is not None:
                writer.write(await self._answer(question["what"], question["about"]))
            await writer.drain()
        except ConnectionError:
            pass
        except Exception:
            log.exception("a question of another server was not answered")
        finally:
            writer.close()

    async def _ask(self, path: Path, question: bytes, within_s: float) -> bytes | None:
        try:
            async with asyncio.timeout(within_s):
                reader, writer = await asyncio.open_unix_connection(path, limit=_MOST_BYTES)
                try:
                    writer.write(question)
                    return await reader.read(-1)
                finally:
                    writer.close()
        except TimeoutError:
            return SILENT
        except OSError:
            return ABSENT
