"""What runs batches: in the event loop, in a thread, in a process of its own."""

from __future__ import annotations

from typing import Final

from tauten.run.engines.engine import Engine
from tauten.run.serve.instance import Instance
from tauten.run.serve.settings import ServeSettings

INLINE_NS: Final = 500_000
"""The longest call with one row that runs in the event loop, which is busy as long: a few hand-overs to a thread."""


def make_instances(engine: Engine, settings: ServeSettings, row_ns: int | None) -> list[Instance]:
    """As many as the settings ask for, in the running event loop.

    ``row_ns`` is what a call with one row takes, ``None`` where nobody has measured it.
    """
    from tauten.run.serve.instances.inline import Inline
    from tauten.run.serve.instances.thread import InThread

    where = settings.run_in
    if where == "auto":
        short = row_ns is not None and row_ns < INLINE_NS
        where = "loop" if settings.instances == 1 and short else "thread"
    if where == "loop":
        return [Inline(engine)]
    return [InThread(engine) for _ in range(settings.instances)]
