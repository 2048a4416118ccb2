"""Who is told how a run goes."""

from __future__ import annotations

from typing import Protocol

from tauten.make.search.result import Entry


class Observer(Protocol):
    """Told of a run as it goes; a progress display implements this."""

    def stage(self, text: str, left: int = 0) -> None:
        """A new piece of work begins; ``left`` like it come after it."""
        ...

    def step(self, text: str, share: float) -> None:
        """Inside that piece: what is being done, and which share of it (0 to 1) is done."""
        ...

    def found(self, entry: Entry, reused: bool) -> None:
        """A candidate is finished, or was found finished from an earlier run."""
        ...

    def refused(self, name: str, reason: str) -> None:
        """A recipe could not be made."""
        ...


class Silent:
    """Tells nobody."""

    def stage(self, text: str, left: int = 0) -> None: ...

    def step(self, text: str, share: float) -> None: ...

    def found(self, entry: Entry, reused: bool) -> None: ...

    def refused(self, name: str, reason: str) -> None: ...
