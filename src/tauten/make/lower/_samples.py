"""Calibration data in batches of a given size, whatever sizes it came in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tauten.core.rows import count_rows, take_rows
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
        size = count_rows(specs, inputs)
        for start in range(0, size, batch):
            stop = min(start + batch, size, start + (limit - given if limit is not None else size))
            if stop <= start:
                return
            yield take_rows(specs, inputs, range(start, stop))
            given += stop - start
