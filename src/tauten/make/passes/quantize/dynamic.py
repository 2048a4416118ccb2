"""Dynamic int8: weights in 8 bits, ranges of activations found at each call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tauten.make.model.model import FLOAT_WEIGHTS, QUANTIZED, Model, QuantizationPlan
from tauten.make.model.pass_ import Change, Context, Pass

__all__ = ["Dynamic"]


@dataclass(frozen=True)
class Dynamic(Pass):
    """Plan signed 8-bit weights for linear layers and embeddings, with activations quantized as they come.

    What transformers keep most of their quality with (Zafrir et al., 2019, with ranges found at run time). The
    lowering carries the plan out in the engine's own graph; the module is not changed.
    """

    name: ClassVar[str] = "quantize.dynamic"
    needs: ClassVar[frozenset[str]] = frozenset({FLOAT_WEIGHTS})
    gives: ClassVar[frozenset[str]] = frozenset({QUANTIZED})
    drops: ClassVar[frozenset[str]] = frozenset({FLOAT_WEIGHTS})

    def __call__(self, model: Model, context: Context) -> Change:
        plan = QuantizationPlan(method="dynamic")
        return Change(model.module, {"plan": plan.to_json()}, plan)
