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


class QuantizationPlan(Value):
    """What a lowering shall make of the float weights: decided by a pass, carried out where the engine's graph is made.

    ``static`` fixes the activations' ranges from calibration data, ``dynamic`` finds them at each call.
    """

    method: Literal["static", "dynamic"]
    activations: Literal["uint8", "int8"] = "uint8"
    weights: Literal["int8", "uint8"] = "int8"
    per_channel: bool = True
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    samples: int = 256


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
