"""Answers that servers share through Redis: a real one, that comes and goes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from tauten.core.tensor import TensorSpec
from tauten.errors import ConfigError
from tauten.run.serve.cache.breaker import Breaker
from tauten.run.serve.cache.cached import Cached
from tauten.run.serve.cache.opened import SECRET, Cache, CacheSettings, shared_secret
from tauten.run.serve.cache.redis import TIMEOUT_S, RedisTier
from tauten.run.serve.call import Call
from tests.unit.serve.redis_server import PROGRAM, REASON, RedisServer, redis_server

X = TensorSpec(name="x", shape=("batch", 3))
Y = TensorSpec(name="y", shape=("batch", 3))
KEY = bytes(16)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    if PROGRAM is None:
        pytest.skip(REASON)
    with redis_server(tmp_path) as server:
        yield server


class Soon:
    """Answers each call in the loop's next turn; ``rows`` counts what it computed."""

    def __init__(self) -> None:
        self.rows = 0

    def submit(self, call: Call) -> None:
        asyncio.get_running_loop().call_soon(self._answer, call)

    def _answer(self, call: Call) -> None:
        if not call.cancelled:
            self.rows += call.rows
            data = np.frombuffer(call.buffers[0], np.float32).reshape(call.shapes[0])  # type: ignore[arg-type]
            call.result = [data * 2]
            call.answered(call)


class Serving:
    """A server's cache before a model, as one that starts anew has it."""

    def __init__(self, settings: CacheSettings, digest: bytes = b"digest", *, within_s: float = 10.0) -> None:
        self.model = Soon()
        self.cache = Cache(settings)
        if isinstance(self.cache._remote, RedisTier):
            self.cache._remote._timeout_s = within_s  # a busy machine that runs tests is no slow Redis
        self.cached: Cached = self.cache.before(self.model, [b"m", b"1", digest], [X], [Y])

    async def __aenter__(self) -> Serving:
        await self.cache.open()
        return self

    async def __aexit__(self, *fault: object) -> None:
        await self.cache.close()

    async def ask(self, *rows: float) -> Call:
        data = np.repeat(np.array(rows, np.float32), 3).reshape(-1, 3)
        answered: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        self.cached.submit(Call([data.tobytes()], [data.shape], len(rows), "group", answered.set_result))
        call = await asyncio.wait_for(answered, 20)
        assert call.fault is None
        assert call.result is not None
        np.testing.assert_array_equal(call.result[0], data * 2)
        return call

    async def written(self, redis: RedisServer, count: int) -> None:
        """Until Redis has ``count`` answers."""
        async with asyncio.timeout(20):
            while redis.say("DBSIZE") != f":{count}\r\n".encode():
                await asyncio.sleep(0.005)


def settings(redis: RedisServer, **fields: float) -> CacheSettings:
    return CacheSettings(where=redis.url, **fields)  # type: ignore[arg-type]


def test_what_one_server_computed_the_next_need_not(redis: RedisServer) -> None:
    async def main() -> None:
        async with Serving(settings(redis)) as first, Serving(settings(redis)) as second:
            await first.ask(1, 2, 3)
            await first.written(redis, 3)
            call = await second.ask(3, 1)
            assert call.cached
            assert (second.model.rows, second.cached.remote_hits, second.cached.hits) == (0, 2, 2)
            await second.ask(1, 4, 2)
            assert second.model.rows == 1
            await second.ask(1)
            assert second.cached.remote_hits == 3

    asyncio.run(main())


def test_another_artifact_has_other_answers(redis: RedisServer) -> None:
    async def main() -> None:
        async with Serving(settings(redis)) as first, Serving(settings(redis), b"other") as second:
            await first.ask(1)
            await first.written(redis, 1)
            await second.ask(1)
            assert second.model.rows == 1

    asyncio.run(main())


def test_answers_live_as_long_as_the_settings_say(redis: RedisServer) -> None:
    async def main() -> None:
        async with Serving(settings(redis, age_s=3)) as first, Serving(settings(redis, age_s=3)) as second:
            await first.ask(1)
            await first.written(redis, 1)
            await asyncio.sleep(1)
            assert (await second.ask(1)).cached
            await asyncio.sleep(2.5)  # older than the settings allow since it was computed, not since it was fetched
            assert not (await second.ask(1)).cached

    asyncio.run(main())


