"""The instance that holds fewest batches."""

from __future__ import annotations

from collections.abc import Sequence

from tauten.run.serve.balancer import Balancer

__all__ = ["LeastOutstanding"]


class LeastOutstanding(Balancer):
    """The first of those that hold fewest."""

    def pick(self, outstanding: Sequence[int | None]) -> int | None:
        best, fewest = None, self.depth
        for index, held in enumerate(outstanding):
            if held is not None and held < fewest:
                best, fewest = index, held
        return best
