"""A bounded part of calibration data, for what passes measure on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tauten.core.rows import count_rows, take_rows
from tauten.core.tensor import Array, TensorSpec
from tauten.make.model.task import Batch, Data


@dataclass(frozen=True)
class Samples:
    """The first ``count`` samples of ``data``."""

    data: Data
    specs: tuple[TensorSpec, ...]
    count: int

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of at most ``size`` samples with their labels; cut, never joined, as lengths may differ."""
        left = self.count
        for inputs, labels in self.data:
            rows = count_rows(self.specs, inputs)
            for start in range(0, min(rows, left), size):
                chosen = range(start, min(start + size, rows, left))
                yield take_rows(self.specs, inputs, chosen), _labels(labels, rows, chosen)
            left -= rows
            if left <= 0:
                return


def _labels(labels: Array | None, rows: int, chosen: range) -> Array | None:
    if labels is None or not labels.ndim or len(labels) != rows:
        return None
    return labels[chosen.start : chosen.stop]
