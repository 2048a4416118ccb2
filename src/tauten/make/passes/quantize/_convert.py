"""From a plan to a module that computes as planned: what static, dynamic and weight-only quantization share.

QuantizingPass          prepare -> decide -> swap in, with notes
├── PostTraining        static
├── Dynamic             weights in int8
└── WeightOnly          weights alone, in 16, 8 or 4 bits
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn

from tauten.errors import PassError, RecipeError
from tauten.make.layers.quantized import QUANTIZABLE, Grid, QuantizedLayer, put_layer
from tauten.make.model.model import FLOAT_WEIGHTS, QUANTIZED, LayerPrecision, Model, QuantizationPlan
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.passes.quantize._bias import corrected_biases, put_biases
from tauten.make.passes.quantize._calibrate import Data, find_moments, find_ranges
from tauten.make.passes.quantize._fold import before_norms, fold_batch_norms
from tauten.make.passes.quantize._gptq import round_in_turn
from tauten.make.passes.quantize._hqq import shift_grid
from tauten.make.passes.quantize._learned import MOST_WORK, error_of, learn_rounding
from tauten.make.passes.quantize._matrix import to_matrix
from tauten.make.passes.quantize._noise import Noise
from tauten.make.passes.quantize._scales import Scales, choose_grid
from tauten.make.passes.quantize._sites import Sites, find_sites

Rounding = Literal["nearest", "learned", "gptq", "hqq", "engine"]
Layers = tuple[tuple[str, LayerPrecision], ...]

_HALVES: Final[dict[str, torch.dtype]] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_BITS: Final[dict[str, int]] = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Settings:
    """What a pass wants of the layers, beyond the plan that lowerings read."""

    plan: QuantizationPlan
    rounding: Rounding = "nearest"
    scales: Scales | None = None
    """``None``: those of the least squared error for 4 bits, which are too few to spend on the largest magnitude."""
    correct_bias: bool = False
    fold: bool = True
    kinds: tuple[type[nn.Module], ...] = QUANTIZABLE


@dataclass
class Decided:
    """What becomes of which layer, by its path, in a module that is float still."""

    module: nn.Module
    sites: Sites
    layers: dict[str, nn.Module] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    """What biases would be with the mean errors of outputs in them."""
    notes: dict[str, Any] = field(default_factory=dict)

    def swapped(self) -> nn.Module:
        """The module with all of the layers in it: the same one, changed."""
        module = self.module
        for path, layer in self.layers.items():
            module = put_layer(module, self.sites.layers[path], layer)
        return module.eval()


@dataclass(frozen=True)
class QuantizingPass(Pass):
    """A pass that puts layers on grids by its ``settings``, and plans the same for what it cannot."""

    needs: ClassVar[frozenset[str]] = frozenset({FLOAT_WEIGHTS})
    gives: ClassVar[frozenset[str]] = frozenset({QUANTIZED})
    drops: ClassVar[frozenset[str]] = frozenset({FLOAT_WEIGHTS})

    @abstractmethod
    def settings(self) -> Settings:
        """What the parameters mean."""

    def prepare(self, model: Model, data: Data) -> tuple[Model, dict[str, Any]]:
        """The float module that is quantized, and notes of what was done to it; its outputs are the given one's."""
        if not self.settings().fold:
            return model, {}
        module, notes = fold_batch_norms(model, data)
        return model.but(module=module), notes

    def decide(self, model: Model, context: Context) -> Decided:
        """What becomes of each layer; ``model.module`` may be changed on the way, and stays float."""
        settings = self.settings()
        data = Data(model, context, settings.plan.samples)
        _check_layers(model.module, self.name, settings.plan.layers)
        model, notes = self.prepare(model, data)
        decided = _decide(model, context, data, settings, before_norms(model, data))
        decided.notes = notes | decided.notes
        return decided

    def __call__(self, model: Model, context: Context) -> Change:
        plan = self.settings().plan
        decided = self.decide(model, context)
        noise = Noise(Data(model, context, plan.samples), decided.module)
        module = decided.swapped()
        if self.settings().correct_bias:
            decided.notes["bias_corrected"] = _correct(decided, module, noise)
        notes = {
            "plan": plan.to_json(),
            "layers": decided.how,
            "refused": decided.refused,
            **decided.notes,
            "sqnr_db": noise.decibels(module),
        }
        return Change(module, notes, plan)


def _correct(decided: Decided, module: nn.Module, noise: Noise) -> list[str]:
    """Put corrected biases into the quantized module where its outputs err less for it; the paths of the layers."""
    plain = sum(noise.shares(module).values())
    had = put_biases(decided.layers, decided.biases)
    if sum(noise.shares(module).values()) < plain:
        return list(decided.biases)
    put_biases(decided.layers, had)
    return []


def check_common(name: str, samples: int, group: int, layers: Iterable[tuple[str, str]]) -> None:
    """``RecipeError`` for parameters that passes share and that do not fit."""
    if samples < 1:
        raise RecipeError(f"{name}: samples: expected at least 1, got {samples}")
    if group < 2:
        raise RecipeError(f"{name}: group: expected at least 2, got {group}")
    paths = [path for path, _ in layers]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise RecipeError(f"{name}: layers: {twice[0]!r} is given twice")


def precision_of(path: str, plan: QuantizationPlan) -> LayerPrecision:
    """What a layer's weight takes: what ``plan.layers`` says of it or of the nearest module around it."""
    around = path
    while True:
        if around in plan.layers:
            return plan.layers[around]
        if not around:
            break
        around = around.rpartition(".")[0]
    return plan.half if plan.bits == 16 else "int8" if plan.bits == 8 else "int4"


