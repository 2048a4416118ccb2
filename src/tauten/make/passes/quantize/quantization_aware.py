"""Trains a model with its weights and activations rounded as they will be when it is deployed."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tauten.errors import PassError
from tauten.make.layers.learned_steps import LearnedLayer
from tauten.make.layers.quantized import put_layer
from tauten.make.model.model import FLOAT_WEIGHTS, QUANTIZED, SPARSE, LayerPrecision, Model, QuantizationPlan
from tauten.make.model.pass_ import Change, Context
from tauten.make.passes import PASSES
from tauten.make.passes.distill._student import Learning
from tauten.make.passes.quantize._aware_guard import Judge
from tauten.make.passes.quantize._aware_start import reads_of, start_learning
from tauten.make.passes.quantize._calibrate import Data
from tauten.make.passes.quantize._convert import QuantizingPass
from tauten.make.passes.quantize._sites import find_sites, plain_attention

__all__ = ["QuantizationAware"]

_FLOAT: Final[LayerPrecision] = "float32"
_Bits = Literal[8, 4]
_Precision = Literal["int8", "int4", "float32"]
_NORMS_LEARN: Final = 0.8
"""The share of the training after which batch norms that could not be folded keep their statistics."""
_GENTLE: Final = 0.3
"""The peak learning rate as a share of the task's: the model is trained already."""


@dataclass(frozen=True)
class QuantizationAware(Learning):
    """Learned step sizes (LSQ: Esser et al., 2020), with the original as the teacher.

    It begins with what ``quantize.post_training`` makes of the model, on ``samples`` of the calibration data: batch
    norms folded, and grids of the least squared error. Then it learns, together with the weights, their steps, one for
    each output channel, and the two ends between which an input has 256 steps (LSQ+: Bhalgat et al., 2020). What comes
    out holds codes, steps and ranges as ``QuantizedLayer``, so that every engine's graph has what was learned.

    ``bits`` is what a weight takes, ``edges`` that of the first and the last layer, which lose most. ``layers`` says
    otherwise for some, as ``(path, precision)`` with the precisions int8, int4 and float32. With ``distill`` the
    original teaches, and labels are not needed. The other parameters are those of training, as ``Learning`` tells, but
    that the original alone is learned from (``weight``), for it is what shall be kept, and the learning rate is 0.3
    times the task's.

    The result is never worse than rounding alone: both are judged, on validation data by the task's metric or without
    labels by their nearness to the original, and where training lost, what it began with is handed back. Layers that
    can have no grid of their own (inside attention modules and LSTMs, tied ones) stay in float.
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
    weight: float = 1.0

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
        self.check_data(task, taught=self.distill)
        data = Data(model, context, self.samples)
        plan = self._plan(model, data)
        decided = _rounding(plan).decide(model, context)
        before = copy.deepcopy(decided).swapped()
        module, learning = start_learning(decided, data)
        if not learning:
            raise PassError(f"{self.name}: the model has no layer that can learn steps: {decided.refused}")
        watcher = _Watcher(module, {_learned_name(name, learning) for name in model.held()})
        gently = replace(self, learning_rate=self.learning_rate or task.learning_rate * _GENTLE)
        with plain_attention():
            learnt = gently.learn(
                model.but(module=module),
                context,
                (context.teacher,) if self.distill else (),
                keep_zeros=SPARSE in model.facts,
                on_step=watcher,
            )
        watcher.hold()
        after = _fixed(module)
        judge = Judge(model, context)
        scores = {"post_training": judge(before), "trained": judge(after)}
        learned = learnt["best_epoch"] > 0 and judge.prefers(scores["trained"], scores["post_training"])
        # What cannot learn stays as it is: rounded by the lowering, it would be what nothing here was judged with.
        plan = plan.model_copy(update={"layers": {**plan.layers, **dict.fromkeys(decided.refused, _FLOAT)}})
        notes = {
            **learnt,
            "plan": plan.to_json(),
            "layers": {path: f"int{after.get_submodule(path).bits}" for path in learning},
            "refused": decided.refused,
            **decided.notes,
            "kept": "trained" if learned else "post_training",
            "judged_on": judge.told(),
            "scores": scores,
        }
        return Change(after if learned else before, notes, plan)

    def _plan(self, model: Model, data: Data) -> QuantizationPlan:
        """What the parameters mean for this model."""
        found = find_sites(model.module, lambda: data.walk(model.module, 1))
        asked: dict[str, LayerPrecision] = dict(self.layers)
        able = {*found.layers, *(path for path in found.refused if asked.get(path) == _FLOAT)}
        unknown = {
            path: found.refused.get(path, "no layer that can be quantized") for path in asked if path not in able
        }
        if unknown:
            raise PassError(f"{self.name}: layers: {unknown}; those that can be are {sorted(found.layers)}")
        called = list(reads_of(found.layers, model.module, data))
        of_edges: LayerPrecision = "int8" if self.edges == 8 else "int4"
        edges = dict.fromkeys((*called[:1], *called[-1:]) if self.edges != self.bits else (), of_edges)
        return QuantizationPlan(
            method="static", bits=self.bits, calibration="mse", samples=self.samples, layers={**edges, **asked}
        )


def _rounding(plan: QuantizationPlan) -> QuantizingPass:
    """Rounding alone, by the same plan: what training begins with, and must not lose against."""
    parameters = {
        "bits": plan.bits,
        "calibration": plan.calibration,
        "samples": plan.samples,
        "layers": tuple(plan.layers.items()),
    }
    step = PASSES.get("quantize.post_training").from_parameters(parameters)
    if not isinstance(step, QuantizingPass):
        raise PassError(f"expected quantize.post_training to put layers on grids, got {type(step).__name__}")
    return step


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


def _learned_name(name: str, learning: Collection[str]) -> str:
    """What a parameter is called once its layer learns steps."""
    path, _, last = name.rpartition(".")
    return f"{path}.layer.{last}".removeprefix(".") if path in learning else name


def _fixed(module: nn.Module) -> nn.Module:
    """``module`` in evaluation mode, with what was learned fixed in each layer, in place."""
    for layer in [part for part in module.modules() if isinstance(part, LearnedLayer)]:
        module = put_layer(module, layer, layer.to_quantized())
    return module.eval()
