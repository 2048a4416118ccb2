"""What metrics ask of shapes, and how they say that they do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from tauten.core.tensor import Array
from tauten.errors import TaskError

Floats = npt.NDArray[np.float64]


def first(outputs: Mapping[str, Array], metric: str) -> Array:
    """The first output, which is the one that labels speak of."""
    if not outputs:
        raise TaskError(f"{metric}: expected at least one output, got none")
    return np.asarray(next(iter(outputs.values())))


def rows(outputs: Mapping[str, Array]) -> int:
    """How many samples a batch of outputs holds, counted along the first output's first axis."""
    output = first(outputs, "metric")
    if not output.ndim:
        raise TaskError("metric: expected outputs of shape (batch, ...), got a single number")
    return len(output)


def classes(outputs: Mapping[str, Array], labels: object, metric: str) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The first output, ``(batch, classes)``, and integer labels, ``(batch,)``."""
    output, wanted = first(outputs, metric), np.asarray(labels)
    if wanted.ndim == 2 and wanted.shape[1] == 1:
        wanted = wanted[:, 0]
    if output.ndim != 2 or not output.shape[1] or wanted.shape != output.shape[:1] or wanted.dtype.kind not in "iu":
        raise TaskError(
            f"{metric}: expected an output of shape (batch, classes) and integer labels of shape (batch,), "
            f"got {output.shape} and {wanted.dtype}{wanted.shape}"
        )
    if wanted.size and not (wanted.min() >= 0 and wanted.max() < output.shape[1]):
        raise TaskError(
            f"{metric}: expected labels from 0 to {output.shape[1] - 1}, got {wanted.min()} to {wanted.max()}"
        )
    return output.astype(np.float64), wanted.astype(np.int64)


def alike(outputs: Mapping[str, Array], labels: object, metric: str) -> tuple[Floats, Floats]:
    """The first output and labels of the same size, each flattened to ``(batch, numbers)``."""
    output, wanted = first(outputs, metric), np.asarray(labels)
    # A regression's (batch, 1) against labels (batch,) is the same numbers.
    if not output.ndim or _without_ones(output) != _without_ones(wanted) or wanted.dtype.kind not in "iufb":
        raise TaskError(
            f"{metric}: expected numeric labels of the first output's shape {output.shape}, "
            f"got {wanted.dtype}{wanted.shape}"
        )
    count = len(output)
    return output.reshape(count, -1).astype(np.float64), wanted.reshape(count, -1).astype(np.float64)


def _without_ones(array: Array) -> tuple[int, ...]:
    return array.shape[:1] + tuple(size for size in array.shape[1:] if size != 1)


def pairs(outputs: Mapping[str, Array], reference: object, metric: str) -> Iterator[tuple[Floats, Floats]]:
    """Each output with the original's of that name, both flattened to ``(batch, numbers)``."""
    if not isinstance(reference, Mapping) or set(reference) != set(outputs) or not outputs:
        names = sorted(reference) if isinstance(reference, Mapping) else type(reference).__name__
        raise TaskError(f"{metric}: expected the original's outputs {sorted(outputs)}, got {names}")
    for name, output in outputs.items():
        ours, theirs = np.asarray(output), np.asarray(reference[name])
        if ours.shape != theirs.shape or not ours.ndim:
            raise TaskError(f"{metric}: {name}: expected the original's shape {theirs.shape}, got {ours.shape}")
        yield ours.reshape(len(ours), -1).astype(np.float64), theirs.reshape(len(ours), -1).astype(np.float64)
