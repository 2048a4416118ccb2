"""What stands before a worker and remembers its answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from time import perf_counter_ns, time_ns
from typing import Final, Protocol, cast

import numpy as np

from tauten.core.tensor import Array
from tauten.errors import EngineError
from tauten.run.serve.cache.flight import Flight, Waiter
from tauten.run.serve.cache.frames import Frames
from tauten.run.serve.cache.keys import Keys
from tauten.run.serve.cache.memory import Memory, Value
from tauten.run.serve.cache.remote import Remote
from tauten.run.serve.call import Call
from tauten.run.serve.protocol.buffer import ALONE

LARGEST_BYTES: Final = 4 * 2**20
"""Larger requests are not looked up: hashing them would hold up the event loop for milliseconds."""

_NOWHERE: Final = (None, 0)


class Submits(Protocol):
    """What takes calls: a worker, or what stands before one."""

    def submit(self, call: Call) -> None: ...


class Cached:
    """Answers calls from ``memory`` where it can, and lets ``inner`` compute the others, each once.

    Where each tensor of the model has its batch first, each row of a call is an answer of its own: of a call of three
    rows of which two are known, one is computed. Elsewhere an answer belongs to the whole call.

    A call that needs what is being computed already waits for that. Where that computation fails, runs into the
    deadline of the one who began it, or loses its place, those who only waited begin anew: nobody's answer depends on a
    stranger's deadline, and nobody waits for what is less urgent than itself.

    ``remote`` is asked for what is not in memory, and told what was computed. ``hits`` counts answers that were known,
    ``remote_hits`` those among them that came from there, ``misses`` answers that were computed, ``shared`` those that
    came with another's computation. ``lookup_ns`` is the time that looking up in memory took.
    """

    def __init__(
        self, inner: Submits, keys: Keys, memory: Memory, remote: Remote | None = None, frames: Frames | None = None
    ) -> None:
        self.memory = memory
        self.hits = 0
        self.remote_hits = 0
        self.misses = 0
        self.shared = 0
        self.lookup_ns = 0
        self._inner = inner
        self._keys = keys
        self._remote = None if frames is None else remote
        self._frames = frames
        self._row_alike = keys.by_row and 0 < keys.row_bytes <= LARGEST_BYTES
        self._flights: dict[bytes, tuple[Flight, int]] = {}
        self._closed = False

    def submit(self, call: Call) -> None:
        """Answer ``call``, now or later. Raises nothing."""
        now_ns = perf_counter_ns()
        if call.rows == 1 and self._row_alike and call.group is not ALONE:
            # The common case: one row, which is known or not.
            key = self._keys.of_row(call)
            value = self.memory.get(key, now_ns)
            if value is not None:
                self.hits += 1
                call.result = value
                call.cached = True
                call.started_ns = call.ended_ns = ended_ns = perf_counter_ns()
                self.lookup_ns += ended_ns - now_ns
                if not call.cancelled:
                    call.answered(call)
                return
            self.lookup_ns += perf_counter_ns() - now_ns
            waiter = Waiter(call, [key], [None], 1, now_ns)
            if key in self._flights:
                self._await(waiter, (0,))
            else:
                self._begin(waiter, key)
            return
        if call.rows and self._bytes(call) <= LARGEST_BYTES:
            keys = self._keys.of_rows(call) if self._by_row(call) else [self._keys.of_call(call)]
            values = [self.memory.get(key, now_ns) for key in keys]
            waiter = Waiter(call, keys, values, values.count(None), now_ns)
            self.hits += len(keys) - waiter.missing
        else:
            self._inner.submit(call)
            return
        self.lookup_ns += perf_counter_ns() - now_ns
        if waiter.missing:
            self._await(waiter, [place for place, value in enumerate(waiter.values) if value is None])
        else:
            self._finish(waiter, None)

    def close(self) -> None:
        """The model goes: forget its answers and keep no more of them. What is under way is still answered."""
        self._closed = True
        self.memory.drop(self)

    def _by_row(self, call: Call) -> bool:
        return self._keys.by_row and call.group is not ALONE

    def _bytes(self, call: Call) -> int:
        """Bytes of all the call's inputs."""
        row_bytes = self._keys.row_bytes
        return call.rows * row_bytes if row_bytes else sum(memoryview(buffer).nbytes for buffer in call.buffers)

    def _await(self, waiter: Waiter, places: Iterable[int]) -> None:
        """Wait for what is missing at ``places`` where it is computed already, and compute the rest."""
        own: Flight | None = None
        flights: dict[Flight, None] = {}
        for place in places:
            key = waiter.keys[place]
            flight, row = self._flights.get(key, _NOWHERE)
            if flight is not None and flight.takes(waiter):
                flight.waiting[row].append((waiter, place))
                flights[flight] = None
                self.shared += 1
                continue
            if own is None:
                own = Flight(waiter, self._by_row(waiter.call), self._landed, self._forget)
                flights[own] = None
            self._flights[key] = (own, len(own.keys))
            own.lead(key, place)
        # They are told when the call is cancelled: what nobody waits for any more is not computed.
        call = waiter.call
        call.parts = [*call.parts, *flights] if call.parts else list(flights)
        if own is not None:
            self._start(own)

    def _begin(self, waiter: Waiter, key: bytes) -> None:
        """Compute the one row of a call, where nobody does so yet: what most calls that miss come to."""
        call = waiter.call
        flight = Flight(waiter, True, self._landed, self._forget)
        flight.lead(key, 0)
        self._flights[key] = (flight, 0)
        call.parts = [*call.parts, flight] if call.parts else (flight,)
        self._start(flight)

    def _start(self, flight: Flight) -> None:
        """Compute ``flight``, where no other server has."""
        if self._remote is None:
            self._compute(flight)
        else:
            self._remote.fetch(flight.keys, partial(self._fetched, flight))

    def _fetched(self, flight: Flight, frames: Sequence[bytes | None]) -> None:
        """Take what another server computed, and compute the rest."""
        now_ns, now_ms = perf_counter_ns(), time_ns() // 1_000_000
        left: list[int] = []
        found: list[tuple[list[tuple[Waiter, int]], Value]] = []
        for row, (key, frame) in enumerate(zip(flight.keys, frames, strict=True)):
            known = self._frames.decode(key, frame) if frame is not None and self._frames is not None else None
            if known is None:
                left.append(row)
                continue
            found.append((flight.waiting[row], known.value))
            self._keep(key, known.value, now_ns, max(0, now_ms - known.born_ms) * 1_000_000)
            self._unlist(key, flight)
        self.hits += len(found)
        self.remote_hits += len(found)
        if found and left:
            flight.narrow(left)
            for row, key in enumerate(flight.keys):
                if self._flights.get(key, _NOWHERE)[0] is flight:
                    self._flights[key] = (flight, row)
        for waiting, value in found:
            self._deliver(waiting, value, None)
        if left:
            self._compute(flight)

    def _compute(self, flight: Flight) -> None:
        if flight.leader.gone:
            flight.cancel()  # which it does only if nobody else waits either
            if flight.cancelled:
                return
        if flight.by_row and len(flight.places) < flight.rows:
            flight.gather_rows()
        self.misses += len(flight.keys)
        self._inner.submit(flight)

    def _landed(self, call: Call) -> None:
        """Told by ``inner``: a flight has its result, or a fault."""
        flight = cast("Flight", call)
        self._forget(flight)
        if flight.fault is None:
            try:
                values = self._values(flight)
            except EngineError as fault:
                flight.fault = fault
        if flight.fault is not None:
            self._failed(flight, flight.fault)
            return
        flight.leader.computed = True
        now_ns = perf_counter_ns()
        if len(values) == 1 and self._remote is None:
            self._keep(flight.keys[0], values[0], now_ns, 0)
            self._deliver(flight.waiting[0], values[0], flight)
            return
        for key, value in zip(flight.keys, values, strict=True):
            self._keep(key, value, now_ns, 0)
        if self._remote is not None and self._frames is not None and not self._closed:
            now_ms = time_ns() // 1_000_000
            for key, value in zip(flight.keys, values, strict=True):
                self._remote.keep(key, self._frames.encode(key, value, now_ms))
        for waiting, value in zip(flight.waiting, values, strict=True):
            self._deliver(waiting, value, flight)

    def _values(self, flight: Flight) -> list[Value]:
        """The answer to each key of ``flight``, in memory of its own: a view would hold the whole batch's."""
        outputs = flight.result or ()
        rows = len(flight.keys)
        if flight.by_row:
            for output in outputs:
                if not output.ndim or len(output) != rows:
                    raise EngineError(f"expected {rows} rows in each output, got one of shape {output.shape}")
        if rows == 1:
            return [tuple([_own(output) for output in outputs])]
        return [tuple(_own(output[row : row + 1]) for output in outputs) for row in range(rows)]

    def _keep(self, key: bytes, value: Value, now_ns: int, age_ns: int) -> None:
        if not self._closed:
            self.memory.put(key, value, now_ns, age_ns=age_ns, owner=self)

    def _failed(self, flight: Flight, fault: Exception) -> None:
        """Tell the one who began ``flight``, and let each of the others begin anew, the most urgent first."""
        leader = flight.leader
        others: dict[Waiter, list[int]] = {}
        for waiting in flight.waiting:
            for waiter, place in waiting:
                if waiter is not leader and not waiter.gone:
                    others.setdefault(waiter, []).append(place)
        if not leader.gone:
            call, leader.missing = leader.call, 0
            parts, call.parts = call.parts, ()
            for part in parts:
                part.cancel()
            _tell_times(leader, flight)
            call.refuse(fault)
        for waiter in sorted(others, key=_urgency):
            if not waiter.gone:
                waiter.call.parts = [part for part in waiter.call.parts if part is not flight]
                # In the order of its own rows, not of the other call's: all of them are computed as the call came.
                self._await(waiter, sorted(others[waiter]))

    def _deliver(self, waiting: Sequence[tuple[Waiter, int]], value: Value, flight: Flight | None) -> None:
        for waiter, place in waiting:
            if waiter.missing and waiter.values[place] is None:
                waiter.values[place] = value
                waiter.missing -= 1
                if not waiter.missing:
                    self._finish(waiter, flight)

    def _finish(self, waiter: Waiter, flight: Flight | None) -> None:
        """Answer a call whose values are all there; the last came with ``flight``, if one was computed for it."""
        call = waiter.call
        call.parts = ()
        if call.cancelled:
            return
        values = cast("list[Value]", waiter.values)
        result: Sequence[Array] | None
        if len(values) == 1:
            result = values[0]
        elif flight is not None and flight.leader is waiter and len(flight.keys) == len(values):
            result = flight.result
        else:
            result = _joined(values)
        if result is None:
            self._inner.submit(call)
            return
        call.result = result
        call.cached = not waiter.computed
        _tell_times(waiter, flight)
        call.answered(call)

    def _forget(self, flight: Flight) -> None:
        """Nobody joins ``flight`` any more."""
        flights = self._flights
        for key in flight.keys:
            if flights.get(key, _NOWHERE)[0] is flight:  # as in _unlist, without a call for each
                del flights[key]

    def _unlist(self, key: bytes, flight: Flight) -> None:
        # A more urgent call may have begun another for the same key.
        if self._flights.get(key, _NOWHERE)[0] is flight:
            del self._flights[key]


def _own(output: Array) -> Array:
    copy = output.copy()
    copy.setflags(write=False)
    return copy


def _joined(values: Sequence[Value]) -> list[Array] | None:
    """Rows one after the other, or ``None`` where they do not fit, since they were computed in different batches."""
    shapes = [array.shape for array in values[0]]
    if any([array.shape for array in value] != shapes for value in values):
        return None
    return [np.concatenate(rows) for rows in zip(*values, strict=True)]


def _urgency(waiter: Waiter) -> tuple[int, float, int]:
    call = waiter.call
    return (call.priority, call.deadline_ns or math.inf, call.arrived_ns)


def _tell_times(waiter: Waiter, flight: Flight | None) -> None:
    """Say when the call's answer was computed; for those who came later, from when they came."""
    call = waiter.call
    if flight is None:
        call.started_ns = call.ended_ns = perf_counter_ns()
        return
    call.started_ns = max(flight.started_ns, waiter.since_ns)
    call.ended_ns = max(flight.ended_ns, call.started_ns)
    call.batch_rows = flight.batch_rows
    call.padded = flight.padded
    call.why = flight.why
    call.retried = flight.retried
