"""Static int8 without training: ranges of activations are read off calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from tauten.errors import RecipeError
from tauten.make.model.model import FLOAT_WEIGHTS, QUANTIZED, Model, QuantizationPlan
from tauten.make.model.pass_ import Change, Context, Pass

__all__ = ["PostTraining"]

_Calibration = Literal["minmax", "percentile", "mse", "entropy"]


@dataclass(frozen=True)
class PostTraining(Pass):
    """Plan unsigned 8-bit activations and signed 8-bit weights, one scale an output channel.

    Source: Jacob et al., 2018 (integer arithmetic), with the ranges from ``samples`` calibration samples: their
    smallest and largest values (``minmax``), their 99.999th percentile, or the range that loses least information
    (``entropy``; Migacz, 2017). The lowering carries the plan out in the engine's own graph; the module is not changed.
    """

    name: ClassVar[str] = "quantize.post_training"
    needs: ClassVar[frozenset[str]] = frozenset({FLOAT_WEIGHTS})
    gives: ClassVar[frozenset[str]] = frozenset({QUANTIZED})
    drops: ClassVar[frozenset[str]] = frozenset({FLOAT_WEIGHTS})

    samples: int = 256
    calibration: _Calibration = "minmax"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples: expected at least 1, got {self.samples}")
        if self.calibration not in get_args(_Calibration):
            raise RecipeError(
                f"{self.name}: calibration: expected one of {', '.join(get_args(_Calibration))}, "
                f"got {self.calibration!r}"
            )

    def __call__(self, model: Model, context: Context) -> Change:
        plan = QuantizationPlan(method="static", samples=self.samples, calibration=self.calibration)
        return Change(model.module, {"plan": plan.to_json()}, plan)
