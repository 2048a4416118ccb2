"""Weights and arithmetic in 16 bits, with islands of float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from tauten.core.rows import count_rows, take_rows
from tauten.core.tensor import Arrays, TensorSpec
from tauten.errors import PassError, RecipeError
from tauten.make.model.model import FLOAT_WEIGHTS, Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.model.run import call
from tauten.make.model.task import Data
from tauten.make.passes.device._casts import HALF, tensors
from tauten.make.passes.device._islands import ROOT, Halves, watching
from tauten.make.passes.device._peak import compare, measure_peak

__all__ = ["Half"]

_ROWS = 8  # at once: what every module answers is kept meanwhile

_WHERE = {
    "float16": {
        "pytorch": "computes in float16, and in float32 in what is refused",
        "onnx": "the file holds float16; ONNX Runtime computes in float16 on CUDA, in float32 on a processor",
    },
    "bfloat16": {
        "pytorch": "computes in bfloat16, and in float32 in what is refused",
        "onnx": "no artifact holds bfloat16: NumPy lacks it, and ONNX Runtime has few kernels of it; take float16",
    },
}


@dataclass(frozen=True)
class Half(Pass):
    """Weights and arithmetic in ``dtype``, except where that overflows or loses too much.

    Every module is run on ``samples`` of calibration data in 16 bits and held against what it answers in float32:
    layers first, then what they are parts of (Micikevicius et al., 2018, list what may overflow; here it is measured).
    One whose numbers are no longer finite, whose relative error is above ``tolerance``, or for which the device has no
    kernel stays in float32, with casts around it, and is named under ``refused``. Inputs and outputs keep their dtypes.
    """

    name: ClassVar[str] = "device.half"
    drops: ClassVar[frozenset[str]] = frozenset({FLOAT_WEIGHTS})

    dtype: Literal["float16", "bfloat16"] = "float16"
    tolerance: float = 0.05
    samples: int = 32

    def __post_init__(self) -> None:
        if self.dtype not in _WHERE:
            raise RecipeError(f"{self.name}: dtype: expected float16 or bfloat16, got {self.dtype!r}")
        if not 0 < self.tolerance < math.inf:
            raise RecipeError(f"{self.name}: tolerance: expected a number above 0, got {self.tolerance!r}")
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples: expected 1 or more, got {self.samples!r}")

    def __call__(self, model: Model, context: Context) -> Change:
        """The module in 16 bits. Raises ``PassError`` where nothing of it can be."""
        if not any(parameter.dtype == torch.float32 for parameter in model.module.parameters()):
            raise PassError(f"{self.name}: the model has no parameter in float32")
        halves = Halves(model.module, getattr(torch, self.dtype), self.tolerance)
        error = 0.0
        for rows in _rows(context.task.data("calibrate"), model.inputs, self.samples):
            with watching(model.module) as calls, torch.inference_mode():
                answers = call(model.module, model.inputs, (), rows)
            if any(tensor.dtype in HALF for tensor in tensors(answers)):
                raise PassError(f"{self.name}: the model answers in 16 bits already")
            error = max(error, halves.settle(calls))
        if halves.is_empty:
            reasons = "; ".join(f"{path or 'the model'} {reason}" for path, reason in halves.islands.items())
            raise PassError(f"{self.name}: nothing can be {self.dtype}: {reasons[:500]}")
        example = next(iter(context.task.data("calibrate")))[0]
        made = model.but(module=halves.module)
        notes: dict[str, Any] = {
            "refused": {path or ROOT: reason for path, reason in halves.islands.items()},
            "relative_error": error,
            "sqnr_db": round(-20 * math.log10(error), 1) if error > 0 else None,
            "runs": _WHERE[self.dtype],
            "peak": compare(measure_peak(model, example), measure_peak(made, example)),
        }
        return Change(halves.module, notes)


def _rows(data: Data, specs: tuple[TensorSpec, ...], samples: int) -> Iterator[Arrays]:
    """A few samples at a time, so many in all."""
    left = samples
    for inputs, _ in data:
        count = min(left, count_rows(specs, inputs))
        for start in range(0, count, _ROWS):
            yield take_rows(specs, inputs, range(start, min(count, start + _ROWS)))
        left -= count
        if left <= 0:
            return
