"""The seam of answers that lie elsewhere, shared between servers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

Fetched = Callable[[Sequence[bytes | None]], None]
"""Told once, in the event loop: what lies under each key, ``None`` where nothing does."""


class Remote(ABC):
    """Bytes by key, kept by somebody else: slow, absent or wrong at any time. Belongs to one event loop.

    It is a help and never a need: where it does not answer soon it answers that nothing is there. What comes from it
    is held against its key and its tag by the one who asked (``Frames``).
    """

    @abstractmethod
    def fetch(self, keys: Sequence[bytes], done: Fetched) -> None:
        """Call ``done`` with what lies under ``keys``: before this returns, or soon."""

    @abstractmethod
    def keep(self, key: bytes, frame: bytes) -> None:
        """Put ``frame`` under ``key``, some time, or not."""

    async def open(self) -> None:
        """Connect. Raises nothing where that fails."""

    async def close(self) -> None:
        """Let go of connections."""
