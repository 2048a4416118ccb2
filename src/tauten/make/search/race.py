"""Which engine a run uses: the untouched model on each that is there, written, measured, and timed side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from torch import nn

from tauten.artifact.read import Artifact
from tauten.core.measure import Measure
from tauten.errors import MeasureError, TautenError
from tauten.make.lower import LOWERINGS
from tauten.make.search.improve import faster
from tauten.make.search.installed import missing
from tauten.make.search.levels import RACE
from tauten.make.search.recipe import Kind, Recipe, Way, pass_from_json
from tauten.make.search.result import EngineTried
from tauten.make.search.tried import Raced
from tauten.make.search.workshop import Workshop
from tauten.run.measure.session import Timing

_PASSES: Final[dict[Kind, tuple[str, ...]]] = {
    "float32": (), "int8": ("quantize.post_training",), "int8-dynamic": ("quantize.dynamic",),
}  # fmt: skip
_PLACEMENT: Final = "placement"
"""The option of a lowering that says where a plan with fixed ranges rounds; others have no use for it."""
_LINEAR: Final = (nn.Linear, nn.RNNBase, nn.RNNCellBase, nn.Embedding)
_IN_TIMES: Final = 1.1
"""A ratio of times from which on it is told as one; below, in percent."""


def race(shop: Workshop) -> tuple[EngineTried, ...]:
    """Measure the target's engines with the untouched model, and let ``shop`` use the fastest from here on.

    Each engine that is installed makes the model in float and in eight bits, with each choice of options that its
    lowering holds worth measuring; what cannot be made is told with its reason. Quality is that of the written file.
    Of those whose quality is within the noise of the best, the fastest p50 latency at batch 1 is chosen: for recipes
    in float, for those with fixed ranges and for others apart. Eight bits without fixed ranges are measured where they
    are what a model is likely to want (``_wants_dynamic``); else they go the way of those with ranges, as far as that
    means anything to them. An engine has to be faster outside the noise to win against one that the target names
    before it.
    """
    rows: list[EngineTried] = []
    for kind in _PASSES:
        if kind.partition("-")[0] not in shop.order.target.precisions:
            continue
        if kind != "int8-dynamic" or _wants_dynamic(shop.model.module):
            rows += _race(shop, kind)
    for row in rows:
        if row.chosen and row.precision:
            shop.ways[row.precision] = Way(row.engine, row.options)
            if row.precision == "int8":
                shop.ways["int8-dynamic"] = Way(row.engine, _without_placement(row.options))
    absent = [missing(engine) for engine in shop.order.target.engines]
    return (*rows, *(row for row in absent if row))


def best_float(engines: Sequence[EngineTried], engine: str) -> Way:
    """How the untouched model is fastest on one engine in float, as far as it was measured."""
    found = [row for row in engines if row.engine == engine and row.precision == "float32" and row.latency]
    if not found:
        return Way(engine)
    return Way(engine, min(found, key=lambda row: row.latency.value if row.latency else 0.0).options)


def _wants_dynamic(module: nn.Module) -> bool:
    """Whether most weights are of linear and recurrent layers, in a transformer or a recurrent network."""
    parts = list(module.modules())
    if not any(isinstance(part, nn.LayerNorm | nn.RNNBase | nn.RNNCellBase) for part in parts):
        return False
    linear = {id(weight): weight.numel() for part in parts if isinstance(part, _LINEAR) for weight in part.parameters()}
    return 2 * sum(linear.values()) > sum(weight.numel() for weight in module.parameters())


def _without_placement(options: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in options.items() if name != _PLACEMENT}


def _ways(shop: Workshop, precision: Kind) -> list[Way]:
    """The ways that are worth measuring."""
    found: list[Way] = []
    for engine in shop.order.target.engines:
        if missing(engine):
            continue
        for choice in LOWERINGS.get(engine).choices(shop.order.target, precision != "float32"):
            way = Way(engine, choice if precision != "int8-dynamic" else _without_placement(choice))
            if way not in found:
                found.append(way)
    return found


def _race(shop: Workshop, precision: Kind) -> list[EngineTried]:
    """What was found of all ways to one precision."""
    ways = _ways(shop, precision)
    passes = tuple(pass_from_json({"pass": name}) for name in _PASSES[precision])
    made: dict[int, Artifact] = {}
    rows: list[EngineTried] = []
    for index, way in enumerate(ways):
        name = f"{RACE}{precision}-{way.engine}-{index}"
        rows.append(EngineTried(engine=way.engine, precision=precision, options=dict(way.options)))
        try:
            made[index], _ = shop.make(Recipe(name, passes, way.engine, way.options), len(ways) - index - 1)
        except TautenError as fault:
            shop.order.observer.refused(name, str(fault))
            rows[index] = rows[index].model_copy(update={"reason": str(fault)})
    if not made:
        return rows
    key = _key(made, shop.order.sampling.seconds)
    found = shop.workspace.load_race(key)
    if found is None:
        shop.order.observer.stage(f"time {len(made)} ways to {precision} side by side")
        timings, failed = _time(shop, made)
        for index, reason in failed.items():
            rows[index] = rows[index].model_copy(update={"reason": reason})
        if not timings:
            return rows
        drops = {index: made[index].manifest.measures["drop_points"] for index in timings}
        found = Raced(engines=decide(rows, timings, drops))
        shop.workspace.save_race(key, found)
    return list(found.engines)


def _time(shop: Workshop, made: Mapping[int, Artifact]) -> tuple[dict[int, Timing], dict[int, str]]:
    """The timings of one session by place, and why some have none: one that fails must not take the others with it."""

    def time(places: Iterable[int]) -> dict[int, Timing]:
        found = shop.time({str(index): made[index] for index in places}, (1,))
        return {int(index): timing for index, timing in found.items()}

    try:
        return time(made), {}
    except MeasureError as fault:
        together = str(fault)
    failed: dict[int, str] = {}
    for index in made:
        try:
            time([index])
        except MeasureError as fault:
            failed[index] = str(fault)
    if not failed:
        raise MeasureError(together)
    sound = [index for index in made if index not in failed]
    return (time(sound) if sound else {}), failed


def decide(
    rows: Sequence[EngineTried], timings: Mapping[int, Timing], drops: Mapping[int, Measure]
) -> tuple[EngineTried, ...]:
    """The rows with what was measured of them; of those that were, one is chosen, and of the others it is said why not.

    ``timings`` and ``drops`` are by a row's place.
    """
    finest = min(drops.values(), key=lambda drop: drop.value)
    even = [index for index in timings if not finest.beats(drops[index])]
    winner = even[0]
    for index in even[1:]:
        if faster(timings[index], timings[winner]).ratio_low > 1:
            winner = index
    decided = []
    for index, row in enumerate(rows):
        if index in timings:
            reason = _reason(index, winner, even, timings, rows)
            told = {"drop": drops[index], "latency": timings[index].measures["latency_p50_ms"]}
            row = row.model_copy(update={**told, "chosen": index == winner, "reason": reason})
        decided.append(row)
    return tuple(decided)


def _reason(
    index: int, winner: int, even: Sequence[int], timings: Mapping[int, Timing], rows: Sequence[EngineTried]
) -> str:
    if index not in even:
        return "loses more quality than another, outside the noise"
    if index == winner:
        return "the fastest" if len(timings) > 1 else "the only one"
    times = faster(timings[winner], timings[index])
    if times.ratio_low > 1:
        return f"{_slower(times.ratio)} {spell(rows[winner])}"
    return f"no faster than {spell(rows[winner])} outside the noise"


def _slower(ratio: float) -> str:
    """A ratio above 1 of two times in words: a percentage where "1 times" would say nothing."""
    return f"{ratio:.3g} times the time of" if ratio >= _IN_TIMES else f"{100 * (ratio - 1):.2g} % slower than"


def spell(row: EngineTried) -> str:
    """An engine with its options in words: ``onnx placement=products``."""
    return " ".join((row.engine, *(f"{name}={value}" for name, value in row.options.items())))


def _key(made: Mapping[int, Artifact], seconds: float) -> str:
    seen = [f"{index} {artifact.manifest.key}" for index, artifact in made.items()]
    return hashlib.sha256(" ".join((*seen, str(seconds))).encode()).hexdigest()
