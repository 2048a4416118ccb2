"""What drives a model's instances: it owns the queue, the clock, the timers and the errors.

::

    submit(call) ── Scheduler.next ── Batch ── Balancer.pick ── Instance.run ── answered(call)
                        └── the calls of one turn of the event loop, or a few, gather before the first batch is made
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from random import Random
from time import perf_counter_ns
from typing import Final

from tauten.errors import NotReady, Overloaded
from tauten.run.serve.balancer import Balancer
from tauten.run.serve.balancers import BALANCERS, DEFAULT
from tauten.run.serve.call import Batch, Call
from tauten.run.serve.instance import Instance, InstanceLost
from tauten.run.serve.protocol.buffer import ALONE
from tauten.run.serve.scheduler import Scheduler
from tauten.run.serve.split import split

log = logging.getLogger("tauten.serve")

_SWEEP_S: Final = 0.5


class Worker:
    """Runs calls on ``instances`` and lets ``queue`` wait. Belongs to one event loop, in whose thread it is called.

    ``balancer`` says which instance takes what has arrived, by default an idle one. A call with more rows than fit into
    a batch runs in parts. Where a batch fails, each of its calls runs once more by itself, so that one that cannot work
    spoils no other's answer. ``answer_s`` bounds the time from arrival to answer. ``ran`` is told of each batch, and
    how many nanoseconds it took.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        scheduler: Scheduler,
        *,
        queue: int,
        answer_s: float,
        balancer: Balancer | None = None,
        ran: Callable[[Batch, int], None] = lambda batch, duration_ns: None,
    ) -> None:
        self._instances = instances
        self._scheduler = scheduler
        self._balancer = balancer or BALANCERS.get(DEFAULT)(1, Random(0))
        self._queue = queue
        self._answer_ns = int(answer_s * 1e9)
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, tuple[Batch, int]] = {}
        self._due = False
        self._last = 0  # calls of the batch that left last
        self._seen = 0  # calls that waited a turn before
        self._wake: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._closed = False
        self._tell = ran
        for instance in instances:
            instance.changed = self._soon

    @property
    def instances(self) -> int:
        """How many batches run at once."""
        return len(self._instances)

    @property
    def healthy(self) -> bool:
        """Whether any instance can take a batch, now or when it has ended the one that it runs."""
        return any(instance.healthy for instance in self._instances)

    @property
    def waiting(self) -> int:
        """Calls that wait for an instance."""
        return self._scheduler.waiting

    @property
    def outstanding(self) -> int:
        """Calls that run now."""
        return sum(len(batch.calls) for batch, _ in self._running.values())

    @property
    def full(self) -> bool:
        """Whether a call that came now would be refused."""
        waiting = self._scheduler.waiting
        return waiting >= self._queue and (
            waiting > 0 or not any(one.healthy and not one.outstanding for one in self._instances)
        )

    def submit(self, call: Call) -> None:
        """Run ``call``; it is answered in the event loop, maybe before this returns.

        Its fault is ``InputError`` or ``EngineError`` as the engine says, ``Overloaded`` where the queue is full or
        the wait in it was too long, ``NotReady`` where the worker is closed or the engine does not answer in time.
        """
        now = call.arrived_ns or perf_counter_ns()
        call.arrived_ns = now
        if self._closed:
            call.refuse(NotReady("the model is being unloaded"))
            return
        scheduler = self._scheduler
        if scheduler.waiting >= self._queue and self.full:
            call.refuse(Overloaded(f"the queue is full: {scheduler.waiting} requests wait, try again later"))
            return
        latest = now + self._answer_ns
        if not call.deadline_ns or call.deadline_ns > latest:
            call.deadline_ns = latest
        if call.rows > scheduler.max_rows and call.group is not ALONE:
            for part in split(call, scheduler.max_rows):
                scheduler.submit(part, now)
        else:
            scheduler.submit(call, now)
        if not self._due:
            self._due = True
            self._loop.call_soon(self._dispatch)
        if self._timer is None or call.deadline_ns < self._timer_ns:
            self._look_at(call.deadline_ns, now)

    def close(self) -> None:
        """Take no more and refuse what waits. A batch that runs now ends by itself."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while isinstance(batch := self._scheduler.next(2**62), Batch):
            for call in batch.calls:
                call.refuse(NotReady("the model is being unloaded"))
        for call in self._scheduler.expired(2**62):
            call.refuse(NotReady("the model is being unloaded"))
        if self._wake is not None:
            self._wake.cancel()
        for instance in self._instances:
            instance.close()

    def _pick(self) -> Instance | None:
        """The instance that takes the next batch, where one may take it now."""
        picked = self._balancer.pick([one.outstanding if one.healthy else None for one in self._instances])
        return None if picked is None else self._instances[picked]

    def _soon(self) -> None:
        if not self._due and not self._closed:
            self._due = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Hand batches to idle instances.

        Clients that were answered together ask again one after the other. While fewer wait than left together last, and
        each turn of the event loop brings more, another is taken: it costs less than a batch more.
        """
        scheduler = self._scheduler
        waiting = scheduler.waiting
        if self._seen < waiting < self._last:
            self._seen = waiting
            self._loop.call_soon(self._dispatch)
            return
        self._due = False
        self._seen = 0
        while scheduler.waiting and (instance := self._pick()) is not None:
            now = perf_counter_ns()
            found = scheduler.next(now)
            if found is None:
                break
            if isinstance(found, int):
                if self._wake is not None:
                    self._wake.cancel()
                self._wake = self._loop.call_later(max(0, found - now) * 1e-9, self._soon)
                break
            self._running[id(found)] = (found, now)
            self._last = len(found.calls)
            instance.run(found, self._ran)
            if instance.outstanding == 0:  # it ran in this thread: others first, so that what came meanwhile joins
                if scheduler.waiting:
                    self._soon()
                break

    def _ran(self, instance: Instance, batch: Batch, fault: Exception | None) -> None:
        self._running.pop(id(batch), None)
        calls = batch.calls
        if fault is None:
            duration_ns = calls[0].ended_ns - calls[0].started_ns
            self._scheduler.ran(batch, duration_ns)
            self._tell(batch, duration_ns)
            for call in calls:
                if not call.cancelled and call.fault is None:
                    call.answered(call)
        else:
            self._failed(batch, fault)
        if self._scheduler.waiting:
            self._soon()

    def _failed(self, batch: Batch, fault: Exception) -> None:
        lost = isinstance(fault, InstanceLost)
        for call in batch.calls:
            if call.cancelled or call.fault is not None:
                continue
            if not call.retried and not self._closed and (lost or len(batch.calls) > 1):
                call.retried = True
                call.padded = 0
                if len(batch.calls) > 1:
                    call.group = object()  # equals none: not with those that may have spoilt it
                self._scheduler.submit(call, perf_counter_ns())
            else:
                call.refuse(fault)

    def _look_at(self, when_ns: int, now_ns: int) -> None:
        """Look at deadlines at ``when_ns``, and at the latest in a while."""
        if self._timer is not None:
            self._timer.cancel()
        delay_s = min(max((when_ns - now_ns) * 1e-9, 0.001), _SWEEP_S)
        self._timer_ns = now_ns + int(delay_s * 1e9)
        self._timer = self._loop.call_later(delay_s, self._sweep)

    def _sweep(self) -> None:
        """Give up what nobody waits for any more."""
        self._timer = None
        now = perf_counter_ns()
        for call in self._scheduler.expired(now):
            waited_s = (now - call.arrived_ns) * 1e-9
            call.refuse(Overloaded(f"waited {waited_s:.3g} seconds in the queue, which is too long: try again later"))
        nearest = now + int(_SWEEP_S * 1e9)
        for batch, started in self._running.values():
            late = started + self._answer_ns <= now
            for call in batch.calls:
                if call.cancelled or call.fault is not None:
                    continue
                if late or call.deadline_ns <= now:
                    if late:
                        log.error("the engine has not answered within %g s", self._answer_ns * 1e-9)
                    waited_s = (now - call.arrived_ns) * 1e-9
                    call.refuse(NotReady(f"the model did not answer within {waited_s:.3g} seconds"))
                else:
                    nearest = min(nearest, call.deadline_ns)
        if self._scheduler.waiting or self._running:
            self._look_at(nearest, now)
