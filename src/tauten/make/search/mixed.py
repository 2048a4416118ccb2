"""Mixed precision: which layers stay in a higher one, because quality asks for it or because they are faster so.

For quality the layers are sorted by what the outputs lose when one layer alone is quantized, over what keeping it
costs: the time that it takes more in the file in float than in the quantized one, by the engine's profile, or its
bytes. How many of the first stay in a higher precision is then found on written artifacts: as few as hold the budget,
and of those the dear ones that are not needed are rolled back (in the manner of HAWQ; Dong et al., 2019, with measured
noise in place of second derivatives, measured time in place of bits, and a measured drop in place of a sum over
layers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from torch import nn

from tauten.artifact.read import Artifact
from tauten.errors import TautenError
from tauten.make.model.model import QUANTIZED
from tauten.make.search.assignment import Assignment, order_by_worth
from tauten.make.search.evaluator import rows
from tauten.make.search.layer_costs import layer_bytes, layer_times
from tauten.make.search.recipe import Recipe
from tauten.make.search.result import Entry, KeptLayer, Mixed, MixedTrial
from tauten.make.search.strategies._strategy import Trial
from tauten.make.search.tried import Costs
from tauten.make.search.workshop import Workshop

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NOISE: Final = "lost in noise"
"""What a lowering says of answers of which nothing is left, in the error that it refuses them with."""
Found = tuple[Artifact, Mixed, bool]
"""The artifact, what is told of it, and whether an earlier run had made it."""


def mixes_by_hand(recipe: Recipe, names: Collection[str]) -> bool:
    """Whether one of ``names`` is what a mixture of ``recipe`` would be called: the user has made one."""
    return any(name.startswith(f"{recipe.name}-mixed") for name in names)


def mix(
    shop: Workshop,
    recipe: Recipe,
    entry: Entry | None,
    max_drop: float | None,
    left: int = 0,
    unit: Literal["ms", "bytes"] = "ms",
) -> Found | None:
    """``recipe`` with the cheapest layers in a higher precision with which it loses no more than ``max_drop``.

    ``None`` where it holds that already, where the float model does not hold it either, where the pass that quantizes
    trains or cannot leave layers out, or where no mixture holds it. Layers of a 4-bit recipe stay in eight bits, others
    in float. The one that is found has the name ``NAME-mixed-K`` with K layers kept. ``entry`` is what came of the
    recipe itself; ``None`` where nothing was left of the answers. Cheap is what takes least time, or fewest bytes where
    that is the ``unit``, where the recipe has four bits, and where the engine tells no times.
    """
    at = _place(recipe)
    drop = entry.drop_points if entry else None
    if at is None or max_drop is None or (drop is not None and drop.value <= max_drop):
        return None
    step: Any = recipe.passes[at]
    bits = getattr(step, "bits", 8)
    precision = "int8" if bits == 4 else "float32"
    try:
        # What the other passes lost, no layer's precision brings back.
        rest = replace(recipe, name=f"{recipe.name}-float", passes=recipe.passes[:at] + recipe.passes[at + 1 :])
        whole = shop.make(rest, left)[0]
        if _lost(whole) > max_drop:
            return None
        shop.order.observer.stage(f"look for the layers that cost {recipe.name} most", left)
        noise = shop.builder.sensitivity(recipe, at)
        kept = dict(step.layers)
        noise = {path: share for path, share in noise.items() if path not in kept}
        costs = layer_bytes(shop.builder.before(recipe, at).module, noise, bits, 8 if bits == 4 else 32)
        if unit == "ms" and entry is not None and bits != 4:
            costs = _times(shop, shop.make(recipe, left)[0], whole, costs)
    except TautenError as fault:
        shop.order.observer.refused(f"{recipe.name}-mixed", str(fault))
        return None
    search = Assignment(order_by_worth(noise, costs.by_layer), noise, costs.by_layer)
    tried: list[MixedTrial] = []
    best: tuple[Artifact, bool] | None = None
    while (paths := search.ask()) is not None:
        again = sum(trial.kept == len(paths) for trial in tried)
        name = f"{recipe.name}-mixed-{len(paths)}" + (f"-{again + 1}" if again else "")
        told = MixedTrial(name=name, kept=len(paths), cost=sum(costs.by_layer[path] for path in paths))
        try:
            artifact, reused = shop.make(_keeping(recipe, at, name, paths, precision), left)
        except TautenError as fault:
            shop.order.observer.refused(name, str(fault))
            tried.append(told)
            search.tell(False)
            continue
        lost = _lost(artifact)
        tried.append(told.model_copy(update={"drop_points": lost, "holds": lost <= max_drop}))
        search.tell(lost <= max_drop)
        if lost <= max_drop:
            best = artifact, reused
    if best is None or search.kept is None:
        return None
    answers = f"loses {drop.value:.2f} points, more than {max_drop:g}" if drop else "answers with noise"
    return (
        best[0],
        _told(recipe.name, answers, search.kept, precision, noise, costs, tuple(tried), _lost(best[0])),
        best[1],
    )


def _times(shop: Workshop, low: Artifact, high: Artifact, weigh: Costs) -> Costs:
    """What the layers cost by time, from an earlier run on the same files where there is one."""
    key = hashlib.sha256(f"{low.manifest.key} {high.manifest.key}".encode()).hexdigest()
    found = shop.workspace.load_costs(key)
    if found is None or found.by_layer.keys() != weigh.by_layer.keys():
        shop.order.observer.step("time the layers in both precisions", 0.9)
        found = layer_times(low, high, rows(shop.order.task, 1), shop.order.target.threads, weigh)
        shop.workspace.save_costs(key, found)
    return found


def _told(
    base: str,
    answers: str,
    kept: Sequence[str],
    precision: str,
    noise: Mapping[str, float],
    costs: Costs,
    tried: tuple[MixedTrial, ...],
    lost: float,
) -> Mixed:
    """What the result says of a mixture that was found."""
    by_layer, total = costs.by_layer, sum(noise.values())
    layers = [
        KeptLayer(
            path=path,
            precision=precision,
            noise=noise[path],
            cost=by_layer[path],
            why=f"{noise[path] / total if total else 0:.1%} of all layers' noise, for {costs.text(by_layer[path])}",
        )
        for path in kept
    ]
    cost = sum(by_layer[path] for path in kept)
    saved = sum(by_layer.values()) - cost
    why = (
        f"{base} {answers}; with {len(kept)} of {len(noise)} layers in {precision}, which take most noise away for "
        f"what they cost, it loses {lost:.2f}. That is {costs.text(cost)}; the others too would be {costs.text(saved)}"
    )
    return Mixed(
        base=base,
        layers=tuple(layers),
        of=len(noise),
        tried=tried,
        unit=costs.unit,
        cost=cost,
        saved=saved,
        why=why,
    )


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
    layers = (KeptLayer(path=found[0], precision="float32", why=f"measured {gain.text} with it"),)
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
