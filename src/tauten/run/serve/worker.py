"""What drives an engine: it owns the threads, the queue, the timeouts and the errors of one model."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter_ns

from tauten.core.tensor import Arrays
from tauten.errors import NotReady, Overloaded
from tauten.run.engines.engine import Engine

log = logging.getLogger("tauten.serve")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outputs by name, how long the request waited for a thread and how long the engine ran."""

    outputs: Arrays
    queue_ns: int
    infer_ns: int


class _Job:
    __slots__ = ("future", "inputs", "queued_ns", "started")

    def __init__(self, inputs: Arrays, future: asyncio.Future[Outcome]) -> None:
        self.inputs = inputs
        self.future = future
        self.queued_ns = perf_counter_ns()
        self.started = False


class Worker:
    """Runs ``instances`` calls of ``engine`` at once and lets ``queue`` more wait. Belongs to one event loop."""

    def __init__(self, engine: Engine, *, instances: int, queue: int, answer_s: float) -> None:
        self.instances = instances
        self._engine = engine
        self._places = instances + queue
        self._answer_s = answer_s
        self._taken = 0
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(instances, thread_name_prefix="tauten-engine")

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread."""
        return max(0, self._taken - self.instances)

    async def run(self, inputs: Arrays) -> Outcome:
        """Run ``inputs`` through the engine.

        Raises ``InputError`` and ``EngineError`` as the engine does, ``Overloaded`` where the queue is full or the
        wait in it was too long, ``NotReady`` where the worker is closed or the engine does not answer in time.
        """
        if self._closed:
            raise NotReady("the model is being unloaded")
        if self._taken >= self._places:
            raise Overloaded(f"the queue is full: {self._taken} requests are under way, try again later")
        job = _Job(inputs, self._loop.create_future())
        # A place is given back by the thread that took the job up, also where nobody waits for it any more.
        self._threads.submit(self._compute, job)
        self._taken += 1
        timer = self._loop.call_later(self._answer_s, self._expire, job)
        try:
            return await job.future
        finally:
            timer.cancel()

    def close(self) -> None:
        """Take no more; drop what waits. A call that runs now ends by itself, nobody can stop it."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _compute(self, job: _Job) -> None:
        """In a thread of the pool."""
        result: Outcome | Exception | None = None
        if not job.future.done():
            job.started = True
            started_ns = perf_counter_ns()
            try:
                outputs = self._engine(job.inputs)
                result = Outcome(outputs, started_ns - job.queued_ns, perf_counter_ns() - started_ns)
            except Exception as fault:  # noqa: BLE001 - handed to the one that awaits the job
                result = fault
        try:
            self._loop.call_soon_threadsafe(self._settle, job, result)
        except RuntimeError:
            log.warning("an engine call ended after the server had stopped")

    def _settle(self, job: _Job, result: Outcome | Exception | None) -> None:
        self._taken -= 1
        if job.future.done():
            return
        if isinstance(result, Exception):
            job.future.set_exception(result)
        elif result is not None:
            job.future.set_result(result)

    def _expire(self, job: _Job) -> None:
        if job.future.done():
            return
        if job.started:
            log.error("the engine has not answered within %g s", self._answer_s)
            job.future.set_exception(NotReady(f"the model did not answer within {self._answer_s:g} seconds"))
        else:
            job.future.set_exception(Overloaded(f"waited {self._answer_s:g} seconds in the queue, try again later"))
