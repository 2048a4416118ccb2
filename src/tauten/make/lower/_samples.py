"""Calibration data in batches of a given size, whatever sizes it came in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tauten.core.rows import count_rows, join_rows, take_rows
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


def gather(data: Iterable[Batch], specs: Sequence[TensorSpec], count: int) -> Arrays:
    """The first samples of the data, at most ``count``: those of the first batch, and of later ones of its shapes."""
    found: list[Arrays] = []
    had = 0
    for some in rows(data, specs, batch=count):
        if found and not _alike(specs, found[0], some):
            continue
        size = count_rows(specs, some)
        found.append(take_rows(specs, some, range(min(size, count - had))))
        had += size
        if had >= count or not any(spec.batch_axis is not None for spec in specs):
            break
    return join_rows(specs, found)


def _alike(specs: Sequence[TensorSpec], one: Arrays, other: Arrays) -> bool:
    """Whether two batches may be joined: of the same shapes, the number of samples aside."""
    shapes = [
        [tuple(size for axis, size in enumerate(arrays[spec.name].shape) if axis != spec.batch_axis) for spec in specs]
        for arrays in (one, other)
    ]
    return shapes[0] == shapes[1]
