"""Mixed precision: which layers stay in a higher one, because quality asks for it or because they are faster so.

For quality the layers are sorted by what the outputs lose when one layer alone is quantized. How many of the first stay
in a higher precision is then found on written artifacts: as few as hold the budget (in the manner of HAWQ; Dong et al.,
2019, with measured noise in place of second derivatives, and a measured drop in place of a sum over layers).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from torch import nn

from tauten.artifact.read import Artifact
from tauten.errors import TautenError
from tauten.make.model.model import QUANTIZED
from tauten.make.search.recipe import Recipe
from tauten.make.search.result import Entry, KeptLayer, Mixed, MixedTrial
from tauten.make.search.strategies._strategy import Trial
from tauten.make.search.workshop import Workshop

TRIALS: Final = 5
"""Artifacts at most on the way to one mixed precision."""
_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NOISE: Final = "lost in noise"
"""What a lowering says of answers of which nothing is left, in the error that it refuses them with."""
Found = tuple[Artifact, Mixed, bool]
"""The artifact, what is told of it, and whether an earlier run had made it."""


@dataclass
class Bisection:
    """The least number above 0 and below ``count`` that holds; 0 does not. Numbers are halved on a logarithmic scale.

    Few layers cost most of the quality as a rule, so that small numbers are looked at more closely than large ones.
    """

    count: int
    trials: int = TRIALS
    fails: int = 0
    holds: int | None = None
    asked: list[int] = field(default_factory=list)

    def ask(self) -> int | None:
        """The next number to try, or ``None``."""
        end = self.count if self.holds is None else self.holds
        if end - self.fails <= 1 or len(self.asked) >= self.trials:
            return None
        last = len(self.asked) + 1 == self.trials and self.holds is None
        middle = round(math.sqrt(max(self.fails, 1) * end))
        self.asked.append(end - 1 if last else min(max(middle, self.fails + 1), end - 1))
        return self.asked[-1]

    def tell(self, number: int, holds: bool) -> None:
        """What came of it."""
        if holds:
            self.holds = number
        else:
            self.fails = number


def mixes_by_hand(recipe: Recipe, names: Collection[str]) -> bool:
    """Whether one of ``names`` is what a mixture of ``recipe`` would be called: the user has made one."""
    return any(name.startswith(f"{recipe.name}-mixed") for name in names)


def mix(shop: Workshop, recipe: Recipe, entry: Entry | None, max_drop: float | None, left: int = 0) -> Found | None:
    """``recipe`` with as few layers as possible in a higher precision so that it loses no more than ``max_drop``.

    ``None`` where it holds that already, where the float model does not hold it either, where the pass that quantizes
    trains or cannot leave layers out, or where no mixture holds it. Layers of a 4-bit recipe stay in eight bits, others
    in float. The one that is found has the name ``NAME-mixed-K`` with K layers kept. ``entry`` is what came of the
    recipe itself; ``None`` where nothing was left of the answers.
    """
    at = _place(recipe)
    drop = entry.drop_points if entry else None
    if at is None or max_drop is None or (drop is not None and drop.value <= max_drop):
        return None
    step: Any = recipe.passes[at]
    precision = "int8" if getattr(step, "bits", 8) == 4 else "float32"
    try:
        # What the other passes lost, no layer's precision brings back.
        rest = replace(recipe, name=f"{recipe.name}-float", passes=recipe.passes[:at] + recipe.passes[at + 1 :])
        if _lost(shop.make(rest, left)[0]) > max_drop:
            return None
        shop.order.observer.stage(f"look for the layers that cost {recipe.name} most", left)
        noise = shop.builder.sensitivity(recipe, at)
    except TautenError as fault:
        shop.order.observer.refused(f"{recipe.name}-mixed", str(fault))
        return None
    kept = dict(step.layers)
    order = sorted((path for path in noise if path not in kept), key=lambda path: (-noise[path], path))
    search = Bisection(len(order))
    tried: list[MixedTrial] = []
    best: tuple[Artifact, bool] | None = None
    while (count := search.ask()) is not None:
        trial = _keeping(recipe, at, f"{recipe.name}-mixed-{count}", order[:count], precision)
        try:
            artifact, reused = shop.make(trial, left)
        except TautenError as fault:
            shop.order.observer.refused(trial.name, str(fault))
            tried.append(MixedTrial(name=trial.name, kept=count))
            search.tell(count, False)
            continue
        lost = _lost(artifact)
        tried.append(MixedTrial(name=trial.name, kept=count, drop_points=lost, holds=lost <= max_drop))
        search.tell(count, lost <= max_drop)
        if lost <= max_drop:
            best = artifact, reused
    if best is None or search.holds is None:
        return None
    layers = tuple(KeptLayer(path=path, precision=precision, noise=noise[path]) for path in order[: search.holds])
    told = f"loses {drop.value:.2f} points, more than {max_drop:g}" if drop else "answers with noise"
    why = (
        f"{recipe.name} {told}; with the "
        f"{search.holds} of {len(order)} layers that cost most in {precision} it loses {_lost(best[0]):.2f}"
    )
    return best[0], Mixed(base=recipe.name, layers=layers, of=len(order), tried=tuple(tried), why=why), best[1]


def quicken(shop: Workshop, recipe: Recipe) -> Found | None:
    """``recipe`` with its first convolution in float, where that is faster outside the noise; else ``None``.

    A first convolution has few channels to read, which kernels of eight bits are not made for.
    """
    at = _place(recipe)
    if at is None or recipe.passes[at].name != "quantize.post_training":
        return None
    step: Any = recipe.passes[at]
    name = f"{recipe.name}-mixed-fast"
    try:
        module = shop.builder.before(recipe, at).module
        found = [path for path, part in module.named_modules() if isinstance(part, _CONVOLUTIONS)]
        if not found or found[0] in dict(step.layers):
            return None
        trial = Trial(_keeping(recipe, at, name, found[:1], "float32"), recipe.name)
        artifact, reused = shop.make(trial.recipe)
        gain = shop.beside(trial, artifact, shop.make(recipe)[0])[0].gain
    except TautenError as fault:
        shop.order.observer.refused(name, str(fault))
        return None
    if gain.ratio_low <= 1:
        return None
    why = f"{recipe.name} is {gain.text} when its first convolution stays in float32"
    layers = (KeptLayer(path=found[0], precision="float32"),)
    return artifact, Mixed(base=recipe.name, layers=layers, of=len(found), why=why), reused


def _place(recipe: Recipe) -> int | None:
    """The place of the pass that quantizes, where it can leave layers out and need not be trained anew for that."""
    for index, step in enumerate(recipe.passes):
        if QUANTIZED in step.gives and not step.trains and "layers" in step.__dataclass_fields__:
            return index
    return None


def _keeping(recipe: Recipe, at: int, name: str, paths: Sequence[str], precision: str) -> Recipe:
    """The recipe with some layers in another precision."""
    step: Any = recipe.passes[at]
    changed = replace(step, layers=(*step.layers, *((path, precision) for path in paths)))
    return replace(recipe, name=name, passes=(*recipe.passes[:at], changed, *recipe.passes[at + 1 :]))


def _lost(artifact: Artifact) -> float:
    return artifact.manifest.measures["drop_points"].value
