"""What runs batches: in the event loop, in a thread, in a process of its own."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Final

from tauten.run.engines.engine import Engine
from tauten.run.serve.instance import Instance
from tauten.run.serve.settings import ServeSettings

INLINE_NS: Final = 500_000
"""The longest call with one row that runs in the event loop, which is busy as long: a few hand-overs to a thread."""


class BringsInstances(Engine):
    """An engine that computes elsewhere, through instances of its own."""

    @abstractmethod
    def instances(self, answer_s: float) -> list[Instance]:
        """The instances, in the running event loop; each has ``answer_s`` seconds for a batch."""


def make_instances(
    engine: Engine, settings: ServeSettings, row_ns: int | None = None, threads: int = 1
) -> list[Instance]:
    """As many as the settings ask for, or as there are cores for; in the running event loop.

    ``row_ns`` is what a call with one row takes, ``None`` where nobody has measured it, ``threads`` what one instance
    computes with.
    """
    from tauten.run.serve.instances.inline import Inline
    from tauten.run.serve.instances.thread import InThread

    if isinstance(engine, BringsInstances):
        return engine.instances(settings.answer_s)
    where = settings.run_in
    if where == "auto":
        short = row_ns is not None and row_ns < INLINE_NS
        where = "loop" if short and settings.instances in (None, 1) else "thread"
    if where == "loop":
        return [Inline(engine)]
    return [InThread(engine) for _ in range(settings.instances or max(1, cores() // settings.fronts // threads))]


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
