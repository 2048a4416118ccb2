"""What passes work on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from tauten.core.record import Record
from tauten.core.tensor import TensorSpec
from tauten.core.value import Value

FLOAT_WEIGHTS = "float_weights"
SPARSE = "sparse"
QUANTIZED = "quantized"


LayerPrecision = Literal["float32", "float16", "bfloat16", "int8", "int4"]


class QuantizationPlan(Value):
    """What a lowering shall make of the weights: decided by a pass, carried out where the engine's graph is made.

    ``static`` fixes the activations' ranges from calibration data, ``dynamic`` finds them at each call, and
    ``weight_only`` leaves activations in float. ``bits`` is what a weight takes: 16 (``half`` says which kind), 8 or 4.
    ``granularity`` says what has a scale of its own: the whole weight, an output channel, or each ``group`` numbers of
    it. ``layers`` are modules (by path, such as ``features.0``) whose precision is another. A layer that is a
    ``QuantizedLayer`` already has its own grid, and perhaps its input's range, which hold before all of this.
    """

    method: Literal["static", "dynamic", "weight_only"]
    bits: Literal[16, 8, 4] = 8
    half: Literal["float16", "bfloat16"] = "float16"
    activations: Literal["uint8", "int8"] = "uint8"
    weights: Literal["int8", "uint8"] = "int8"
    granularity: Literal["tensor", "channel", "group"] = "channel"
    group: int = 128
    calibration: Literal["minmax", "percentile", "mse", "entropy"] = "minmax"
    samples: int = 256
    layers: dict[str, LayerPrecision] = {}

    @property
    def per_channel(self) -> bool:
        """Whether each output channel of a weight has a scale of its own."""
        return self.granularity != "tensor"


@dataclass(frozen=True)
class Model:
    """A module with its borders, its quantization plan, the facts that hold of it, and its history.

    Frozen: a pass makes a new one. ``module`` is in evaluation mode and must not be changed in place.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    quantization: QuantizationPlan | None = None
    facts: frozenset[str] = frozenset({FLOAT_WEIGHTS})
    history: tuple[Record, ...] = ()

    def but(self, **changes: Any) -> Model:
        """The same model with some fields changed."""
        return replace(self, **changes)

    def held(self) -> frozenset[str]:
        """The vectors in which passes made zeros, by the names they had: what records note under ``held``."""
        return frozenset(name for record in self.history for name in record.notes.get("held", ()))
