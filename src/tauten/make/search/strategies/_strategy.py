"""The seam of search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tauten.make.search.recipe import Recipe
from tauten.make.search.result import Entry


class Strategy(Protocol):
    """Says which recipe to make next, and learns what it measured. It does no I/O and reads no clock.

    ``left`` is how many it means to ask for still, for the progress line.
    """

    def __init__(self, recipes: Sequence[Recipe], seed: int) -> None: ...

    @property
    def left(self) -> int: ...

    def ask(self) -> Recipe | None:
        """The next recipe, or ``None`` when there is nothing more to try."""
        ...

    def tell(self, recipe: Recipe, entry: Entry | None) -> None:
        """What came of ``recipe``: its entry, or ``None`` where it could not be made."""
        ...
