"""Large batches in parts, so that memory suffices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tauten.core.rows import resize_rows
from tauten.core.tensor import Arrays
from tauten.errors import PassError, RecipeError
from tauten.make.layers.micro_batches import MicroBatches
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.model.training.parts import check_divisible, largest_rows
from tauten.make.passes.device._casts import tensors
from tauten.make.passes.device._peak import compare, measure_peak

__all__ = ["MicroBatching"]


@dataclass(frozen=True)
class MicroBatching(Pass):
    """Answers batches of up to ``batch`` samples, and larger ones, with no more than ``max_memory_mib`` of memory.

    What counts are the model's weights and what it needs on top of them, measured; PyTorch itself does not. The largest
    parts with which a batch of ``batch`` samples holds the limit are found by measuring, and batches are divided so.
    Answers are the same. An artifact's graph has batches whole: its engine divides them.
    """

    name: ClassVar[str] = "device.micro_batches"
    needs: ClassVar[frozenset[str]] = frozenset()

    max_memory_mib: float = 1024.0
    batch: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.max_memory_mib < math.inf:
            raise RecipeError(f"{self.name}: max_memory_mib: expected a number above 0, got {self.max_memory_mib!r}")
        if self.batch < 1:
            raise RecipeError(f"{self.name}: batch: expected 1 or more, got {self.batch!r}")

    def __call__(self, model: Model, context: Context) -> Change:
        """The module in a ``MicroBatches``. Raises ``PassError`` with the figures where one sample is too much."""
        check_divisible(model.inputs, self.name)
        example = next(iter(context.task.data("calibrate")))[0]
        inputs, outputs = tuple(spec.batch_axis for spec in model.inputs), _axes(self.name, model, example)
        whole = resize_rows(model.inputs, example, self.batch)

        def divided(rows: int) -> Model:
            return model.but(module=MicroBatches(model.module, rows, inputs, outputs).eval())

        # Whole batches in parts, and not one part alone: the answers of all are kept.
        rows, figures = largest_rows(
            self.batch, lambda rows: measure_peak(divided(rows), whole).mib, self.max_memory_mib, self.name
        )
        if rows is None:
            raise PassError(f"{self.name}: this system does not tell how much memory a process uses")
        made = divided(rows)
        notes: dict[str, Any] = {
            "rows": rows,
            "measured_mib": {str(size): _told(mib) for size, mib in sorted(figures.items())},
            "runs": {
                "pytorch": f"{rows} samples at once",
                "onnx": "the batch that it is given, whole",
                "eager": "the batch that it is given, whole",
            },
            "peak": compare(measure_peak(model, whole), measure_peak(made, whole)),
        }
        return Change(made.module, notes)


def _axes(name: str, model: Model, example: Arrays) -> tuple[int, ...]:
    """The axis of each returned tensor along which it counts samples: that which grows by one with one sample more."""
    found = []
    with torch.inference_mode():
        few, more = (
            tensors(model.module(*(torch.as_tensor(arrays[spec.name]).to(_device(model)) for spec in model.inputs)))
            for arrays in (resize_rows(model.inputs, example, count) for count in (2, 3))
        )
    for index, (one, other) in enumerate(zip(few, more, strict=True)):
        sizes = list(zip(one.shape, other.shape, strict=True)) if one.ndim == other.ndim else []
        axes = [axis for axis, pair in enumerate(sizes) if pair == (2, 3)]
        if len(axes) != 1 or any(a != b for axis, (a, b) in enumerate(sizes) if axis != axes[0]):
            what = model.outputs[index] if len(model.outputs) == len(few) else f"output {index}"
            raise PassError(
                f"{name}: {what} {tuple(one.shape)} does not count samples, so that batches cannot be divided"
            )
        found.append(axes[0])
    return tuple(found)


def _device(model: Model) -> torch.device:
    return next((tensor.device for tensor in model.module.parameters()), torch.device("cpu"))


def _told(mib: float) -> float | None:
    return round(mib, 1) if math.isfinite(mib) else None
