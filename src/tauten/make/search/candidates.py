"""The candidates of a run: what a strategy asks for, some with layers in more bits, some coded to hold a limit."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from tauten.artifact.read import Artifact
from tauten.errors import TautenError
from tauten.make.search.mixed import NOISE, Found, mix, mixes_by_hand, quicken
from tauten.make.search.recipe import Recipe
from tauten.make.search.result import Entry, Mixed, Refused
from tauten.make.search.sizing import ToSize
from tauten.make.search.strategies._strategy import Strategy, Trial
from tauten.make.search.workshop import Workshop


class Search:
    """Gathers candidates by name: ``made``, what was ``refused``, and which keep layers in a higher precision.

    ``max_drop`` is what may be lost, ``names`` are those of the recipes that were given.
    """

    def __init__(self, shop: Workshop, size: ToSize, max_drop: float | None, names: Collection[str]) -> None:
        self.made: dict[str, Artifact] = {}
        self.refused: list[Refused] = []
        self.mixed: dict[str, Mixed] = {}
        self._shop = shop
        self._size = size
        self._max_drop = max_drop
        self._names = names
        self._recipes: dict[str, Recipe] = {}
        self._observer = shop.order.observer

    def through(self, search: Strategy) -> None:
        """Ask ``search`` until it has nothing more to try."""
        while (asked := search.ask()) is not None:
            if isinstance(asked, Trial):
                self._shop.learn(search, asked)
                continue
            entry = self._one(asked, search.left)
            search.tell(asked, entry)
            while entry is not None and (nearer := self._nearer(entry.name)) is not None:
                entry = self._one(nearer, search.left)

    def quicken(self) -> None:
        """Try the candidate that is likely to be chosen with its first convolution in float: that may be faster."""
        smallest = self._smallest()
        if smallest in self._recipes:
            self._keep(quicken(self._shop, self._recipes[smallest]))

    def _one(self, asked: Recipe, left: int) -> Entry | None:
        """Make one candidate; ``None`` where it cannot be made, or need not."""
        if reason := self._size.hopeless(asked, self.made):
            self._refuse(asked, reason)
            return None
        try:
            artifact, reused = self._shop.make(asked, left)
            recipe, artifact, reused = self._size.fit(asked, artifact, reused)
        except TautenError as fault:
            self._refuse(asked, str(fault))
            if NOISE in str(fault):
                self._mix(asked, None, left)
            return None
        entry = self._take(recipe, artifact, reused)
        self._mix(asked, entry, left)
        return entry

    def _nearer(self, name: str) -> Recipe | None:
        """The candidate's recipe aimed anew at the size that is asked for, where that is worth a try."""
        return self._size.again(self._recipes[name], self.made[name], self.made)

    def _refuse(self, asked: Recipe, reason: str) -> None:
        self.refused.append(Refused(name=asked.name, recipe=self._shop.on_way(asked).to_json(), error=reason))
        self._observer.refused(asked.name, reason)

    def _take(self, recipe: Recipe, artifact: Artifact, reused: bool) -> Entry:
        self.made[recipe.name], self._recipes[recipe.name] = artifact, recipe
        entry = self._shop.entry(recipe.name, artifact)
        self._observer.found(entry, reused)
        return entry

    def _mix(self, recipe: Recipe, entry: Entry | None, left: int) -> None:
        """Try the recipe with some layers in a higher precision, where its own breaks the budget."""
        if not mixes_by_hand(recipe, self._names):
            unit: Literal["ms", "bytes"] = "ms" if self._size.limit is None else "bytes"
            self._keep(mix(self._shop, recipe, entry, self._max_drop, left, unit))

    def _keep(self, found: Found | None) -> None:
        """Take a candidate of mixed precision among the others."""
        if found is None:
            return
        artifact, told, reused = found
        try:
            recipe = Recipe.from_json(artifact.manifest.recipe)
            recipe, artifact, reused = self._size.fit(recipe, artifact, reused)
        except TautenError as fault:
            self._observer.refused(artifact.path.name, str(fault))
            return
        self.mixed[recipe.name] = told
        self._take(recipe, artifact, reused)

    def _smallest(self) -> str:
        """The name of the smallest candidate that loses no more than it may."""
        sizes = {}
        for name, artifact in self.made.items():
            lost, size = (artifact.manifest.measures.get(key) for key in ("drop_points", "size_bytes"))
            if lost and size and (self._max_drop is None or lost.value <= self._max_drop):
                sizes[name] = size.value
        return min(sizes, key=lambda name: sizes[name]) if sizes else ""
