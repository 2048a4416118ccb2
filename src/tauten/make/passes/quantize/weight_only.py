"""Weights in 16, 8 or 4 bits, with everything else in float: for models that wait for memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tauten.errors import RecipeError
from tauten.make.model.model import QuantizationPlan
from tauten.make.passes.quantize._convert import Layers, QuantizingPass, Settings, check_common

__all__ = ["WeightOnly"]


@dataclass(frozen=True)
class WeightOnly(QuantizingPass):
    """Weights of ``bits`` with a scale for each ``group`` of numbers of a row, or each output channel.

    ``rounding`` says how they are found: ``hqq`` without data, with zero points (Badri and Shaji, 2023); ``gptq`` from
    ``samples`` calibration samples (Frantar et al., 2023); or ``nearest``. With 16 bits weights are of the kind
    ``half``, and nothing else is asked. Groups are of matrices; convolutions get a scale a channel. ``layers`` names
    modules of another precision.
    """

    name: ClassVar[str] = "quantize.weight_only"

    bits: Literal[16, 8, 4] = 4
    half: Literal["float16", "bfloat16"] = "float16"
    granularity: Literal["group", "channel"] = "group"
    group: int = 128
    rounding: Literal["hqq", "gptq", "nearest"] = "hqq"
    samples: int = 128
    layers: Layers = ()

    def __post_init__(self) -> None:
        check_common(self.name, self.samples, self.group, self.layers)
        if self.bits == 16 and self.rounding == "gptq":
            raise RecipeError(f"{self.name}: rounding: gptq is of 8 or 4 bits; leave it out for 16")

    def settings(self) -> Settings:
        """What the parameters mean."""
        plan = QuantizationPlan(
            method="weight_only",
            bits=self.bits,
            half=self.half,
            granularity=self.granularity,
            group=self.group,
            samples=self.samples,
            layers=dict(self.layers),
        )
        return Settings(plan, self.rounding)
