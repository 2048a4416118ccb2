"""When a request is sent again: a policy without I/O and without a clock."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tauten.core.value import Value


class Retries(Value):
    """A request is sent at most ``tries`` times, with a pause that doubles from ``first_s`` to ``longest_s``.

    The pause is drawn between nothing and that (full jitter: Brooker, "Exponential backoff and jitter", 2015), so that
    clients which failed together do not come back together. What a server says in ``Retry-After`` is waited for first.

    >>> Retries(first_s=0.1).pause_s(attempt=3, retry_after_s=1.0, draw=0.5)
    1.2
    """

    tries: Annotated[int, Field(ge=1)] = 4
    first_s: Annotated[float, Field(ge=0)] = 0.1
    longest_s: Annotated[float, Field(ge=0)] = 5.0

    def pause_s(self, attempt: int, retry_after_s: float, draw: float) -> float:
        """Seconds to wait after the ``attempt``-th failure; ``draw`` is a random number between 0 and 1."""
        return retry_after_s + draw * min(self.longest_s, self.first_s * 2.0 ** min(attempt - 1, 60))
