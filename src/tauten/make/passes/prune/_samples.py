"""A bounded part of calibration data, for what passes measure on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tauten.core.rows import count_rows, take_rows
from tauten.core.tensor import Array, Arrays, TensorSpec
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

    def together(self, most: int) -> tuple[Arrays, int]:
        """Inputs of at most ``most`` samples as one batch, and how many there are.

        Only those are taken whose other dimensions are the first one's; of a model without samples, the first batch.
        """
        parts: list[Arrays] = []
        for inputs, _ in Samples(self.data, self.specs, min(self.count, most)).batches(most):
            if not parts or all(_alike(spec, inputs, parts[0]) for spec in self.specs):
                parts.append(inputs)
        joined = {
            spec.name: parts[0][spec.name]
            if spec.batch_axis is None
            else np.concatenate([part[spec.name] for part in parts], axis=spec.batch_axis)
            for spec in self.specs
        }
        return joined, count_rows(self.specs, joined)


def _alike(spec: TensorSpec, one: Arrays, other: Arrays) -> bool:
    """Whether the two can be joined along the samples."""
    if spec.batch_axis is None:
        return False
    shapes = [list(arrays[spec.name].shape) for arrays in (one, other)]
    for shape in shapes:
        shape.pop(spec.batch_axis)
    return shapes[0] == shapes[1]


def _labels(labels: Array | None, rows: int, chosen: range) -> Array | None:
    if labels is None or not labels.ndim or len(labels) != rows:
        return None
    return labels[chosen.start : chosen.stop]
