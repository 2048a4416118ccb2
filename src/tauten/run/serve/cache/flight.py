"""Computations that are under way, and who waits for which of their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tauten.run.serve.cache.keys import rows_of
from tauten.run.serve.cache.memory import Value
from tauten.run.serve.call import Call
from tauten.run.serve.protocol.buffer import Buffer
from tauten.run.serve.protocol.elements import Packed


class Waiter:
    """A call whose answer is being put together: ``values`` by place, ``None`` where one is missing yet.

    ``computed`` says that some of them were computed for it. Nobody waits once ``missing`` is 0.
    """

    __slots__ = ("call", "computed", "keys", "missing", "since_ns", "values")

    def __init__(self, call: Call, keys: list[bytes], values: list[Value | None], missing: int, since_ns: int) -> None:
        self.call = call
        self.since_ns = since_ns
        self.keys = keys
        self.values = values
        self.missing = missing
        self.computed = False

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more."""
        return self.call.cancelled or not self.missing


class Flight(Call):
    """The call that computes answers nobody remembers. Others that need one of them wait with the one that began it.

    ``keys`` are those of its rows, or that of the whole where it is not ``by_row``; ``places`` says which rows of the
    leader's call they are, ``waiting`` who waits for each, and at which place of its own answer.
    ``retire`` is called when it is cancelled: when the last of them is gone, and not before.
    """

    __slots__ = ("by_row", "keys", "leader", "places", "retire", "waiting")

    def __init__(
        self, leader: Waiter, by_row: bool, answered: Callable[[Call], None], retire: Callable[[Flight], None]
    ) -> None:
        call = leader.call
        Call.__init__(self, call.buffers, call.shapes, call.rows, call.group, answered)
        self.priority = call.priority
        self.deadline_ns = call.deadline_ns
        self.arrived_ns = call.arrived_ns
        self.leader = leader
        self.by_row = by_row
        self.keys: list[bytes] = []
        self.places: list[int] = []
        self.waiting: list[list[tuple[Waiter, int]]] = []
        self.retire = retire

    def lead(self, key: bytes, place: int) -> None:
        """One more answer to compute, at ``place`` of the leader's."""
        self.keys.append(key)
        self.places.append(place)
        self.waiting.append([(self.leader, place)])

    def takes(self, waiter: Waiter) -> bool:
        """Whether ``waiter`` loses nothing by waiting here: what it waits for is as urgent as itself.

        Where that is given up at a deadline, it is at one before the waiter's own, which then can begin anew.
        """
        call = waiter.call
        if waiter is self.leader:
            return True
        if self.cancelled or self.priority > call.priority:
            return False
        return not call.deadline_ns or 0 < self.deadline_ns <= call.deadline_ns

    def narrow(self, rows: Sequence[int]) -> None:
        """Compute these of the answers only; the others came from elsewhere."""
        self.keys = [self.keys[row] for row in rows]
        self.places = [self.places[row] for row in rows]
        self.waiting = [self.waiting[row] for row in rows]

    def gather_rows(self) -> None:
        """Take those rows of the leader's call that are to be computed."""
        call = self.leader.call
        self.rows = len(self.places)
        self.shapes = [(self.rows, *shape[1:]) for shape in call.shapes]
        self.buffers = [_taken(buffer, call.rows, self.places) for buffer in call.buffers]

    def cancel(self) -> None:
        """One of those who wait is gone: if it was the last, nothing need be computed."""
        for waiters in self.waiting:
            for waiter, _ in waiters:
                if not waiter.gone:
                    return
        self.retire(self)
        super().cancel()


def _taken(buffer: Buffer, rows: int, places: Sequence[int]) -> Buffer:
    """The rows of ``buffer`` at ``places``."""
    found = rows_of(buffer, rows)
    data = b"".join([found[place] for place in places])
    return Packed(data) if isinstance(buffer, Packed) else data
