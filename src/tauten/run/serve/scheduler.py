"""The seam of batching policies."""

from __future__ import annotations

from abc import ABC, abstractmethod

from tauten.run.serve.call import Batch, Call


class Scheduler(ABC):
    """Which of the waiting calls run next.

    Made with the most rows that may run at once. Times are nanoseconds of ``time.perf_counter_ns``.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.waiting = 0
        """Calls that wait, those included that were cancelled and have not been found yet."""

    @abstractmethod
    def submit(self, call: Call, now_ns: int) -> None:
        """``call`` waits from now on. It has at most ``max_rows`` rows, or is of a group that fits with none."""

    @abstractmethod
    def next(self, now_ns: int) -> Batch | int | None:
        """What an idle instance shall do.

        A batch, to run at once; a time, to ask again then at the latest; ``None`` where nothing waits. Calls that were
        cancelled or whose deadline has passed are in no batch.
        """

    @abstractmethod
    def expired(self, now_ns: int) -> list[Call]:
        """Calls that are given up since their deadline has passed; each is told once."""

    def ran(self, batch: Batch, duration_ns: int) -> None:
        """``batch``, which ``next`` gave, took so long: what a policy may learn from."""
