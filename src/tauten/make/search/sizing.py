"""To a size: what is over a limit of bytes is coded, and recipes aim at the bytes that are left for weights.

A codec changes no bit of what the weights decode to, so that a coded candidate answers as the plain one did, and only
its size, its load time and its memory are measured anew. Recipes with a pass that is told a number of bytes are aimed:
at the limit less all that is no weights, and once more by what the written file missed it by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Final

from tauten.artifact.manifest import MANIFEST
from tauten.artifact.read import Artifact
from tauten.artifact.recode import PLAIN
from tauten.codecs import CODECS
from tauten.core.target import AUTO, Target
from tauten.make.search.aim import aim, aimed, aimed_at
from tauten.make.search.recipe import Recipe
from tauten.make.search.slim import KEPT, MEASURE_BYTES
from tauten.make.search.workshop import Workshop

CODECS_IN_TURN: Final = ("zstd", "huffman", "arithmetic")
"""From the fastest to load to the smallest file."""
_RECORD_BYTES: Final = 280
"""A record of a pass in the history, without notes."""
_SAVES: Final = 0.5
"""Of what the first codec in turn leaves, the others leave at least this share."""
_NEAR: Final = 0.97
"""From this share of the limit on, a file is as large as it may be."""
_DENSE: Final = 0.85
"""What the first codec in turn leaves of float weights that are all different, at least."""
_LEFT: Final = {32: 0.75, 16: 0.7, 8: 0.5, 4: 0.5}
"""Of weights of so many bits, that were not made to be coded, coding leaves at least this share."""


def rest_bytes(artifact: Artifact, recipe: Recipe) -> int:
    """The bytes of an artifact of ``recipe`` that are no weights, when its graph is like that of ``artifact``.

    Told from what does not vary between two runs, so that both aim at the same.
    """
    history = _RECORD_BYTES * (len(recipe.passes) + 1)
    bare = artifact.manifest.model_copy(update={"history": (), "measures": {}, "recipe": recipe.to_json()})
    page = len(json.dumps(bare.to_json(), separators=(",", ":")))
    names = (*artifact.manifest.graphs, artifact.manifest.weights, MANIFEST)
    # Each line of the checksums: 64 digits, two blanks, the name, a line feed.
    sums = sum(67 + len(name) for name in names)
    graphs = sum(artifact.manifest.files[name] for name in artifact.manifest.graphs)
    return graphs + page + history + sums + MEASURE_BYTES * len(KEPT)


class ToSize:
    """What a limit of bytes asks of a run.

    ``limit`` is of all files of an artifact; without one nothing is coded here. ``codec`` is ``auto`` for whatever the
    limit asks for, else the one that the recipes are made with. ``free`` says that the recipes are a level's, which may
    be aimed and left out; others are the user's.
    """

    def __init__(self, shop: Workshop, limit: int | None, codec: str = AUTO, *, free: bool = True) -> None:
        self.limit = limit
        self._shop = shop
        self._codec = codec
        self._free = free
        self._tries: dict[str, list[int]] = {}

    @cached_property
    def _weights(self) -> float:
        """How many weights the untouched model has; fewer where it is sparse, or of few values, from the beginning."""
        weights = self._shop.engine_baseline.weights()
        held = sum(array.nbytes for array in weights.values())
        coded = len(CODECS.get(CODECS_IN_TURN[0]).encode(weights))
        return held / 4 * min(1.0, coded / (_DENSE * max(held, 1)))

    def aim(self, recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
        """The recipes, a level's aimed at what the limit leaves; without these where the untouched model fits it."""
        if self.limit is None or not self._free:
            return tuple(recipes)
        floats = self._shop.engine_baseline
        if self.expected(floats) <= self.limit:
            return tuple(recipe for recipe in recipes if not aimed(recipe))
        lefts = [self.limit - rest_bytes(floats, recipe) for recipe in recipes]
        return tuple(
            aim(recipe, left) for recipe, left in zip(recipes, lefts, strict=True) if left > 0 or not aimed(recipe)
        )

    def explain(self) -> str:
        """What a limit that nothing holds is up against; empty where it is not that."""
        rest = rest_bytes(self._shop.engine_baseline, Recipe("rest"))
        if self.limit is None or self.limit > 2 * rest:
            return ""
        return f" Graph, manifest and checksums alone take about {rest:,} bytes."

    def again(self, recipe: Recipe, artifact: Artifact, made: Mapping[str, Artifact]) -> Recipe | None:
        """The recipe aimed anew, where its file missed the limit or left some of it; ``None`` for no more tries.

        What fits is aimed anew where it lost something, and yet less than all others of ``made`` that fit. A recipe
        that trains is aimed anew once, another twice where the file is still too large.
        """
        if self.limit is None or not self._free or not aimed(recipe):
            return None
        tried = self._tries.setdefault(_base(recipe), [])
        tried.append(aimed_at(recipe))
        size = self.expected(artifact)
        if len(tried) > (1 if recipe.trains or size <= self.limit else 2):
            return None
        if size <= self.limit and (size >= _NEAR * self.limit or not self._leads(artifact, made)):
            return None
        bytes_ = round(0.99 * (tried[-1] + self.limit - size))
        if bytes_ <= 0 or any(abs(bytes_ - earlier) <= 0.01 * earlier for earlier in tried):
            return None
        return replace(aim(recipe, bytes_), name=f"{_base(recipe)}-{len(tried) + 1}")

    def _leads(self, artifact: Artifact, made: Mapping[str, Artifact]) -> bool:
        """Whether it lost something, and none of the others that hold the limit lost less."""
        lost = _lost(artifact)
        return lost > 0 and all(
            _lost(other) >= lost for other in made.values() if self.limit is None or self.expected(other) <= self.limit
        )

    def expected(self, artifact: Artifact) -> int:
        """What an artifact will weigh when all measures are in its manifest."""
        manifest = artifact.manifest
        keys = set(KEPT) if manifest.codec != PLAIN else _keys(manifest.target)
        return artifact.size_bytes + MEASURE_BYTES * len(keys - set(manifest.measures))

    def fit(self, recipe: Recipe, artifact: Artifact, reused: bool) -> tuple[Recipe, Artifact, bool]:
        """The artifact as it is where it holds the limit, else coded: by the first codec in turn with which it does.

        Where none does, it is the smallest of them. The recipe is that of what comes back, and so is whether an
        earlier run had made it.
        """
        best = recipe, artifact, reused
        if self.limit is None or self._codec != AUTO or recipe.codec != PLAIN or self.expected(artifact) <= self.limit:
            return best
        for codec in CODECS_IN_TURN:
            self._shop.order.observer.step(f"code the weights by {codec}", 0.95)
            coded, made, earlier = self._shop.code(recipe, artifact, codec)
            if made.size_bytes < best[1].size_bytes:
                best = coded, made, reused and earlier
            if self.expected(made) <= self.limit:
                return coded, made, reused and earlier
            if self.expected(made) * _SAVES > self.limit:
                break
        return best

    def hopeless(self, recipe: Recipe, made: Mapping[str, Artifact]) -> str:
        """Why the recipe need not be tried: it would be over the limit, and larger than what there is; else nothing.

        Told from how many weights it leaves and in how many bits, as far as that is known before it is made.
        """
        if self.limit is None or not self._free or not made:
            return ""
        least = _least_bytes(recipe, self._weights)
        if least <= max(self.limit, min(artifact.size_bytes for artifact in made.values())):
            return ""
        return f"its weights would take about {least:,.0f} bytes however they are coded, and {self.limit:,} are allowed"


