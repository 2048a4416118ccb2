"""How ONNX Runtime's threads are set for a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from tauten.core.target import Target
from tauten.run.engines._threads import NONE_WAITS, find_cores


@dataclass(frozen=True)
class Threads:
    """What holds: threads in an operation and beside each other, cores that are bound to, and what could not be done.

    Both numbers count the calling thread, which ONNX Runtime works in but never binds.
    """

    intra: int
    inter: int
    cores: tuple[int, ...]
    spinning: bool
    fallbacks: tuple[str, ...]

    @classmethod
    def settle(cls, target: Target, threads: int) -> Self:
        """What can be done of what ``target`` wishes, with ``threads`` in an operation."""
        fallbacks = []
        inter = target.inter_op
        if inter > 1 and target.device != "cpu":
            inter = 1
            fallbacks.append(f"inter_op: operations on {target.device} are started one after the other")
        cores: tuple[int, ...] = ()
        if target.affinity and threads == 1:
            fallbacks.append("affinity: with one thread there is none to bind; the calling thread stays as it is")
        elif target.affinity:
            cores = find_cores(target.affinity)
            lost = [core for core in target.affinity if core not in cores]
            if lost:
                fallbacks.append(f"affinity: this process cannot bind threads to cores {lost[:8]}")
            if cores:
                others = " and those of inter_op stay as they are" if inter > 1 else " stays as it is"
                fallbacks.append(f"affinity: the calling thread{others}")
        if target.spinning and threads == inter == 1:
            fallbacks.append(NONE_WAITS)
        spinning = target.spinning and (threads > 1 or inter > 1)
        return cls(threads, inter, cores, spinning, tuple(fallbacks))

    @property
    def affinities(self) -> str:
        """The cores as a session's options take them; empty where threads are not bound.

        An entry for each thread beside the calling one, and cores counted from one. Every thread may use each of the
        cores: bound to one each, the threads of instances beside each other would meet on the first.
        """
        entry = ",".join(str(core + 1) for core in self.cores)
        return ";".join([entry] * (self.intra - 1)) if entry else ""

    def describe(self) -> dict[str, Any]:
        """The part of an engine's description that tells of threads."""
        return {
            "threads": self.intra,
            "inter_op": self.inter,
            "affinity": list(self.cores),
            "spinning": self.spinning,
            **({"fallbacks": list(self.fallbacks)} if self.fallbacks else {}),
        }
