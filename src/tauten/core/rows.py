"""Arrays at a model's border, seen as rows: the samples along the batch dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import InputError


def has_batch(specs: Sequence[TensorSpec]) -> bool:
    """Whether every input counts samples along a named dimension, so that the batch can be chosen."""
    return all(spec.batch_axis is not None for spec in specs)


def count_rows(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> int:
    """How many samples ``arrays`` hold; 1 where the shapes name no batch."""
    return next((arrays[spec.name].shape[spec.batch_axis] for spec in specs if spec.batch_axis is not None), 1)


def take_rows(specs: Sequence[TensorSpec], arrays: Mapping[str, Array], rows: Sequence[int]) -> Arrays:
    """The samples at ``rows``, in that order. An input without a batch dimension is passed as it is."""
    return {
        spec.name: arrays[spec.name]
        if spec.batch_axis is None
        else np.ascontiguousarray(np.take(arrays[spec.name], rows, axis=spec.batch_axis))
        for spec in specs
    }


def join_rows(specs: Sequence[TensorSpec], parts: Sequence[Mapping[str, Array]]) -> Arrays:
    """The samples of all ``parts``, which are of one shape but for their number.

    An input without a batch dimension is the first part's.
    """
    return {
        spec.name: parts[0][spec.name]
        if spec.batch_axis is None or len(parts) == 1
        else np.concatenate([part[spec.name] for part in parts], axis=spec.batch_axis)
        for spec in specs
    }


def resize_rows(specs: Sequence[TensorSpec], arrays: Mapping[str, Array], count: int) -> Arrays:
    """``count`` samples: cut short, or repeated from the first on.

    An input without a batch dimension is passed as it is; one whose first dimension is fixed at fewer rows than it has
    here is cut to those. Raises ``InputError`` where an input is missing or has no row.
    """
    resized: Arrays = {}
    for spec in specs:
        if spec.name not in arrays:
            raise InputError(f"expected an array for {spec.name!r}, got {sorted(arrays)}")
        array, axis = np.asarray(arrays[spec.name]), spec.batch_axis
        if axis is None:
            fixed = spec.shape[0] if spec.shape and array.ndim == len(spec.shape) else None
            resized[spec.name] = array[:fixed] if isinstance(fixed, int) else array
        elif axis >= array.ndim or not array.shape[axis]:
            raise InputError(f"{spec.name}: expected at least one row of {spec.shape_text}, got {array.shape}")
        else:
            resized[spec.name] = np.take(array, np.arange(count) % array.shape[axis], axis=axis)
    return resized
