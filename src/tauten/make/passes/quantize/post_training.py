"""Static int8 without training: ranges of activations are read off calibration data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal, get_args

from tauten.errors import RecipeError
from tauten.make.model.model import Model, QuantizationPlan
from tauten.make.model.pass_ import Change, Context
from tauten.make.passes.quantize._calibrate import Calibration, Data
from tauten.make.passes.quantize._convert import Layers, QuantizingPass, Rounding, Settings, check_common
from tauten.make.passes.quantize._equalize import equalize
from tauten.make.passes.quantize._scales import Granularity
from tauten.make.passes.quantize._smooth import smooth

__all__ = ["PostTraining"]

_TRIED: Final[tuple[Calibration, ...]] = ("minmax", "mse")
"""What ``auto`` chooses from. Which is better depends on the model, by as much as 10 dB in either direction."""


@dataclass(frozen=True)
class PostTraining(QuantizingPass):
    """Weights of ``bits`` with one scale an output channel, and activations in unsigned 8 bits of fixed ranges.

    Source: Jacob et al., 2018 (integer arithmetic), with the ranges from ``samples`` calibration samples: their
    smallest and largest values (``minmax``), their 99.999th percentile, or the range that costs least squared error
    (``mse``) or loses least information (``entropy``; Migacz, 2017). ``auto`` makes the model with ``minmax`` and with
    ``mse``, and keeps the one that errs less on calibration data.

    ``scales`` span a weight's largest magnitude (``absmax``) or cost its numbers the least squared error (``mse``);
    ``auto`` takes the first for 8 bits and the second for 4.

    Before: batch norms are folded (``fold``), scales move between layers (``equalize``) or from activations into
    weights (``smooth``, the share of it; 0 leaves them). Then weights are rounded (``rounding``), and with
    ``correct_bias`` the mean error of each output goes into its bias, where the model errs less for it. ``layers``
    names modules of another precision. Layers that the module cannot hold on a grid itself are in the plan alone, and
    the lowering carries it out; so are all with the rounding ``engine``, which the engine's own quantizer needs
    (OpenVINO's placement ``nncf``).
    """

    name: ClassVar[str] = "quantize.post_training"

    samples: int = 256
    calibration: Literal["auto"] | Calibration = "auto"
    bits: Literal[8, 4] = 8
    granularity: Granularity = "channel"
    group: int = 128
    scales: Literal["auto", "absmax", "mse"] = "auto"
    rounding: Rounding = "nearest"
    fold: bool = True
    equalize: bool = False
    smooth: float = 0.0
    correct_bias: bool = True
    layers: Layers = ()

    def __post_init__(self) -> None:
        check_common(self.name, self.samples, self.group, self.layers)
        known = ("auto", *get_args(Calibration))
        if self.calibration not in known:
            raise RecipeError(f"{self.name}: calibration: expected one of {', '.join(known)}, got {self.calibration!r}")
        if not 0 <= self.smooth < 1:
            raise RecipeError(f"{self.name}: smooth: expected 0 to less than 1, got {self.smooth}")
        if self.rounding == "engine" and self.bits != 8:
            raise RecipeError(f"{self.name}: rounding: engine is of 8 bits, got {self.bits}")
        if self.rounding == "hqq":
            raise RecipeError(
                f"{self.name}: rounding: hqq needs zero points of weights, which integer kernels lack; "
                "use learned or gptq, or quantize.weight_only"
            )

    def __call__(self, model: Model, context: Context) -> Change:
        if self.calibration != "auto" or self.rounding == "engine":
            return super().__call__(model, context)
        # What comes before ranges are read is the same for all of them.
        model, done = self.prepare(model, Data(model, context, self.samples))
        step = replace(self, fold=False, equalize=False, smooth=0.0)
        made: dict[Calibration, Change] = {}
        for index, method in enumerate(_TRIED):
            # The last one has the model's own module to change.
            given = model if index == len(_TRIED) - 1 else model.but(module=copy.deepcopy(model.module))
            made[method] = replace(step, calibration=method)(given, context)
        best = min(_TRIED, key=lambda method: _noise(made[method].notes["sqnr_db"]))
        told = {method: change.notes["sqnr_db"] for method, change in made.items()}
        return replace(
            made[best], notes={**made[best].notes, **done, "calibration": best, "calibrations_sqnr_db": told}
        )

    def settings(self) -> Settings:
        """What the parameters mean; while ``auto`` has not chosen, ``minmax``."""
        plan = QuantizationPlan(
            method="static",
            bits=self.bits,
            granularity=self.granularity,
            group=self.group,
            calibration="minmax" if self.calibration == "auto" else self.calibration,
            samples=self.samples,
            layers=dict(self.layers),
        )
        scales = None if self.scales == "auto" else self.scales
        return Settings(plan, self.rounding, scales, correct_bias=self.correct_bias, fold=self.fold)

    def prepare(self, model: Model, data: Data) -> tuple[Model, dict[str, Any]]:
        """Fold, equalize and smooth, as far as asked for."""
        model, notes = super().prepare(model, data)
        if self.equalize:
            module, more = equalize(model, data)
            model, notes = model.but(module=module), notes | more
        if self.smooth:
            module, more = smooth(model, data, self.smooth)
            model, notes = model.but(module=module), notes | more
        return model, notes


def _noise(decibels: Mapping[str, float]) -> float:
    """The shares of noise of all outputs together."""
    return sum(10 ** (-ratio / 10) for ratio in decibels.values())
