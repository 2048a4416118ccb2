"""Runs batches in a thread of its own: an engine releases the interpreter while it computes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection
from queue import SimpleQueue
from threading import Thread

from tauten.run.engines.engine import Engine
from tauten.run.serve.call import Batch
from tauten.run.serve.instance import Done, Instance
from tauten.run.serve.instances.inline import compute

log = logging.getLogger("tauten.serve")


class InThread(Instance):
    """One thread that takes batches in turn; on ``cores`` alone where some are named and the system can do that."""

    def __init__(self, engine: Engine, cores: Collection[int] = ()) -> None:
        self._engine = engine
        self._cores = cores
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[Batch, Done] | None] = SimpleQueue()
        # A daemon, so that an engine that never comes back cannot keep the process from ending.
        self._thread = Thread(target=self._work, name="tauten-engine", daemon=True)
        self._thread.start()

    def run(self, batch: Batch, done: Done) -> None:
        self.outstanding += 1
        self._queue.put((batch, done))

    def close(self) -> None:
        self._queue.put(None)

    def _work(self) -> None:
        """In the thread."""
        if self._cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._cores)
        while (item := self._queue.get()) is not None:
            batch, done = item
            fault = compute(self._engine, batch)
            try:
                self._loop.call_soon_threadsafe(self._tell, batch, done, fault)
            except RuntimeError:
                log.warning("an engine call ended after the server had stopped")
            del item, batch, done  # the thread waits for the next one and would keep this one alive

    def _tell(self, batch: Batch, done: Done, fault: Exception | None) -> None:
        self.outstanding -= 1
        done(self, batch, fault)