def test_those_who_do_not_share_the_secret_share_nothing(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Serving(settings(redis)) as first:
            await first.ask(1)
            await first.written(redis, 1)
        monkeypatch.setenv(SECRET, "a secret")
        async with Serving(settings(redis)) as second:
            await second.ask(1)
            assert second.model.rows == 1

    asyncio.run(main())


def test_wrong_values_are_no_answers(redis: RedisServer) -> None:
    async def main() -> None:
        async with Serving(settings(redis)) as first:
            await first.ask(1, 2)
            await first.written(redis, 2)
        client = RedisTier(redis.url, age_s=10)._client
        one, two = await client.keys("*")
        values = await client.mget([one, two])
        for wrong in ([values[1], values[0]], [b"", b"x" * 100], [values[0][:-1], b"\0" + values[1]]):
            await client.mset({one: wrong[0], two: wrong[1]})
            async with Serving(settings(redis)) as second:
                await second.ask(1, 2)
                assert second.model.rows == 2
                await asyncio.sleep(0.05)
        await client.delete(one, two)
        await client.hset(one, "not", "a string")
        async with Serving(settings(redis)) as third:
            await third.ask(1, 2)
        await client.aclose()

    asyncio.run(main())


def test_without_redis_answers_come_all_the_same(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    redis.kill()

    async def main() -> None:
        async with Serving(settings(redis)) as server:
            for number in range(50):
                await server.ask(number)
            assert server.model.rows == 50
            assert (await server.ask(7)).cached

    with caplog.at_level(logging.WARNING, "tauten.serve"):
        asyncio.run(main())
    assert [record.message.split(":")[0] for record in caplog.records] == ["Redis at 127.0.0.1"]


def test_a_redis_that_does_not_answer_is_waited_for_once(redis: RedisServer) -> None:
    async def main() -> float:
        async with Serving(settings(redis), within_s=TIMEOUT_S) as server:
            await server.ask(0)
            redis.freeze()
            begun = perf_counter()
            await asyncio.gather(*(server.ask(number) for number in range(1, 300)))
            took = perf_counter() - begun
            redis.thaw()
            return took

    assert asyncio.run(main()) < 8  # 300 times the time that each waits would be twice as long


def test_a_full_redis_keeps_nothing_and_still_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if PROGRAM is None:
        pytest.skip(REASON)
    with redis_server(tmp_path, "--maxmemory", "1") as redis:

        async def main() -> None:
            async with Serving(settings(redis)) as server:
                await server.ask(1)
                async with asyncio.timeout(20):
                    while not caplog.records:
                        await asyncio.sleep(0.005)
                await server.ask(2)
                assert not server.cache._remote._breaker.broken  # type: ignore[union-attr]

        with caplog.at_level(logging.WARNING, "tauten.serve"):
            asyncio.run(main())
    assert "does not keep answers: " in caplog.text


def test_nothing_is_wrong_or_lost_while_redis_comes_and_goes(redis: RedisServer) -> None:
    async def one(servers: list[Serving], end: float, draws: random.Random) -> int:
        count = 0
        while perf_counter() < end:
            rows = [float(draws.randrange(200)) for _ in range(draws.choice([1, 1, 3]))]
            await draws.choice(servers).ask(*rows)
            count += 1
        return count

    async def disturb(end: float) -> None:
        steps: list[Callable[[], None]] = [redis.kill, redis.start, redis.freeze, redis.thaw]
        while perf_counter() < end - 1:
            for step in steps:
                await asyncio.to_thread(step)
                await asyncio.sleep(0.15)

    async def main() -> None:
        # Little memory, so that most is asked of Redis.
        little = settings(redis, max_bytes=20_000)
        async with Serving(little, within_s=TIMEOUT_S) as a, Serving(little, within_s=TIMEOUT_S) as b:
            end = perf_counter() + 4
            asks: list[Coroutine[None, None, int]] = [one([a, b], end, random.Random(seed)) for seed in range(8)]
            counts = await asyncio.gather(*asks, disturb(end))
            assert sum(count for count in counts if count is not None) >= 8
            assert a.cached._flights == b.cached._flights == {}

    asyncio.run(main())


def test_those_who_wait_while_it_closes_are_answered(redis: RedisServer) -> None:
    async def main() -> None:
        async with Serving(settings(redis)) as server:
            redis.freeze()
            asked = [asyncio.create_task(server.ask(number)) for number in range(20)]
            await asyncio.sleep(0)
            await server.cache.close()
            await asyncio.gather(*asked)
            redis.thaw()

    asyncio.run(main())


@pytest.mark.parametrize("where", ["disk", "http://127.0.0.1", "127.0.0.1:6379", ""])
def test_elsewhere_is_an_error(where: str) -> None:
    with pytest.raises(ConfigError, match="where"):
        CacheSettings(where=where)


def test_a_url_that_redis_cannot_read_is_an_error() -> None:
    with pytest.raises(ConfigError, match="expected a URL such as redis://"):
        RedisTier("redis://127.0.0.1:port/0", age_s=1)


def test_what_servers_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET, raising=False)
    assert shared_secret("redis://127.0.0.1/0") == b""
    assert shared_secret("redis://user:p%40ss@127.0.0.1/0") == b"p@ss"
    monkeypatch.setenv(SECRET, "other")
    assert shared_secret("redis://user:p%40ss@127.0.0.1/0") == b"other"


def test_what_fails_is_left_alone_for_a_while_that_grows() -> None:
    breaker = Breaker(first_ns=10, longest_ns=35)
    assert breaker.allows(0)
    breaker.failed(100)
    breaker.failed(101)  # began before the first had failed
    assert breaker.broken
    assert not breaker.allows(109)
    assert breaker.allows(110)
    breaker.failed(110)
    assert not breaker.allows(129)
    breaker.failed(130)
    assert not breaker.allows(164)
    assert breaker.allows(165)
    breaker.succeeded()
    assert not breaker.broken
    breaker.failed(200)
    assert breaker.allows(210)
