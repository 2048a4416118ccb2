"""Replaces layers by thin ones whose product is nearly the same."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import Field
from torch import Tensor, nn

from tauten.errors import PassError, RecipeError
from tauten.make.layers.low_rank import put_low_rank
from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.passes.compress._division import Point, Probe, divide
from tauten.make.passes.compress._factor import METHODS, Factoring, Option
from tauten.make.passes.compress._factor_inputs import Inputs, find_inputs
from tauten.make.passes.compress._factor_time import is_faster, one_call, rounds_ms
from tauten.make.passes.quantize._calibrate import Data
from tauten.make.passes.quantize._noise import Noise
from tauten.make.passes.quantize._sites import find_sites

__all__ = ["LowRank"]

Convolutions = Literal["auto", "svd", "spatial", "tucker"]
By = Literal["size", "latency"]

_KINDS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_PROBED: Final = 0.1
"""About the share of a layer's answers that is taken away to see how far the outputs move."""
_TIMED: Final = 6
"""Ranks that are timed, of each method."""
_WHOLE: Final = -1
_HALF: Final = 0.5
_ZEROS: Final = 0.1


@dataclass(frozen=True)
class LowRank(Pass):
    """Two or three thin layers for one, where that is smaller; the rank says how thin.

    Linear layers and embeddings become two by a singular value decomposition. Convolutions become, by
    ``convolutions``, a thinner one and one of a single place (``svd``: Zhang et al., 2016), one along columns and one
    along rows (``spatial``: Jaderberg et al., 2014), or three (``tucker``: Kim et al., 2016); ``auto`` takes what loses
    least for its size. What a layer reads on ``samples`` of the calibration data says which of its directions matter
    (DRONE: Chen et al., 2021; SVD-LLM: Wang et al., 2025), and biases take up what is lost of the mean; with 0 samples
    weights alone do.

    One of two says how thin: ``energy``, the share of each layer's answers that is kept at least, or ``ratio``, the
    share that goes of all numbers in layers that can be factored (a half, where nothing is said). It is divided so that
    the outputs move least: for each layer it is measured how far they move when it is coarsened. ``round_to`` makes
    ranks a multiple of it, where there are so many. ``by="latency"`` counts measured time in place of numbers: that of
    each layer alone, in PyTorch, for one sample of the calibration data. Another engine may see it otherwise, which
    only a measurement of the artifact tells.

    A layer is left alone, and named with the reason, where no rank makes it smaller (and faster, by latency), where
    groups or zeros of pruning would be lost, and where other code reads its weight. ``keep`` names others.
    """

    name: ClassVar[str] = "compress.low_rank"

    energy: Annotated[float, Field(gt=0, lt=1)] | None = None
    ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    by: By = "size"
    convolutions: Convolutions = "auto"
    round_to: Annotated[int, Field(ge=1)] = 1
    samples: Annotated[int, Field(ge=0)] = 256
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.energy is not None and self.ratio is not None:
            raise RecipeError(
                f"{self.name}: ratio: expected an energy to keep or a ratio to lose, not both, got {self.energy} and "
                f"{self.ratio}"
            )
        if self.energy is not None and not 0 < self.energy < 1:
            raise RecipeError(f"{self.name}: energy: expected a share above 0 and below 1, got {self.energy}")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise RecipeError(f"{self.name}: ratio: expected 0 or more and below 1, got {self.ratio}")
        for name, known in (("by", get_args(By)), ("convolutions", get_args(Convolutions))):
            if getattr(self, name) not in known:
                value = getattr(self, name)
                raise RecipeError(f"{self.name}: {name}: expected one of {', '.join(known)}, got {value!r}")
        for name, least in (("round_to", 1), ("samples", 0)):
            if getattr(self, name) < least:
                raise RecipeError(f"{self.name}: {name}: expected {least} or more, got {getattr(self, name)}")

    def __call__(self, model: Model, context: Context) -> Change:
        """Raises ``PassError`` where no layer gets smaller, or not as much smaller as ``ratio`` asks for."""
        data = Data(model, context, max(1, self.samples))
        layers, refused = self._layers(model, data)
        if not layers:
            raise PassError(f"{self.name}: the model has no layer that can be factored: {refused}")
        noise = Noise(data, model.module)
        given = one_call(model.module, layers, Data(model, context, 1)) if self.by == "latency" else {}
        plans: dict[str, _Plan] = {}
        for done, (path, inputs) in enumerate(self._inputs(model, layers, data, context.seed)):
            context.progress("decomposing", 0.8 * done / len(layers))
            plan = self._plan(path, layers[path], inputs, given)
            if plan.options:
                plans[path] = plan
            else:
                refused[path] = plan.why
        chosen = self._choose(model, context, plans, refused)
        if not chosen:
            raise PassError(f"{self.name}: no layer gets smaller: {refused}")
        notes: dict[str, Any] = {}
        module, numbers = model.module, _count(model.module)
        for path, option in chosen.items():
            plan = plans[path]
            made = plan.factorings[option.method].make(option.ranks)
            module = put_low_rank(module, layers[path], made)
            notes[path] = {
                "method": option.method,
                "ranks": list(option.ranks),
                "numbers": [_count(layers[path]), _count(made)],
                "lost": plan.factorings[option.method].lost(made.weight),
                **({"milliseconds": [plan.whole, plan.costs[option]]} if self.by == "latency" else {}),
            }
        return Change(
            module.eval(),
            {
                "layers": notes,
                "refused": refused,
                "numbers": [numbers, _count(module)],
                "sqnr_db": noise.decibels(module),
            },
        )

    def _layers(self, model: Model, data: Data) -> tuple[dict[str, Any], dict[str, str]]:
        """What can be factored, by path, and why others cannot."""
        found = find_sites(model.module, lambda: data.walk(model.module, 1), _KINDS)
        layers, refused = dict[str, Any](found.layers), dict(found.refused)
        unknown = sorted(set(self.keep) - set(layers) - set(refused))
        if unknown:
            raise PassError(f"{self.name}: keep: no layers {unknown}; those that can be factored are {sorted(layers)}")
        for path, layer in list(layers.items()):
            why = _unfit(layer, SPARSE in model.facts)
            if path in self.keep:
                why = "keep says so"
            if why:
                refused[path] = why
                del layers[path]
        return layers, refused

    def _inputs(
        self, model: Model, layers: Mapping[str, Any], data: Data, seed: int
    ) -> Iterator[tuple[str, Inputs | None]]:
        products = {path: layer for path, layer in layers.items() if not isinstance(layer, nn.Embedding)}
        known = find_inputs(model.module, products, data, seed) if self.samples else ((path, None) for path in products)
        yield from known
        yield from ((path, None) for path in layers if path not in products)

    def _plan(self, path: str, layer: Any, inputs: Inputs | None, given: Mapping[str, Tensor]) -> _Plan:
        """The ways to treat a layer that make it smaller."""
        factorings = {name: METHODS[name](layer, inputs) for name in _methods(layer, self.convolutions)}
        if not factorings:
            return _Plan(why=f"its kernel {tuple(layer.kernel_size)} is no work for {self.convolutions}")
        whole = layer.weight.numel()
        options = [
            option
            for factoring in factorings.values()
            for option in factoring.options(self.round_to)
            if option.numbers < whole
        ]
        if not options:
            return _Plan(why=f"no rank makes its {whole} numbers fewer")
        if self.by == "size":
            return _Plan(factorings, float(whole), {option: float(option.numbers) for option in options})
        return _timed(layer, factorings, options, given.get(path))

    def _choose(
        self, model: Model, context: Context, plans: Mapping[str, _Plan], refused: dict[str, str]
    ) -> dict[str, Option]:
        """The option of each layer that is factored; why others are not is put into ``refused``."""
        chosen: dict[str, Option] = {}
        if self.energy is not None:
            for path, plan in plans.items():
                able = [option for option in plan.options if option.loss <= 1 - self.energy]
                if able:
                    chosen[path] = min(able, key=lambda option: (plan.costs[option], option.loss))
                else:
                    refused[path] = f"no rank that keeps {self.energy:g} of its answers makes it {self._smaller}"
            return chosen
        probe = Probe(model, context, max(1, self.samples))
        curves: dict[str, list[Point]] = {}
        for done, (path, plan) in enumerate(plans.items()):
            context.progress("sensitivity", 0.8 + 0.2 * done / len(plans))
            coarse = min(plan.options, key=lambda option: (abs(option.loss - _PROBED), option.numbers))
            layer: Any = model.module.get_submodule(path)
            factoring = plan.factorings[coarse.method]
            made = factoring.make(coarse.ranks).weight.detach()
            lost = factoring.lost(made)
            slope = probe(layer.weight, made) / lost if lost > 0 else 0.0
            thin = (Point(at, plan.costs[one], slope * one.loss) for at, one in enumerate(plan.options))
            curves[path] = [Point(_WHOLE, plan.whole, 0.0), *thin]
        total = sum(plan.whole for plan in plans.values())
        unit = "milliseconds" if self.by == "latency" else "numbers"
        what = f"{self.name}: ratio: {unit} of layers that can be factored"
        for path, point in divide(curves, (1 - (_HALF if self.ratio is None else self.ratio)) * total, what).items():
            if point.choice == _WHOLE:
                refused[path] = "others lose less for as much"
            else:
                chosen[path] = plans[path].options[point.choice]
        return chosen

    @property
    def _smaller(self) -> str:
        return "faster" if self.by == "latency" else "smaller"


