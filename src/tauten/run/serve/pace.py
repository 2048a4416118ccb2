"""How fast an overloaded server says no.

A client that is refused at once comes again at once, and a server that is asked for ten times what it can do would
spend its time on refusals. So only some leave at once; the others are told a little later, and as slowly come again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

_TICK_S: Final = 0.02


class Parked:
    """A refusal that has not been said yet."""

    __slots__ = ("_say", "cancelled")

    def __init__(self, say: Callable[[], None]) -> None:
        self._say = say
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def say(self) -> None:
        if not self.cancelled:
            self._say()


class Pace:
    """Says at most ``rate`` refusals a second, as long as none waits longer than ``longest_s``. Of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, rate: float = 1000.0, longest_s: float = 1.0) -> None:
        self._loop = loop
        self._a_tick = rate * _TICK_S
        self._ticks = longest_s / _TICK_S
        self._left = self._a_tick
        self._parked: deque[Parked] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def refuse(self, say: Callable[[], None]) -> Parked | None:
        """Call ``say`` now, or later unless what is returned is cancelled."""
        if self._timer is None:
            self._left = self._a_tick
            self._timer = self._loop.call_later(_TICK_S, self._tick)
        if self._left >= 1 and not self._parked:
            self._left -= 1
            say()
            return None
        parked = Parked(say)
        self._parked.append(parked)
        return parked

    async def turn(self) -> None:
        """Wait until a refusal may be said. Who is cancelled meanwhile takes nobody's place."""
        told = self._loop.create_future()
        parked = self.refuse(lambda: told.set_result(None))
        try:
            await told
        finally:
            if parked is not None:
                parked.cancel()

    def _tick(self) -> None:
        parked = self._parked
        self._timer = None
        count = int(max(self._a_tick, len(parked) / self._ticks))
        if not parked:
            return
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        self._left = 0
        while count and parked:
            one = parked.popleft()
            if not one.cancelled:
                count -= 1
                one.say()
