"""Every recipe of the list, in its order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tauten.core.target import Budget
from tauten.make.search.recipe import Recipe
from tauten.make.search.result import Entry, Improvement

__all__ = ["Listed"]


class Listed:
    """Asks for each recipe once; what is measured changes nothing."""

    def __init__(self, recipes: Sequence[Recipe], seed: int, budget: Budget) -> None:
        self._waiting = deque(recipes)

    @property
    def left(self) -> int:
        return len(self._waiting)

    def ask(self) -> Recipe | None:
        return self._waiting.popleft() if self._waiting else None

    def tell(self, recipe: Recipe, entry: Entry | None, gain: Improvement | None = None) -> None:
        """Nothing to learn."""