class _Plan:
    """What can become of a layer: what it costs now, and what each option does, in numbers or in milliseconds."""

    def __init__(
        self,
        factorings: Mapping[str, Factoring] | None = None,
        whole: float = math.nan,
        costs: Mapping[Option, float] | None = None,
        why: str = "",
    ) -> None:
        self.factorings, self.whole, self.costs, self.why = factorings or {}, whole, costs or {}, why
        self.options = tuple(self.costs)


def _timed(layer: nn.Module, factorings: Mapping[str, Factoring], options: list[Option], x: Tensor | None) -> _Plan:
    """Some of the options that are faster than the layer, with their times."""
    if x is None:
        return _Plan(why="calibration data never calls it")
    tried: list[Option] = []
    for method in factorings:
        own = [option for option in options if option.method == method]
        places = {round(at * (len(own) - 1) / (_TIMED - 1)) for at in range(_TIMED)} if own else set()
        tried += [own[place] for place in sorted(places)]
    # Time is a matter of shapes: what is found without data will do, and is found sooner.
    alike = {method: METHODS[method](layer, None) for method in factorings}
    made = [alike[option.method].make(option.ranks) for option in tried]
    whole, *others = rounds_ms([layer, *made], x)
    times = {option: statistics.median(ms) for option, ms in zip(tried, others, strict=True)}
    faster = {option: times[option] for option, ms in zip(tried, others, strict=True) if is_faster(ms, whole)}
    takes, best = statistics.median(whole), min(times.values())
    return _Plan(factorings, takes, faster, f"it takes {takes:.3f} ms, and factored {best:.3f} ms at least")


def _unfit(layer: Any, sparse: bool) -> str:
    """Why a layer cannot be factored; empty where it can."""
    if getattr(layer, "groups", 1) != 1:
        return f"its {layer.groups} groups read different channels"
    zeros = float((layer.weight == 0).float().mean())
    if sparse and zeros > _ZEROS:
        return f"{100 * zeros:.0f} % of its weights are zero, which factors would fill"
    return ""


def _methods(layer: Any, convolutions: Convolutions) -> tuple[str, ...]:
    """The methods that fit a layer, of those that are asked for."""
    if isinstance(layer, nn.Linear | nn.Embedding) or math.prod(layer.kernel_size) == 1:
        return ("svd",)
    flat = isinstance(layer, nn.Conv2d) and min(layer.kernel_size) > 1
    able = ("svd", "spatial", "tucker") if flat else ("svd", "tucker")
    return tuple(name for name in able if convolutions in ("auto", name))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
