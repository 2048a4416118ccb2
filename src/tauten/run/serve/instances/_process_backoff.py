"""How long to wait before a process that ended is started again."""

from __future__ import annotations

from typing import Final

_FIRST_S: Final = 0.1
_LONGEST_S: Final = 10.0
_STABLE_S: Final = 10.0


class Backoff:
    """The first time at once, then 0.1 seconds and twice as long each time, up to ten.

    One that answered for ten seconds counts as well again. Reads no clock.

    >>> backoff = Backoff()
    >>> [backoff.ended(after_s=1) for _ in range(4)]
    [0.0, 0.1, 0.2, 0.4]
    >>> backoff.ended(after_s=60)
    0.0
    """

    def __init__(self) -> None:
        self._next_s = 0.0

    def ended(self, after_s: float) -> float:
        """How long to wait, in seconds, since a process ended that had been ready for ``after_s`` seconds."""
        if after_s >= _STABLE_S:
            self._next_s = 0.0
        wait_s = self._next_s
        self._next_s = min(max(2 * wait_s, _FIRST_S), _LONGEST_S)
        return wait_s
