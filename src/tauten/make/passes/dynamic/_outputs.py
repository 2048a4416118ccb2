"""How alike a model's outputs are before and after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tauten.core.rows import count_rows, take_rows
from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.make.model.task import Batch

_TOLERANCE: Final = 1e-4  # of the largest number


def first_samples(data: Iterable[Batch], specs: Sequence[TensorSpec], samples: int) -> Iterator[Arrays]:
    """Batches of inputs with the first ``samples`` in all."""
    left = samples
    for inputs, _ in data:
        size = min(left, count_rows(specs, inputs))
        if not size:
            return
        yield take_rows(specs, inputs, range(size))
        left -= size


def close(before: Arrays, after: Arrays) -> bool:
    """Whether outputs are the same but for float32 in another order of addition."""
    for name, array in before.items():
        other = after[name]
        if array.shape != other.shape:
            return False
        if not np.issubdtype(array.dtype, np.floating):
            if not np.array_equal(array, other):
                return False
        elif not np.abs(np.subtract(array, other)).max(initial=0) <= _TOLERANCE * np.abs(array).max(initial=1e-30):
            return False
    return True


def similarity(before: Sequence[Arrays], after: Sequence[Arrays]) -> dict[str, float]:
    """The mean cosine of a sample's output with what it was, for each output of floats."""
    found = {}
    for name, first in before[0].items():
        if np.issubdtype(first.dtype, np.floating):
            cosines = [_cosines(one, other, name) for one, other in zip(before, after, strict=True)]
            found[name] = round(float(np.concatenate(cosines).mean()), 6)
    return found


def _cosines(before: Mapping[str, Array], after: Mapping[str, Array], name: str) -> npt.NDArray[np.float64]:
    one, other = (outputs[name].reshape(len(outputs[name]), -1).astype(np.float64) for outputs in (before, after))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(1) / np.maximum(norms, 1e-30))
