"""Calibration data in batches of a given size, whatever sizes it came in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tauten.core.tensor import Arrays, TensorSpec
from tauten.make.model.task import Batch


def rows(
    data: Iterable[Batch], specs: Sequence[TensorSpec], *, batch: int, limit: int | None = None
) -> Iterator[Arrays]:
    """Batches of inputs with at most ``batch`` samples each, ``limit`` samples in all.

    An input without a batch dimension comes whole with each. Batches are cut, never joined: named dimensions other
    than the batch may differ between them.
    """
    given = 0
    for inputs, _ in data:
        size = count(inputs, specs)
        for start in range(0, size, batch):
            stop = min(start + batch, size, start + (limit - given if limit is not None else size))
            if stop <= start:
                return
            yield cut(inputs, specs, start, stop)
            given += stop - start


def count(inputs: Arrays, specs: Sequence[TensorSpec]) -> int:
    """How many samples a batch holds; 1 where no input has a batch dimension."""
    return next((inputs[spec.name].shape[spec.batch_axis] for spec in specs if spec.batch_axis is not None), 1)


def cut(inputs: Arrays, specs: Sequence[TensorSpec], start: int, stop: int) -> Arrays:
    """The samples from ``start`` to ``stop``."""
    return {
        spec.name: inputs[spec.name]
        if spec.batch_axis is None
        else np.ascontiguousarray(np.take(inputs[spec.name], range(start, stop), axis=spec.batch_axis))
        for spec in specs
    }
