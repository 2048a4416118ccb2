"""Dynamic int8: weights in 8 bits, ranges of activations found at each call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from tauten.make.model.model import QuantizationPlan
from tauten.make.passes.quantize._convert import Layers, QuantizingPass, Settings, check_common

__all__ = ["Dynamic"]


@dataclass(frozen=True)
class Dynamic(QuantizingPass):
    """Signed 8-bit weights for linear and recurrent layers and embeddings, with activations quantized as they come.

    What transformers keep most of their quality with (Zafrir et al., 2019, with ranges found at run time). The module
    computes with the 8-bit weights of linear layers and embeddings, and with float activations; their rounding, and
    recurrent layers, are the lowering's. ``layers`` names modules of another precision.
    """

    name: ClassVar[str] = "quantize.dynamic"

    granularity: Literal["channel", "tensor"] = "channel"
    layers: Layers = ()

    def __post_init__(self) -> None:
        check_common(self.name, 1, 2, self.layers)

    def settings(self) -> Settings:
        """What the parameters mean."""
        plan = QuantizationPlan(method="dynamic", granularity=self.granularity, layers=dict(self.layers))
        return Settings(plan, kinds=(nn.Linear, nn.Embedding))
