"""Runs what has arrived as soon as an instance is idle; what comes while it runs is the next batch.

The idea is that of Clipper's adaptive batching (Crankshaw et al., 2017) without its timer: under load batches grow by
themselves, and without load nobody waits. Two things are learned on the way, both from ``BatchCosts``: how many rows
pay, and whether an idle instance gains by a short wait. Rows of one group cost the same and rows of two may not, as
long texts and short ones: each group is learned for itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Final

from tauten.run.serve.batch_costs import BatchCosts
from tauten.run.serve.call import Batch, Call
from tauten.run.serve.protocol.buffer import ALONE
from tauten.run.serve.scheduler import Scheduler

__all__ = ["Continuous"]

_GAP_MEMORY: Final = 20
_MOST_PATIENCE: Final = 10
_GROUPS: Final = 256


class Continuous(Scheduler):
    """The oldest call of the highest priority leaves first, and takes along what fits with it, in that order.

    A batch leaves at once, but where the next call is expected so soon that all together wait less (see
    ``BatchCosts.wait_ns``) and the oldest call's deadline allows it, and nothing else is there to run.
    """

    def __init__(self, max_rows: int) -> None:
        super().__init__(max_rows)
        # By priority and group. A queue that is empty is removed, so that clients cannot fill the table with shapes.
        self._queues: dict[tuple[int, Hashable], deque[Call]] = {}
        self._learned: dict[Hashable, Learned] = {}
        self._expired: list[Call] = []

    def submit(self, call: Call, now_ns: int) -> None:
        key = (call.priority, call.group)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        queue.append(call)
        self.waiting += 1

    def next(self, now_ns: int) -> Batch | int | None:
        while self._queues:
            key = self._first()
            queue = self._queues[key]
            learned = self.learned(key[1])
            batch = self._fill(key[1], queue, learned.costs, now_ns)
            if not queue:
                del self._queues[key]
            if batch is None:
                continue  # all of that queue had left already
            until_ns = learned.worth_waiting(batch, now_ns, last=not self._queues)
            if until_ns:
                self._put_back(key, batch)
                return until_ns
            learned.leaves(batch.calls)
            return batch
        return None

    def expired(self, now_ns: int) -> list[Call]:
        for key, queue in tuple(self._queues.items()):
            left = [call for call in queue if not self._gone(call, now_ns)]
            if len(left) == len(queue):
                continue
            self.waiting -= len(queue) - len(left)
            if left:
                self._queues[key] = deque(left)
            else:
                del self._queues[key]
        expired, self._expired = self._expired, []
        return expired

    def ran(self, batch: Batch, duration_ns: int) -> None:
        self.learned(batch.calls[0].group).costs.add(batch.rows, duration_ns)

    def learned(self, group: Hashable) -> Learned:
        """What is known of a group. A full table is emptied: what clients choose must not fill the memory."""
        if type(group) is object:
            group = ALONE  # each of these equals no other
        learned = self._learned.get(group)
        if learned is None:
            if len(self._learned) >= _GROUPS:
                self._learned.clear()
            learned = self._learned[group] = Learned(self.max_rows)
        return learned

    def _first(self) -> tuple[int, Hashable]:
        queues = self._queues
        if len(queues) == 1:
            return next(iter(queues))
        return min(queues, key=lambda key: (key[0], queues[key][0].arrived_ns))

    def _fill(self, group: Hashable, queue: deque[Call], costs: BatchCosts, now_ns: int) -> Batch | None:
        """The next calls of a queue, up to the rows that pay."""
        most = costs.best_rows(sum_of_rows(queue, self.max_rows))
        chosen: list[Call] = []
        rows = 0
        while queue:
            call = queue[0]
            if (call.cancelled or 0 < call.deadline_ns <= now_ns) and self._gone(call, now_ns):
                queue.popleft()
                self.waiting -= 1
                continue
            if chosen and rows + call.rows > most:
                why = "full"
                break
            queue.popleft()
            chosen.append(call)
            rows += call.rows
            if group is ALONE:
                why = "alone"
                break
        else:
            why = "idle"
        if not chosen:
            return None
        self.waiting -= len(chosen)
        return Batch(chosen, rows, why)

    def _gone(self, call: Call, now_ns: int) -> bool:
        """Whether nobody waits for ``call`` any more; one that is late is kept to be told."""
        if call.cancelled:
            return True
        if 0 < call.deadline_ns <= now_ns:
            self._expired.append(call)
            return True
        return False

    def _put_back(self, key: tuple[int, Hashable], batch: Batch) -> None:
        queue = self._queues.setdefault(key, deque())
        queue.extendleft(reversed(batch.calls))
        self.waiting += len(batch.calls)


class Learned:
    """Of one group: what its batches cost, how soon its calls follow each other, what waiting for one has brought."""

    def __init__(self, max_rows: int) -> None:
        self.costs = BatchCosts(max_rows)
        self.gap_ns = 1e12
        """Mean time between arrivals."""
        self._last_ns = 0
        self._awaited = 0  # calls of the batch that waits for one more
        self._in_vain = 0
        self._no_wait = 0  # batches that leave at once before the next that may wait

    def leaves(self, calls: Sequence[Call]) -> None:
        """These run now."""
        count, last_ns = len(calls), calls[-1].arrived_ns
        gap_ns = min(max(0, last_ns - self._last_ns) / count, 1e12)
        self.gap_ns += count / (count + _GAP_MEMORY) * (gap_ns - self.gap_ns)
        self._last_ns = last_ns

    def worth_waiting(self, batch: Batch, now_ns: int, *, last: bool) -> int:
        """Until when the batch shall wait for another call; 0 for not at all. ``last``: no other could run."""
        if not last or batch.why != "idle" or batch.rows >= self.costs.max_rows:
            self._awaited = 0
            return 0
        if self._no_wait:
            self._no_wait -= 1
            return 0
        calls = len(batch.calls)
        wait_ns = self.costs.wait_ns(calls, self.gap_ns)
        if not wait_ns and not self._awaited:
            return 0
        until_ns = batch.calls[0].arrived_ns + wait_ns
        deadlines = [call.deadline_ns for call in batch.calls if call.deadline_ns]
        if deadlines:
            until_ns = min(until_ns, min(deadlines) - 2 * self.costs.estimate_ns(batch.rows))
        if until_ns > now_ns:
            self._awaited = self._awaited or calls
            return until_ns
        if self._awaited:
            # Clients that send their next request only when they have an answer come in bursts, and nobody follows.
            self._in_vain = 0 if calls > self._awaited else min(self._in_vain + 1, _MOST_PATIENCE)
            self._no_wait = (1 << self._in_vain) - 1
            self._awaited = 0
            batch.why = "waited"
        return 0


def sum_of_rows(queue: deque[Call], enough: int) -> int:
    """The rows that wait, counted up to ``enough``."""
    if len(queue) >= enough:
        return enough  # each has at least one
    total = 0
    for call in queue:
        total += call.rows
        if total >= enough:
            return enough
    return total
