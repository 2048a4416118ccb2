"""Static int8 without training: ranges of activations are read off calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tauten.make.model.model import FLOAT_WEIGHTS, QUANTIZED, Model, QuantizationPlan
from tauten.make.model.pass_ import Change, Context, Pass

__all__ = ["PostTraining"]


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

    samples: Annotated[int, Field(ge=1)] = 256
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"

    def __call__(self, model: Model, context: Context) -> Change:
        plan = QuantizationPlan(method="static", samples=self.samples, calibration=self.calibration)
        return Change(model.module, {"plan": plan.to_json()}, plan)
