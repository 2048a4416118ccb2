"""How hard to try: a level is a list of recipes.

``low`` trains nothing: what it cuts is repaired on calibration data. ``medium`` adds deeper cuts with recovery, and
weights in four bits that are trained. ``high`` adds longer training, more cuts, zeros, and exits for samples that are
easy.
A level is printed by ``tauten optimize --dry-run`` and can be given back as a file.

Where the bytes are limited, a level begins with recipes that aim at what the limit leaves for weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tauten.artifact.recode import PLAIN
from tauten.codecs import CODECS
from tauten.core.target import AUTO
from tauten.errors import ConfigError, RecipeError
from tauten.make.model.pass_ import Pass
from tauten.make.search.aim import FINEST
from tauten.make.search.recipe import Recipe, pass_from_json

LEVELS = ("low", "medium", "high")
BASELINE = "baseline"
ENGINE_BASELINE = "engine_baseline"
"""The names of the untouched model's artifacts, which no recipe may have."""
RACE = "race-"
"""What the names of the untouched model's artifacts begin with where engines are measured."""
MAX_FILE_BYTES = 2**20


def find_level(
    level: str | Iterable[Recipe], lowering: str = "onnx", *, codec: str = AUTO, weights_bytes: int | None = None
) -> tuple[Recipe, ...]:
    """The recipes of a level by name, of a JSON file, or those given.

    ``lowering`` is that of a level's recipes, and of those of a file that name none. ``codec``, where it is not
    ``auto``, is that of all recipes that have none of their own. ``weights_bytes`` is what coded weights may take: with
    it a level by name begins with recipes that aim at so many, but not where the codec is ``plain``.

    Raises ``RecipeError`` for an unknown level, a file that is no recipe list, or two recipes of one name.
    """
    if not isinstance(level, str):
        recipes = tuple(level)
    elif level in LEVELS:
        recipes = tuple(_named(level, lowering))
        if weights_bytes is not None and codec != PLAIN:
            recipes = (*_to_size(level, lowering, weights_bytes, FINEST if codec == AUTO else codec), *recipes)
    elif level.endswith(".json"):
        recipes = _read(Path(level), lowering)
    else:
        raise RecipeError(f"no level named {level!r}: use one of {', '.join(LEVELS)}, or a .json file of recipes")
    if codec != AUTO:
        recipes = tuple(replace(recipe, codec=codec) if recipe.codec == PLAIN else recipe for recipe in recipes)
    names = [recipe.name for recipe in recipes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise RecipeError(f"expected recipes of different names, got {twice or 'none'}")
    taken = sorted(name for name in names if name == BASELINE or name.startswith((ENGINE_BASELINE, RACE)))
    if taken:
        raise RecipeError(f"{taken}: the untouched model has this name; give the recipe another")
    return recipes


def check_codec(codec: str) -> None:
    """``ConfigError`` where ``codec`` is neither ``auto`` nor one that there is."""
    if codec not in (AUTO, *CODECS.names()):
        raise ConfigError(f"codec: expected one of {', '.join((AUTO, *CODECS.names()))}, got {codec!r}")


def _read(path: Path, lowering: str) -> tuple[Recipe, ...]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RecipeError(f"{path}: expected at most {MAX_FILE_BYTES} bytes of recipes")
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise RecipeError(f"{path}: expected a JSON list of recipes: {fault}") from None
    if not isinstance(document, list):
        raise RecipeError(f"{path}: expected a JSON list of recipes, got {type(document).__name__}")
    named = [{"lowering": lowering, **recipe} if isinstance(recipe, dict) else recipe for recipe in document]
    return tuple(Recipe.from_json(recipe) for recipe in named)


def _named(level: str, lowering: str) -> Iterable[Recipe]:
    static, dynamic = _step("quantize.post_training"), _step("quantize.dynamic")
    yield Recipe("fp32", (), lowering)
    yield Recipe("int8", (static,), lowering)
    yield Recipe("int8-dynamic", (dynamic,), lowering)
    # Small files of models whose activations eight bits would break.
    yield Recipe("int8-weights", (_step("quantize.weight_only", bits=8, rounding="nearest"),), lowering)
    for ratio in (0.3, 0.5):
        yield Recipe(f"cut-{ratio:g}-int8", (_step("prune.structured", ratio=ratio), static), lowering)
    if level == "low":
        return
    epochs, steps = {"medium": (3, 500), "high": (15, 2500)}[level]
    ratios = {"medium": (0.5, 0.7, 0.85), "high": (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)}[level]
    recover = _step("distill.recover", epochs=epochs, steps=steps)
    aware = _step("quantize.quantization_aware", bits=4, epochs=epochs)
    yield Recipe("float16-weights", (_step("quantize.weight_only", bits=16, rounding="nearest"),), lowering)
    yield Recipe("int4-aware", (aware,), lowering)
    # Not repaired: after so many steps a good start shows no more.
    for ratio in ratios:
        cut = _step("prune.structured", ratio=ratio, repair="none")
        name = f"structured-{ratio:g}"
        # In float too: on small layers int8 can be slower, and only a measurement tells.
        yield Recipe(f"{name}-fp32", (cut, recover), lowering)
        yield Recipe(f"{name}-int8", (cut, recover, static), lowering)
    if level == "high":
        sparse = _step("prune.magnitude", ratio=0.8)
        yield Recipe("magnitude-0.8-int8", (sparse, recover, static), lowering)
        yield Recipe("int4", (_step("quantize.post_training", bits=4, rounding="gptq"),), lowering)
        half = _step("prune.structured", ratio=0.5, repair="none")
        yield Recipe("structured-0.5-int4-aware", (half, recover, aware), lowering)
        cut, leave = _step("prune.structured", ratio=0.5, repair="none"), _step("dynamic.early_exit")
        yield Recipe("early-exit-0.5-int8", (cut, recover, leave, static), lowering)


def _to_size(level: str, lowering: str, weights_bytes: int, codec: str) -> Iterable[Recipe]:
    """Recipes of the level whose coded weights come to about ``weights_bytes``."""

    def sized(name: str, *passes: Pass) -> Recipe:
        return Recipe(f"sized-{name}", passes, lowering, codec=codec)

    if level != "low":
        epochs, steps = {"medium": (10, 1500), "high": (30, 6000)}[level]
        trained = _step("compress.rate", bytes=weights_bytes, epochs=epochs, steps=steps)
        yield sized("trained", trained)
        if level == "high":
            recover = _step("distill.recover", epochs=5, steps=1000)
            yield sized("cut-0.5-trained", _step("prune.structured", ratio=0.5, repair="none"), recover, trained)
    rounded = _step("compress.rate_distortion", bytes=weights_bytes)
    yield sized("rounded", rounded)
    yield sized("shared", _step("compress.share", bytes=weights_bytes))
    yield sized("cut-0.5-rounded", _step("prune.structured", ratio=0.5), rounded)
    yield sized("low-rank-rounded", _step("compress.low_rank", ratio=0.5), rounded)
    yield Recipe("int4-weights", (_step("quantize.weight_only", bits=4, rounding="nearest"),), lowering)


def _step(name: str, **parameters: float | int | str) -> Pass:
    return pass_from_json({"pass": name, **parameters})
