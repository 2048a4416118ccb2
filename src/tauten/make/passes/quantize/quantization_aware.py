"""Trains a model with its weights and activations rounded as they will be when it is deployed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tauten.errors import PassError
from tauten.make.layers.learned_steps import LearnedLayer
from tauten.make.model.fit import has_labels
from tauten.make.model.model import FLOAT_WEIGHTS, QUANTIZED, SPARSE, LayerPrecision, Model, QuantizationPlan
from tauten.make.model.pass_ import Change, Context
from tauten.make.passes.distill._student import Learning
from tauten.make.passes.quantize._aware_guard import Judge
from tauten.make.passes.quantize._aware_norms import fold_norms
from tauten.make.passes.quantize._aware_start import find_layers, start_learning, watch

__all__ = ["QuantizationAware"]

_FLOAT: Final[LayerPrecision] = "float32"
_Bits = Literal[8, 4]
_Precision = Literal["int8", "int4", "float32"]
_BITS: Final[Mapping[str, _Bits]] = {"int8": 8, "int4": 4}
_NORMS_LEARN: Final = 0.8
"""The share of the training after which batch norms that could not be folded keep their statistics."""
_GENTLE: Final = 0.3
"""The peak learning rate as a share of the task's: the model is trained already."""


@dataclass(frozen=True)
class QuantizationAware(Learning):
    """Learned step sizes (LSQ: Esser et al., 2020), with the original as the teacher.

    Batch norms are folded into the layers before them, each layer's weight gets steps of its own for every output
    channel, and its input 256 steps between two learned ends (LSQ+: Bhalgat et al., 2020); all begin where rounding
    loses least on ``samples`` of the calibration data, and are learned together with the weights. What comes out holds
    codes, steps and ranges as ``QuantizedLayer``, so that every engine's graph has what was learned.

    ``bits`` is what a weight takes, ``edges`` that of the first and the last layer, which lose most. ``layers`` says
    otherwise for some, as ``(path, precision)`` with the precisions int8, int4 and float32. With ``distill`` the
    original teaches, and labels are not needed; the other parameters are those of training, as ``Learning`` tells, but
    that the learning rate is 0.3 times the task's by default.

    The result is never worse than rounding alone: both are judged, on validation data by the task's metric or without
    labels by their nearness to the original, and where training lost, what it began with is handed back.
    """

    name: ClassVar[str] = "quantize.quantization_aware"
    needs: ClassVar[frozenset[str]] = frozenset({FLOAT_WEIGHTS})
    gives: ClassVar[frozenset[str]] = frozenset({QUANTIZED})
    drops: ClassVar[frozenset[str]] = frozenset({FLOAT_WEIGHTS})
    trains: ClassVar[bool] = True

    bits: _Bits = 8
    edges: _Bits = 8
    layers: tuple[tuple[str, _Precision], ...] = ()
    samples: Annotated[int, Field(ge=1)] = 256
    distill: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bits", "edges"):
            if getattr(self, name) not in get_args(_Bits):
                raise self._wrong(name, "8 or 4")
        paths = [path for path, _ in self.layers]
        if len(set(paths)) < len(paths) or any(kind not in get_args(_Precision) for _, kind in self.layers):
            raise self._wrong("layers", f"each path once, with a precision of {', '.join(get_args(_Precision))}")
        if self.samples < 1:
            raise self._wrong("samples", "1 or more")

    def __call__(self, model: Model, context: Context) -> Change:
        """Raises ``PassError`` where nothing can be learned from, no layer can learn, or ``layers`` names none."""
        task = context.task
        if not task.has("train"):
            raise PassError(f"{self.name}: trains, but the task has no train data; give tauten.Task(..., train=...)")
        if not self.distill and not has_labels(task.data("train")):
            raise PassError(f"{self.name}: train has no labels and distill is off, so there is nothing to learn from")
        context.progress("folding batch norms", 0.0)
        folded, why = fold_norms(model, context)
        bits, refused, module = self._begin(model, context)
        judge = Judge(model, context)
        before = _fixed(copy.deepcopy(module))
        teachers = (context.reference,) if self.distill else ()
        learning = replace(self, learning_rate=self.learning_rate or task.learning_rate * _GENTLE)
        watcher = _Watcher(module, {_learned_name(name, bits) for name in model.held()})
        learnt = learning.learn(
            model.but(module=module), context, teachers, keep_zeros=SPARSE in model.facts, on_step=watcher
        )
        watcher.hold()
        after = _fixed(module)
        scores = {"post_training": judge(before), "trained": judge(after)}
        kept = "trained" if judge.prefers(scores["trained"], scores["post_training"]) else "post_training"
        plan = QuantizationPlan(
            method="static",
            bits=self.bits,
            calibration="mse",
            samples=self.samples,
            layers={**self._unlike(bits), **dict.fromkeys(refused, _FLOAT)},
        )
        notes = {
            **learnt,
            "plan": plan.to_json(),
            "bits": bits,
            "refused": refused,
            "folded": folded,
            "not_folded": why,
            "kept": kept,
            "judged_on": judge.told(),
            "scores": scores,
        }
        return Change(after if kept == "trained" else before, notes, plan)

    def _begin(self, model: Model, context: Context) -> tuple[dict[str, int], dict[str, str], nn.Module]:
        """The bits of each layer that learns steps, why others do not, and the module with the former in place."""
        found, refused = find_layers(model.module)
        asked: dict[str, str] = dict(self.layers)
        unknown = sorted(set(asked) - set(found))
        if unknown:
            told = {path: refused.get(path, "no layer that can be quantized") for path in unknown}
            raise PassError(f"{self.name}: layers: {told}; those that can be are {sorted(found)}")
        refused |= {path: "it is to stay in float32" for path, kind in asked.items() if kind == "float32"}
        context.progress("choosing steps", 0.0)
        seen = watch({path: part for path, part in found.items() if path not in refused}, model, context, self.samples)
        refused |= dict.fromkeys(
            (path for path in found if path not in refused and path not in seen), "it is not called on calibration data"
        )
        if not seen:
            raise PassError(f"{self.name}: the model has no layer that can learn steps: {refused}")
        called = list(seen)
        bits: dict[str, int] = {path: self.edges if path in (called[0], called[-1]) else self.bits for path in called}
        bits |= {path: _BITS[kind] for path, kind in asked.items() if kind in _BITS and path in seen}
        made = start_learning(model.module, {path: found[path] for path in called}, seen, bits)
        return bits, refused, made.get("", model.module)

    def _unlike(self, bits: Mapping[str, int]) -> dict[str, LayerPrecision]:
        """The layers of other bits than the plan's."""
        return {path: "int8" if of == 8 else "int4" for path, of in bits.items() if of != self.bits}