def _check_layers(module: nn.Module, name: str, layers: Mapping[str, str]) -> None:
    paths = {path for path, _ in module.named_modules(remove_duplicate=False)}
    unknown = sorted(set(layers) - paths)
    if unknown:
        raise PassError(f"{name}: layers: the model has no module {unknown[0]!r}")


def _decide(model: Model, context: Context, data: Data, settings: Settings, left: Mapping[str, str]) -> Decided:
    module, plan = model.module, settings.plan
    sites = find_sites(module, lambda: data.walk(module, 1), settings.kinds)
    for path in [path for path in left if path in sites.layers]:
        sites.refused[path] = left[path]
        del sites.layers[path]
    decided = Decided(module, sites, refused=dict(sites.refused))
    if settings.rounding == "engine":
        decided.refused.update(dict.fromkeys(sites.layers, "left to the engine's own quantizer, as asked for"))
        decided.notes["calibration_samples"] = data.count()
        return decided
    precisions = {path: precision_of(path, plan) for path in sites.layers}
    for path, precision in precisions.items():
        if precision == "float32":
            decided.how[path] = "float32, as asked for"
    gridded = {path: layer for path, layer in sites.layers.items() if precisions[path] in _BITS}
    ranged: dict[str, tuple[float, float]] = {}
    if plan.method == "static":
        inputs = {path: layer for path, layer in gridded.items() if not isinstance(layer, nn.Embedding)}
        context.progress("ranges", 0.0)
        ranged = find_ranges(module, inputs, data, plan.calibration)
        for path in [path for path, (low, high) in ranged.items() if not low < high]:
            decided.refused[path] = "calibration data gives it nothing but zeros"
            del gridded[path]
    for path, precision in precisions.items():
        if precision in _HALVES:
            _halve(decided, path, precision)
    rounded = _round(module, gridded, precisions, context, data, settings)
    for path, (grid, codes, how) in rounded.items():
        layer = copy.deepcopy(gridded[path])
        decided.layers[path] = QuantizedLayer(layer, codes, grid, ranged.get(path))
        decided.how[path] = how
    if settings.correct_bias:
        decided.biases.update(corrected_biases(module, sites.layers, decided.layers, data))
    decided.notes["calibration_samples"] = data.count()
    return decided


def _halve(decided: Decided, path: str, precision: str) -> None:
    layer: Any = copy.deepcopy(decided.sites.layers[path])
    half = layer.weight.detach().to(_HALVES[precision]).float()
    if not bool(torch.isfinite(half).all()):
        decided.refused[path] = f"its weight holds numbers that {precision} cannot"
        return
    layer.weight = nn.Parameter(half, layer.weight.requires_grad)
    decided.layers[path] = layer
    decided.how[path] = precision


Rounded = tuple[Grid, Tensor, str]


def _round(
    module: nn.Module,
    layers: Mapping[str, nn.Module],
    precisions: Mapping[str, str],
    context: Context,
    data: Data,
    settings: Settings,
) -> dict[str, Rounded]:
    """Grid, codes and a word on both, a layer."""
    rounding, found = settings.rounding, dict[str, Rounded]()
    for path, layer in layers.items():
        grid = _grid(layer, _BITS[precisions[path]], settings)
        codes = grid.encode(_weight(layer))
        found[path] = (grid, codes, _told(grid, "hqq" if grid.zero_point is not None else "nearest"))
    if rounding not in ("learned", "gptq"):
        return found
    with torch.no_grad():
        for done, (path, moment) in enumerate(find_moments(module, layers, data, context.seed)):
            context.progress("rounding", done / len(layers))
            grid, codes, _ = found[path]
            codes, how = _better(layers[path], grid, codes, moment, rounding)
            found[path] = (grid, codes, _told(grid, how))
    return found


def _grid(layer: nn.Module, bits: int, settings: Settings) -> Grid:
    plan, weight = settings.plan, _weight(layer)
    scales = settings.scales or ("mse" if bits == 4 else "absmax")
    grid = choose_grid(layer, weight, bits, plan.granularity, plan.group, scales)
    return shift_grid(weight, grid) if settings.rounding == "hqq" else grid


def _better(layer: nn.Module, grid: Grid, nearest: Tensor, moment: Tensor, rounding: Rounding) -> tuple[Tensor, str]:
    """The codes that change each output least on calibration data: ``nearest``, or what ``rounding`` finds; and a word.

    What is learned has rounding in turn as a rival: each output keeps the better one.
    """
    weight = _weight(layer)

    def spread(what: Tensor) -> Tensor:
        return to_matrix(layer, grid.spread(what, weight.shape).expand(weight.shape))

    matrix = to_matrix(layer, weight)
    scale = spread(grid.scale)
    zero = torch.zeros_like(scale) if grid.zero_point is None else spread(grid.zero_point.float())
    tried = {"gptq": round_in_turn(matrix, scale, zero, grid.bits, moment)}
    if rounding == "learned" and matrix.numel() * matrix.shape[2] <= MOST_WORK:
        tried["learned"] = learn_rounding(matrix, scale, zero, grid.bits, moment)
    best = to_matrix(layer, nearest).float()
    least = error_of((best - zero) * scale - matrix, moment)
    used = []
    for how, codes in tried.items():
        if codes is not None:
            error = error_of((codes - zero) * scale - matrix, moment)
            better = error < least
            best, least = torch.where(better[..., None], codes, best), torch.minimum(error, least)
            used += [how] if bool(better.any()) else []
    told = " and ".join(used) or "nearest, which was no worse"
    return best.to(torch.int8).reshape(weight.shape), told


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.weight.detach()
    return weight


def _told(grid: Grid, rounding: str) -> str:
    scales = "a tensor" if grid.axis is None else f"a group of {grid.group}" if grid.group else "a channel"
    return f"int{grid.bits}, a scale {scales}, {rounding}"
