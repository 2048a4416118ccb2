"""Each instance in turn."""

from __future__ import annotations

from collections.abc import Sequence

from tauten.run.serve.balancer import Balancer

__all__ = ["RoundRobin"]


class RoundRobin(Balancer):
    """The one after the last that was picked; those that are down or hold ``depth`` batches are passed over."""

    _next = 0

    def pick(self, outstanding: Sequence[int | None]) -> int | None:
        count = len(outstanding)
        for step in range(count):
            index = (self._next + step) % count
            held = outstanding[index]
            if held is not None and held < self.depth:
                self._next = index + 1
                return index
        return None
