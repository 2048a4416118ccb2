"""A quick answer to whether arrays fit a model's inputs, worked out once for all calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tauten.core.tensor import Array, TensorSpec


def make_fits(specs: Sequence[TensorSpec]) -> Callable[[Mapping[str, Array]], bool]:
    """A function that says whether arrays surely fit ``specs``.

    Where it says no, ``check_arrays`` tells why, or finds that they fit after all (a subclass of arrays). It costs a
    microsecond, which a model of 15 feels.
    """
    known = [
        (
            spec.name,
            np.dtype(spec.dtype),
            len(spec.shape),
            tuple((axis, dim) for axis, dim in enumerate(spec.shape) if isinstance(dim, int)),
            tuple((axis, dim) for axis, dim in enumerate(spec.shape) if isinstance(dim, str)),
        )
        for spec in specs
    ]
    count = len(known)
    # A name that stands once in all shapes may have any size.
    named = [dim for *_, dims in known for _, dim in dims]
    alone = len(set(named)) == len(named)

    def fits(arrays: Mapping[str, Array]) -> bool:
        if len(arrays) != count:
            return False
        sizes: dict[str, int] = {}
        for name, dtype, rank, fixed, free in known:
            array = arrays.get(name)
            # One dtype is equal to another only where their byte orders are.
            if type(array) is not np.ndarray or array.dtype != dtype:
                return False
            shape = array.shape
            if len(shape) != rank:
                return False
            for axis, size in fixed:
                if shape[axis] != size:
                    return False
            if not alone:
                for axis, dim in free:
                    if sizes.setdefault(dim, shape[axis]) != shape[axis]:
                        return False
        return True

    return fits
