"""The seam of search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tauten.core.target import Budget
from tauten.make.search.recipe import Recipe
from tauten.make.search.result import Entry, Improvement


@dataclass(frozen=True)
class Trial:
    """A recipe that is tried to learn from, and is no candidate of the result.

    Its artifact is timed at once, in turn with the one called ``against``: an earlier trial, or the untouched model on
    the same engine (``engine_baseline``).
    """

    recipe: Recipe
    against: str


class Learner(Protocol):
    """What is told of trials. ``left`` is how many more may come, for the progress line."""

    @property
    def left(self) -> int: ...

    def tell(self, recipe: Recipe, entry: Entry | None, gain: Improvement | None = None) -> None:
        """What came of ``recipe``: its entry, or ``None`` where it could not be made.

        Of a trial the entry holds latency too, and ``gain`` is its p50 latency against the one it was timed beside.
        """
        ...


class Strategy(Learner, Protocol):
    """Says which recipe to make next, and learns what it measured. It does no I/O and reads no clock.

    Building one raises ``ConfigError`` where the budget lacks what it needs.
    """

    def __init__(self, recipes: Sequence[Recipe], seed: int, budget: Budget) -> None: ...

    def ask(self) -> Recipe | Trial | None:
        """The next recipe, or ``None`` when there is nothing more to try."""
        ...