@dataclass
class _Watcher:
    """Called before each step: keeps late statistics of batch norms, and the zeros of vectors that a pass made."""

    module: nn.Module
    held: set[str]
    zeros: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.zeros = {name: one == 0 for name, one in self.module.named_parameters() if name in self.held}

    def __call__(self, step: int, steps: int) -> None:
        self.hold()
        if step >= _NORMS_LEARN * steps:
            for part in self.module.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()

    def hold(self) -> None:
        """Zeros are zeros again."""
        for name, zero in self.zeros.items():
            self.module.get_parameter(name).data.masked_fill_(zero, 0.0)


def _learned_name(name: str, bits: Mapping[str, int]) -> str:
    """What a parameter is called once its layer learns steps."""
    path, _, last = name.rpartition(".")
    return f"{path}.layer.{last}".removeprefix(".") if path in bits else name


def _fixed(module: nn.Module) -> nn.Module:
    """``module`` in evaluation mode, with what was learned fixed in each layer, in place."""
    if isinstance(module, LearnedLayer):
        return module.to_quantized().eval()
    for path, layer in [(path, part) for path, part in module.named_modules() if isinstance(part, LearnedLayer)]:
        parent, _, last = path.rpartition(".")
        setattr(module.get_submodule(parent), last, layer.to_quantized())
    return module.eval()
