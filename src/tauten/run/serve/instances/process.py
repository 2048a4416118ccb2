"""An engine in a process of its own: for what holds the GIL, or may crash.

::

    event loop ── ProcessInstance ── socket, shared memory ── worker process ── [handler] ── Engine

A process that ends is started again; its batches are handed back with ``InstanceLost``, for another instance to run.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from math import prod
from time import perf_counter_ns
from typing import Final, NamedTuple

import numpy as np

from tauten.core.tensor import Array
from tauten.errors import EngineError, NotReady, TautenError
from tauten.run.serve.call import Batch, divide
from tauten.run.serve.instance import Done, Instance, InstanceLost
from tauten.run.serve.instances._process_backoff import Backoff
from tauten.run.serve.instances._process_child import Child, ProcessSettings, Specs, read_ready, to_fault
from tauten.run.serve.instances._process_memory import Place, lay_out, make_region, map_region, read_tensor
from tauten.run.serve.instances._process_wire import BatchMessage, Reply, send
from tauten.run.serve.lengths import Padded, pad
from tauten.run.serve.protocol.buffer import Buffer

log = logging.getLogger("tauten.serve")

_LENT_BYTES: Final = 1 << 18
"""Answers from this size on stay in shared memory until nobody holds them; smaller ones are copied out at once."""
_COUNT: Final = 1 << 32


class _Slot:
    """Memory for the inputs of one batch, which is written here, and for its outputs, which is read here."""

    __slots__ = ("inputs", "number", "outputs")

    def __init__(self, number: int) -> None:
        self.number = number
        self.inputs: mmap.mmap | None = None
        self.outputs: mmap.mmap | None = None


class _Sent(NamedTuple):
    number: int
    batch: Batch
    done: Done
    slot: _Slot


class ProcessInstance(Instance):
    """Runs batches in a worker process, one after the other, in the order in which they come.

    ``child`` is a process that is ready, with these ``specs``; from now on it belongs to this instance, which starts
    others in its place. A process that holds one batch for longer than ``answer_s`` seconds is killed: that batch gets
    ``NotReady``, since another process might hang on it as well.
    """

    def __init__(
        self,
        child: Child,
        specs: Specs,
        settings: ProcessSettings,
        *,
        answer_s: float,
    ) -> None:
        self.healthy = True
        self.outstanding = 0
        self.restarts = 0
        self._specs = specs
        self._settings = settings
        self._answer_s = answer_s
        self._loop = asyncio.get_running_loop()
        self._backoff = Backoff()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._number = 0
        self._adopt(child)
        self._ready_ns = perf_counter_ns()

    @property
    def pid(self) -> int:
        """The process that runs batches now, or the last that did."""
        return self._child.pid

    def run(self, batch: Batch, done: Done) -> None:
        """Hand ``batch`` to the process. ``InstanceLost`` where there is none, at once."""
        self.outstanding += 1
        if not self.healthy:
            self._finish(batch, done, InstanceLost("the worker process has ended and is being started again"))
            return
        slot = self._free.pop() if self._free else self._new_slot()
        self._number = (self._number + 1) % _COUNT
        try:
            places, grown = _write(slot, batch)
            message = BatchMessage(self._number, slot.number, grown is not None, places).pack()
            send(self._child.channel, message, grown)
        except (EngineError, OSError) as fault:
            # Memory that the other side has not heard of is none of the slot's.
            slot.inputs = None
            self._free.append(slot)
            lost = InstanceLost(f"the worker process took no batch: {fault}")
            self._finish(batch, done, fault if isinstance(fault, EngineError) else lost)
            return
        if not self._sent:
            self._head_ns = perf_counter_ns()
            if self._timer is None:
                self._timer = self._loop.call_later(self._answer_s, self._watch)
        self._sent.append(_Sent(self._number, batch, done, slot))

    def close(self) -> None:
        """Take no more and end the process. A batch that it runs now gets ``NotReady``."""
        if self._closed:
            return
        self._closed = True
        self._stop_timer()
        was_healthy, self.healthy = self.healthy, False
        if self._watched:
            self._unwatch()
            self._child.kill()
            self._child.reap()
        if was_healthy:
            self._give_back(lambda: NotReady("the model is being unloaded"))

    def _adopt(self, child: Child) -> None:
        """Watch a process. Its memory begins anew."""
        self._child = child
        child.channel.setblocking(False)
        self._sent: deque[_Sent] = deque()
        self._head_ns = 0
        self._free: list[_Slot] = []
        self._slots = 0
        self._watched = True
        self._loop.add_reader(child.channel.fileno(), self._hear)
        self._loop.add_reader(child.exited, self._ended)

    def _unwatch(self) -> None:
        self._watched = False
        self._loop.remove_reader(self._child.channel.fileno())
        self._loop.remove_reader(self._child.exited)

    def _new_slot(self) -> _Slot:
        self._slots += 1
        return _Slot(self._slots)

    def _hear(self) -> None:
        """A message came, or the other side closed."""
        try:
            data, descriptor = self._child.receive()
        except BlockingIOError:
            return
        except OSError:
            data, descriptor = b"", None
        except EngineError as fault:
            log.error("worker process %d: %s", self.pid, fault)
            data, descriptor = b"", None
        if data and self.healthy:
            self._answered(data, descriptor)
        elif data:
            self._started(data)
        else:
            # It has ended, or nothing more can be said to it; that it ended is told apart.
            self._loop.remove_reader(self._child.channel.fileno())
            self._child.kill()

    def _answered(self, data: bytes, descriptor: int | None) -> None:
        reply = Reply.unpack(data)
        sent = self._sent.popleft()
        slot = sent.slot
        if descriptor is not None:
            slot.outputs = map_region(descriptor)
        if self._sent:
            self._head_ns = perf_counter_ns()
        fault: Exception | None = None
        if reply.fault is not None:
            fault = to_fault(reply.fault)
            self._free.append(slot)
        else:
            try:
                divide(sent.batch, self._take(slot, reply.places))
            except EngineError as odd:
                fault = odd
        rows, why = sent.batch.rows, sent.batch.why
        for call in sent.batch.calls:
            call.started_ns, call.ended_ns = reply.started_ns, reply.ended_ns
            call.batch_rows, call.why = rows, why
        self._finish(sent.batch, sent.done, fault)

    def _take(self, slot: _Slot, places: Sequence[Place]) -> list[Array]:
        """The outputs. The slot is free again at once where they are copied, else when nobody holds them any more."""
        region = slot.outputs
        if region is None:
            raise EngineError("expected outputs in shared memory, the worker process sent none")
        end = places[-1].offset + places[-1].size if places else 0
        specs = self._specs.outputs
        if end < _LENT_BYTES:
            self._free.append(slot)
            copied = region[:end]
            return [read_tensor(spec, copied, place) for spec, place in zip(specs, places, strict=True)]
        # Every view of this array keeps it, and so the slot, until the last of them is gone.
        whole = np.frombuffer(region, np.uint8, end)
        weakref.finalize(whole, self._free.append, slot).atexit = False
        return [read_tensor(spec, whole.data, place) for spec, place in zip(specs, places, strict=True)]

    def _finish(self, batch: Batch, done: Done, fault: Exception | None) -> None:
        self.outstanding -= 1
        done(self, batch, fault)

    def _give_back(self, why: Callable[[], TautenError]) -> None:
        """Every batch that the process still holds is done, with a fault."""
        sent, self._sent = self._sent, deque()
        for one in sent:
            self._finish(one.batch, one.done, why())

    def _watch(self) -> None:
        """See whether the process still answers; asks again when its oldest batch could be too old."""
        self._timer = None
        if not self._sent:
            return  # the next batch asks
        left_s = self._answer_s - (perf_counter_ns() - self._head_ns) * 1e-9
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._watch)
            return
        log.error("worker process %d has not answered within %g s and is killed", self.pid, self._answer_s)
        self._child.kill()
        hung = self._sent.popleft()
        self._go_down()
        self._finish(hung.batch, hung.done, NotReady(f"the model did not answer within {self._answer_s:g} seconds"))
        self._give_back(lambda: InstanceLost("the worker process hung on another batch and was killed"))

    def _tell(self) -> None:
        if self.changed is not None:
            self.changed()

    def _go_down(self) -> None:
        if self.healthy:
            self.healthy = False
            self._tell()

    def _ended(self) -> None:
        """The process has ended: what it still said is heard, what it held is handed back, another is started."""
        while self.healthy:
            try:
                data, descriptor = self._child.receive()
            except (OSError, EngineError):
                break
            if not data:
                break
            self._answered(data, descriptor)
        self._unwatch()
        self._stop_timer()
        pid, how = self.pid, self._child.reap()
        lived_s = (perf_counter_ns() - self._ready_ns) * 1e-9 if self.healthy else 0.0
        wait_s = self._backoff.ended(lived_s)
        log.warning(
            "worker process %d %s; it held %d batches; another is started in %g s", pid, how, len(self._sent), wait_s
        )
        self._go_down()
        self._give_back(lambda: InstanceLost(f"the worker process {how}"))
        if not self._closed:
            self._timer = self._loop.call_later(wait_s, self._start)

    def _start(self) -> None:
        self._timer = None
        self.restarts += 1
        try:
            self._adopt(Child(self._settings))
        except OSError as fault:
            log.error("no worker process could be started: %s", fault)
            self._timer = self._loop.call_later(self._backoff.ended(0.0), self._start)
            return
        self._timer = self._loop.call_later(self._settings.start_s, self._too_slow)

    def _started(self, data: bytes) -> None:
        """The first message of a process."""
        self._stop_timer()
        try:
            specs = read_ready(data)
            if specs != self._specs:
                raise EngineError("its inputs and outputs are others than before: load the model again")
        except TautenError as fault:
            log.error("worker process %d does not serve: %s", self.pid, fault, exc_info=fault)
            self._child.kill()
            return
        self._ready_ns = perf_counter_ns()
        self.healthy = True
        log.info("worker process %d is ready", self.pid)
        self._tell()

    def _too_slow(self) -> None:
        self._timer = None
        log.error("worker process %d was not ready within %g s and is killed", self.pid, self._settings.start_s)
        self._child.kill()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _write(slot: _Slot, batch: Batch) -> tuple[list[Place], int | None]:
    """Put the rows of the batch's calls one behind the other into the slot's memory, brought to one length.

    Returns where each input lies, and the descriptor of new memory where the old was too small.
    """
    calls = batch.calls
    first = calls[0]
    buffers: Sequence[Sequence[Buffer]]
    if len(calls) > 1 and (padded := pad(batch)) is not None:
        return _write_padded(slot, padded)
    if len(calls) == 1:
        buffers = [(_as_bytes(buffer),) for buffer in first.buffers]
        places, end = lay_out([(len(parts[0]), shape) for parts, shape in zip(buffers, first.shapes, strict=True)])
    else:
        buffers = [[_as_bytes(call.buffers[index]) for call in calls] for index in range(len(first.buffers))]
        places, end = lay_out(
            [
                (sum(map(len, parts)), (batch.rows, *shape[1:]))
                for parts, shape in zip(buffers, first.shapes, strict=True)
            ]
        )
    memory, grown = _room(slot, end)
    for place, parts in zip(places, buffers, strict=True):
        at = place.offset
        for part in parts:
            memory[at : at + len(part)] = part
            at += len(part)
    return places, grown


def _write_padded(slot: _Slot, padded: Padded) -> tuple[list[Place], int | None]:
    """The same where the calls are of different lengths."""
    pairs = list(zip(padded.shapes, padded.dtypes, strict=True))
    places, end = lay_out([(prod(shape) * dtype.itemsize, shape) for shape, dtype in pairs])
    memory, grown = _room(slot, end)
    for index, ((shape, dtype), place) in enumerate(zip(pairs, places, strict=True)):
        padded.write(index, np.frombuffer(memory, dtype, prod(shape), place.offset).reshape(shape))
    return places, grown


def _room(slot: _Slot, size: int) -> tuple[mmap.mmap, int | None]:
    """The slot's memory for inputs, and the descriptor of new memory where the old was too small."""
    if slot.inputs is not None and len(slot.inputs) >= size:
        return slot.inputs, None
    slot.inputs, grown = make_region(size)
    return slot.inputs, grown


def _as_bytes(buffer: Buffer) -> Buffer:
    if type(buffer) is bytes:
        return buffer
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else b""
