"""Cuts by measured latency, in place of the ratios that recipes name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tauten.core.target import Budget
from tauten.errors import ConfigError
from tauten.make.model.model import QUANTIZED
from tauten.make.search.adaptation import CUT, Adaptation
from tauten.make.search.aim import aimed
from tauten.make.search.recipe import Recipe
from tauten.make.search.result import Entry, Improvement
from tauten.make.search.strategies._strategy import Trial

__all__ = ["Adapt"]


class Adapt:
    """Each way that the recipes go on after ``prune.structured`` gets one cut, adapted to the latency of the budget.

    Recipes without that pass are asked for as they are, and so are those that aim at a size, or train eight or four
    bits, which no short trial shows. Trials run the passes that follow the cut and do not train; the
    recipe that is asked for at the end runs all of them. ``ConfigError`` where the budget has no ``max_latency_ms``.
    """

    def __init__(self, recipes: Sequence[Recipe], seed: int, budget: Budget) -> None:
        if budget.max_latency_ms is None:
            raise ConfigError("strategy adapt: expected a budget with max_latency_ms (--max-latency-ms)")
        self._plain = [recipe for recipe in recipes if not _adaptable(recipe)]
        self._ways: list[tuple[Recipe, int, Adaptation]] = []
        seen = set()
        for recipe in filter(_adaptable, recipes):
            at = next(index for index, step in enumerate(recipe.passes) if step.name == CUT)
            rest = (*recipe.passes[:at], *recipe.passes[at + 1 :])
            if rest in seen:
                continue
            seen.add(rest)
            name = "int8" if any(QUANTIZED in step.gives for step in rest) else "fp32"
            name += f"-{len(seen)}" if any(way.name == f"adapted-{name}" for way, _, _ in self._ways) else ""
            between = [step for step in recipe.passes[at + 1 :] if not step.trains]
            found = Adaptation(budget.max_latency_ms, between, recipe.lowering, name=f"adapt-{name}")
            self._ways.append((replace(recipe, name=f"adapted-{name}"), at, found))
        if not self._ways:
            raise ConfigError(f"strategy adapt: expected a recipe with {CUT}, got none")

    @property
    def left(self) -> int:
        return len(self._plain) + sum(1 + adaptation.left for _, _, adaptation in self._ways)

    def ask(self) -> Recipe | Trial | None:
        if self._plain:
            return self._plain.pop(0)
        while self._ways:
            recipe, at, adaptation = self._ways[0]
            trial = adaptation.ask()
            if trial is not None:
                return trial
            del self._ways[0]
            if adaptation.cut is not None:
                passes = (*recipe.passes[:at], adaptation.cut, *recipe.passes[at + 1 :])
                return replace(recipe, passes=passes)
        return None

    def tell(self, recipe: Recipe, entry: Entry | None, gain: Improvement | None = None) -> None:
        """Of a trial, what it measured; of other recipes there is nothing to learn."""
        if self._ways and self._ways[0][2].awaits(recipe):
            self._ways[0][2].tell(recipe, entry, gain)


def _adaptable(recipe: Recipe) -> bool:
    """Whether the recipe cuts channels, aims at no size, and its precision needs no training."""
    learns = any(step.trains and QUANTIZED in step.gives for step in recipe.passes)
    return not learns and not aimed(recipe) and any(step.name == CUT for step in recipe.passes)
