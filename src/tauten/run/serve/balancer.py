"""The seam of balancing policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random


class Balancer(ABC):
    """Which of a model's instances runs the next batch.

    ``depth`` is how many batches one instance may hold, the one that runs included: 1 or more. With 1, batches gather
    in the scheduler until an instance is idle; with more, the next lies ready at the instance when it has ended one.
    ``random`` is for policies that draw, seeded by whoever makes them, so that what was picked can be repeated.
    """

    def __init__(self, depth: int, random: Random) -> None:
        self.depth = depth
        self.random = random

    @abstractmethod
    def pick(self, outstanding: Sequence[int | None]) -> int | None:
        """The index of the instance that takes the next batch, or ``None`` where it shall wait.

        ``outstanding`` says of each instance how many batches it holds, and ``None`` where it is down. What is picked
        is up and holds fewer than ``depth``. Where an instance is idle, one is picked; where none may take more,
        ``None`` is the answer. The instances may come and go between two calls.
        """
