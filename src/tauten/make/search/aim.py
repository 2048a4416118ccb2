"""Recipes that aim at a size: those with a pass that is told how many bytes the coded weights may take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from tauten.make.model.pass_ import Pass
from tauten.make.search.recipe import Recipe

AIM: Final = "bytes"
"""The parameter that says so."""
FINEST: Final = "arithmetic"
"""The codec of recipes that aim at a size, where none is asked for: the smallest file."""
_REST: Final = 6000
"""Bytes of a small model's graph, manifest and checksums, where nothing was written yet that would tell."""


def weights_left(limit: int) -> int:
    """What a limit leaves for weights, where nothing was written yet."""
    return max(limit - _REST, limit // 2)


def aimed(recipe: Recipe) -> bool:
    """Whether a pass of it aims at a number of bytes."""
    return aimed_at(recipe) > 0


def aim(recipe: Recipe, weights_bytes: int) -> Recipe:
    """The recipe with its passes aimed at ``weights_bytes``; as it is where none aims."""
    passes: list[Any] = list(recipe.passes)
    for index, step in enumerate(passes):
        if _bytes(step):
            passes[index] = replace(step, **{AIM: weights_bytes})
    return replace(recipe, passes=tuple(passes))


def aimed_at(recipe: Recipe) -> int:
    """The bytes that its passes aim at; 0 where none does."""
    return max((_bytes(step) for step in recipe.passes), default=0)


def _bytes(step: Pass) -> int:
    return int(getattr(step, AIM, None) or 0)
