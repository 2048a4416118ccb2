"""The better of two instances drawn at random (the power of two choices: Mitzenmacher, 1996)."""

from __future__ import annotations

from collections.abc import Sequence

from tauten.run.serve.balancer import Balancer

__all__ = ["PowerOfTwoChoices"]


class PowerOfTwoChoices(Balancer):
    """The one of two that holds fewer, the first drawn where both hold as many.

    Changed against the source: an idle instance that was not drawn is still preferred to two busy ones, since here all
    counts are known and exact.
    """

    def pick(self, outstanding: Sequence[int | None]) -> int | None:
        open_ = [index for index, held in enumerate(outstanding) if held is not None and held < self.depth]
        if len(open_) < 2:
            return open_[0] if open_ else None
        idle = [index for index in open_ if outstanding[index] == 0]
        first, second = self.random.sample(idle if len(idle) > 1 else open_, 2)
        if len(idle) == 1:
            return idle[0]
        return second if (outstanding[second] or 0) < (outstanding[first] or 0) else first
