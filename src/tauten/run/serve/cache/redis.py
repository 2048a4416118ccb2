"""Answers that servers share through Redis.

What waits is sent together: while one ``MGET`` is on its way, the keys for the next gather; answers to keep are sent in
pipelines beside it. Redis is given ``TIMEOUT_S``; when it does not answer, it is left alone for a while that grows.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any, Final
from urllib.parse import urlsplit

from tauten.errors import ConfigError, ExtraMissing
from tauten.run.serve.cache.breaker import Breaker
from tauten.run.serve.cache.remote import Fetched, Remote

TIMEOUT_S: Final = 0.05
CONNECT_S: Final = 2.0
MOST_KEYS: Final = 256
"""In one command."""
MOST_UNSENT_BYTES: Final = 16 * 2**20
"""Answers beyond that are not sent."""

_GRACE_TURNS: Final = 5
_SILENT_NS: Final = 60 * 10**9
"""One that comes and goes is told of that seldom."""
_PREFIX: Final = b"tauten:"

log = logging.getLogger("tauten.serve")


class RedisTier(Remote):
    """The Redis server at ``url``, where answers live for ``age_s`` seconds.

    Raises ``ExtraMissing`` where its client is not installed and ``ConfigError`` for a URL that it cannot read.
    """

    def __init__(self, url: str, *, age_s: float, timeout_s: float = TIMEOUT_S) -> None:
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ModuleNotFoundError as fault:
            raise ExtraMissing("the cache in Redis", "redis") from fault
        try:
            self._client: Any = Redis.from_url(url, protocol=2, decode_responses=False, retry=Retry(NoBackoff(), 0))
            self.where = urlsplit(url).netloc.rpartition("@")[2] or urlsplit(url).path
        except (ValueError, TypeError) as fault:
            raise ConfigError(f"expected a URL such as redis://127.0.0.1:6379/0, got one that fails: {fault}") from None
        self._age_ms = max(1, int(age_s * 1000))
        self._timeout_s = timeout_s
        self._breaker = Breaker()
        self._asked: deque[tuple[Sequence[bytes], Fetched]] = deque()
        self._unsent: deque[tuple[bytes, bytes]] = deque()
        self._unsent_bytes = 0
        self._tasks: set[asyncio.Future[Any]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._refused = False
        self._told = False
        self._silent_until_ns = 0
        self._closed = False

    async def open(self) -> None:
        """Connect, so that the first request need not wait for that."""
        await self._try(self._client.ping, CONNECT_S)

    def fetch(self, keys: Sequence[bytes], done: Fetched) -> None:
        if self._closed or not self._breaker.allows(perf_counter_ns()):
            done([None] * len(keys))
            return
        self._asked.append((keys, done))
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read())

    def keep(self, key: bytes, frame: bytes) -> None:
        if self._closed or self._unsent_bytes + len(frame) > MOST_UNSENT_BYTES:
            return
        if not self._breaker.allows(perf_counter_ns()):
            return
        self._unsent.append((_PREFIX + key, frame))
        self._unsent_bytes += len(frame)
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def close(self) -> None:
        """Those who still wait are told that nothing is there."""
        self._closed = True
        tasks: list[asyncio.Future[Any]] = [task for task in (self._reading, self._writing) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks or self._tasks:
            await asyncio.wait([*tasks, *self._tasks], timeout=CONNECT_S)
        while self._asked:
            keys, done = self._asked.popleft()
            done([None] * len(keys))
        await self._client.aclose()

    async def _read(self) -> None:
        try:
            while self._asked:
                batch = [self._asked.popleft()]
                count = len(batch[0][0])
                while self._asked and count + len(self._asked[0][0]) <= MOST_KEYS:
                    batch.append(self._asked.popleft())
                    count += len(batch[-1][0])
                names = [_PREFIX + key for keys, _ in batch for key in keys]
                frames: object = None
                try:
                    if self._breaker.allows(perf_counter_ns()):
                        frames = await self._try(partial(self._client.mget, names), self._timeout_s)
                finally:
                    _tell(batch, frames)
        finally:
            self._reading = None

    async def _write(self) -> None:
        try:
            while self._unsent:
                if not self._breaker.allows(perf_counter_ns()):
                    self._unsent.clear()
                    self._unsent_bytes = 0
                    break
                pipeline = self._client.pipeline(transaction=False)
                for _ in range(min(len(self._unsent), MOST_KEYS)):
                    name, frame = self._unsent.popleft()
                    self._unsent_bytes -= len(frame)
                    pipeline.set(name, frame, px=self._age_ms)
                # Nobody waits for this: a large pipeline may take longer than a look-up.
                self._note_refusal(await self._try(partial(pipeline.execute, raise_on_error=False), CONNECT_S))
        finally:
            self._writing = None

    def _note_refusal(self, outcomes: object) -> None:
        """Say once that Redis keeps nothing, as when its memory is full; what it has is still worth asking for."""
        found = outcomes if isinstance(outcomes, list) else []
        refusals = [outcome for outcome in found if isinstance(outcome, Exception)]
        if refusals and not self._refused:
            log.warning("Redis at %s does not keep answers: %s", self.where, refusals[0])
        self._refused = bool(refusals)

    async def _try(self, command: Callable[[], Coroutine[Any, Any, object]], timeout_s: float) -> object:
        """The answer to ``command``, ``None`` where it fails or takes too long."""
        # Waited for from outside: those who wait must not depend on how soon a client obeys a cancellation.
        task = asyncio.ensure_future(command())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            await asyncio.wait([task], timeout=timeout_s)
            for _ in range(_GRACE_TURNS):
                if task.done():
                    break
                # If this loop was late itself, the answer may be there and only not be read yet.
                await asyncio.sleep(0)
        finally:
            task.cancel()
        if not task.done() or task.cancelled():
            self._failed(f"no answer within {timeout_s:g} seconds")
            return None
        if (fault := task.exception()) is not None:
            self._failed(fault)
            return None
        self._breaker.succeeded()
        if self._told:
            self._told = False
            log.warning("Redis at %s answers again", self.where)
        return task.result()

    def _failed(self, reason: object) -> None:
        now_ns = perf_counter_ns()
        self._breaker.failed(now_ns)
        if not self._told and now_ns >= self._silent_until_ns:
            self._told = True
            self._silent_until_ns = now_ns + _SILENT_NS
            log.warning("Redis at %s fails, going on without it: %s", self.where, reason)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told already, or nobody waits for it any more


def _tell(batch: Sequence[tuple[Sequence[bytes], Fetched]], frames: object) -> None:
    """Hand out what came, whatever came: to each who asked, as many as he asked for."""
    count = sum(len(keys) for keys, _ in batch)
    if not isinstance(frames, list) or len(frames) != count:
        frames = [None] * count
    at = 0
    for keys, done in batch:
        part = frames[at : at + len(keys)]
        at += len(keys)
        try:
            done([frame if isinstance(frame, bytes) else None for frame in part])
        except Exception:
            log.exception("a request failed after its look-up in Redis")