def _lost(artifact: Artifact) -> float:
    return artifact.manifest.measures["drop_points"].value


def _base(recipe: Recipe) -> str:
    """The name without the number of the try."""
    name, _, number = recipe.name.rpartition("-")
    return name if number.isdecimal() else recipe.name


def _keys(target: Target) -> set[str]:
    """All measures that a manifest ends up with."""
    latencies = {f"latency_{what}_ms" for what in ("mean", "p50", "p95", "p99")}
    batches = [batch for batch in (1, 8, 16, 32) if batch <= target.batch] or [1]
    return {*KEPT, *latencies, "startup_ms", *(f"throughput_per_s.{batch}" for batch in batches)}


def _least_bytes(recipe: Recipe, weights: float) -> float:
    """Fewer bytes than the coded weights of ``recipe`` will take; 0 where that cannot be told.

    ``weights`` are those of the untouched model. A cut of channels on both sides of a layer leaves the square.
    """
    bits = 32
    for step in recipe.passes:
        ratio = float(getattr(step, "ratio", 0) or 0)
        if step.name == "prune.structured":
            weights *= (1 - ratio) ** 2
        elif step.name == "prune.magnitude":
            weights *= 1 - ratio
        elif step.name.startswith("quantize."):
            bits = int(getattr(step, "bits", 8))
        elif step.name != "distill.recover":
            return 0.0
    return weights * bits / 8 * _LEFT[bits]
