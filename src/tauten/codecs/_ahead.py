"""Work on several tensors at once, in their order, and never far ahead of the one that is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(work: Callable[[T], R], jobs: Iterable[T], threads: int) -> Iterator[R]:
    """``work`` of each job, in order, on so many threads; at most one result more than those waits to be taken.

    Coders let other threads run while they are in compiled code, which is nearly always.
    """
    if threads < 2:
        yield from map(work, jobs)
        return
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[R]] = deque()
        for job in jobs:
            begun.append(pool.submit(work, job))
            if len(begun) > threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
