"""The seam of what runs batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from tauten.errors import EngineError
from tauten.run.serve.call import Batch

Done = Callable[["Instance", Batch, Exception | None], None]
"""Told in the event loop, once for each batch: it ran and its calls have their results, or why it did not."""


class InstanceLost(EngineError):
    """What ran the batch is gone, and nothing says that the batch is to blame: it may be run again elsewhere."""


class Instance(ABC):
    """One engine's worth of computing. Belongs to one event loop, whose thread alone calls it."""

    outstanding: int = 0
    """Batches that were handed over and are not done."""

    healthy: bool = True
    """Whether it can take a batch; where that changes by itself, ``changed`` is called."""

    changed: Callable[[], None] | None = None

    @abstractmethod
    def run(self, batch: Batch, done: Done) -> None:
        """Run ``batch``, give its calls their results and times, and call ``done``: before this returns, or later."""

    @abstractmethod
    def close(self) -> None:
        """Take no more. A batch that runs now ends by itself or is given up."""
