"""Batches of any size from a sample of real inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import MeasureError


def has_dynamic_batch(specs: Sequence[TensorSpec]) -> bool:
    """Whether every input counts samples along a named dimension, so that the batch can be chosen."""
    return all(spec.batch_axis is not None for spec in specs)


def rows_of(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> int:
    """How many samples ``arrays`` hold; 1 where the shapes name no batch."""
    for spec in specs:
        if spec.batch_axis is not None:
            return int(arrays[spec.name].shape[spec.batch_axis])
    return 1


def with_batch(specs: Sequence[TensorSpec], sample: Mapping[str, Array], batch: int) -> Arrays:
    """``sample`` with ``batch`` rows: cut, or repeated from its first row on.

    An input without a batch dimension is passed as it is; one whose first dimension is fixed at fewer rows than the
    sample has is cut to those. Raises ``MeasureError`` where an input is missing or has no row.
    """
    found: Arrays = {}
    for spec in specs:
        if spec.name not in sample:
            raise MeasureError(f"sample: expected an array for {spec.name!r}, got {sorted(sample)}")
        array = np.asarray(sample[spec.name])
        axis = spec.batch_axis
        if axis is None:
            fixed = spec.shape[0] if spec.shape and array.ndim == len(spec.shape) else None
            found[spec.name] = array[:fixed] if isinstance(fixed, int) else array
        elif axis >= array.ndim or not array.shape[axis]:
            raise MeasureError(
                f"sample: {spec.name}: expected at least one row of {spec.shape_text}, got {array.shape}"
            )
        else:
            found[spec.name] = np.take(array, np.arange(batch) % array.shape[axis], axis=axis)
    return found
