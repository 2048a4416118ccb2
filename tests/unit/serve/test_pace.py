"""How fast a server says no."""

from __future__ import annotations

import asyncio

from tauten.run.serve.pace import Pace
from tests.unit.serve.tiny import WAIT_S


def test_a_few_refusals_are_said_at_once_and_the_rest_in_order_and_all() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pace, said = Pace(loop, rate=1000), []
        started = loop.time()
        for number in range(300):
            pace.refuse(lambda number=number: said.append(number))  # type: ignore[misc]
        assert said == list(range(20))
        async with asyncio.timeout(WAIT_S):
            while len(said) < 300:
                await asyncio.sleep(0.01)
        assert said == list(range(300))
        assert loop.time() - started > 0.2  # 280 at 1,000 a second

    asyncio.run(main())


def test_none_waits_longer_than_so_long_however_many_there_are() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pace, said = Pace(loop, rate=100, longest_s=0.2), []
        for number in range(5000):
            pace.refuse(lambda number=number: said.append(number))  # type: ignore[misc]
        async with asyncio.timeout(WAIT_S):
            while len(said) < 5000:
                await asyncio.sleep(0.01)
        # At 100 a second it would have been 50 seconds.

    asyncio.run(main())


def test_who_has_left_is_told_nothing_and_after_a_rest_no_is_said_at_once_again() -> None:
    async def main() -> None:
        pace, said = Pace(asyncio.get_running_loop(), rate=1000), []
        tickets = [pace.refuse(lambda number=number: said.append(number)) for number in range(40)]  # type: ignore[misc]
        for ticket in tickets[30:]:
            assert ticket is not None
            ticket.cancel()
        await asyncio.sleep(0.2)
        assert said == list(range(30))
        assert pace.refuse(lambda: said.append(99)) is None
        assert said[-1] == 99

    asyncio.run(main())


def test_who_waits_for_a_turn_gets_it_and_who_leaves_takes_nobody_s() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pace = Pace(loop, rate=1000)
        waiting = [loop.create_task(pace.turn()) for _ in range(60)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting[20:])
        for task in waiting[20:40]:
            task.cancel()
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*waiting[:20], *waiting[40:])
        assert all(task.cancelled() for task in waiting[20:40])
        assert not pace._parked

    asyncio.run(main())
