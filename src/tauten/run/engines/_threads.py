"""What a target wishes of an engine's threads and the engine cannot do, told as it describes itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Final

from tauten.core.target import Target

UNBOUND: Final = "PyTorch binds its threads to no cores; OMP_PLACES and OMP_PROC_BIND do, before the process starts"
OPENMP: Final = "PyTorch's threads are OpenMP's, which waits as OMP_WAIT_POLICY says when the process starts"


def unmet(target: Target, threads: int, *, affinity: str, spinning: str) -> list[str]:
    """A line for each wish of ``target`` that an engine does not meet which runs one operation after the other.

    For one that neither binds its ``threads`` nor says how they wait; ``affinity`` and ``spinning`` give the reasons.
    """
    found = []
    if target.inter_op > 1:
        found.append("inter_op: operations run one after the other")
    if target.affinity:
        found.append(f"affinity: {affinity}")
    if threads > 1:
        found.append(f"spinning: {spinning}")
    elif target.spinning:
        found.append(NONE_WAITS)
    return found


NONE_WAITS: Final = "spinning: with one thread there is none that waits for work"


def find_cores(cores: Sequence[int]) -> tuple[int, ...]:
    """Those of ``cores`` that a thread of this process may be bound to; none where the system binds no threads.

    Tried in a thread of its own: what the calling thread is bound to says nothing of what others may be.
    """
    found: list[int] = []

    def bind() -> None:
        for core in cores:
            try:
                os.sched_setaffinity(0, {core})
            except OSError:
                continue
            found.append(core)

    if hasattr(os, "sched_setaffinity"):
        trial = threading.Thread(target=bind)
        trial.start()
        trial.join()
    return tuple(found)
