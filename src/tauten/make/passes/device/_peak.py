"""The memory that a module takes to answer one batch, measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tauten.core.rows import count_rows
from tauten.core.tensor import Array
from tauten.make.model.model import Model
from tauten.make.model.run import call
from tauten.make.model.training.work import how, work_mib


@dataclass(frozen=True)
class Peak:
    """``weights_mib`` are parameters and buffers, ``work_mib`` is the most that lay above them during a call.

    ``work_mib`` is ``None`` where the system does not tell, and infinite where the process that measured was killed.
    """

    weights_mib: float
    work_mib: float | None
    rows: int
    how: str

    @property
    def mib(self) -> float | None:
        """Weights and work together."""
        return None if self.work_mib is None else self.weights_mib + self.work_mib

    def to_notes(self) -> dict[str, Any]:
        """As JSON, rounded to a tenth of a MiB, which is finer than systems count."""
        known = self.work_mib is not None and math.isfinite(self.work_mib)
        work = round(self.work_mib or 0.0, 1) if known else None
        return {"weights_mib": round(self.weights_mib, 3), "work_mib": work}


def measure_peak(model: Model, inputs: Mapping[str, Array]) -> Peak:
    """The peak of answering ``inputs``, in evaluation mode, after one call to warm up."""
    module = model.module.eval()
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))

    def answer() -> None:
        with torch.inference_mode():
            call(module, model.inputs, model.outputs, inputs)

    work = work_mib(answer, device)
    return Peak(weights_mib(module), work, count_rows(model.inputs, inputs), how(device))


def compare(before: Peak, after: Peak) -> dict[str, Any]:
    """Both for the notes of a pass, under ``peak``."""
    return {"before": before.to_notes(), "after": after.to_notes(), "rows": after.rows, "how": after.how}


def weights_mib(module: nn.Module) -> float:
    """Parameters and buffers, each storage counted once."""
    seen = {}
    for tensor in (*module.parameters(), *module.buffers()):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values()) / 2**20
