"""Top-1 agreement: the share of samples for which the original model picks the same class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from tauten.core.tensor import Array
from tauten.errors import TaskError
from tauten.run.measure.metrics._shapes import first
from tauten.run.measure.metrics.metric import Scores

__all__ = ["AGREEMENT"]


class Agreement:
    """100 where the argmax of the first output over its last axis is the original's, else 0.

    An output of shape ``(batch, tokens, classes)`` gives the share of its tokens. NaN never agrees.
    """

    unit = "%"
    better: Literal["lower", "higher"] = "higher"
    reference = True

    def __call__(self, outputs: Mapping[str, Array], labels: Array | Mapping[str, Array]) -> Scores:
        ours = first(outputs, "agreement")
        if not isinstance(labels, Mapping):
            raise TaskError(f"agreement: expected the original's outputs by name, got {type(labels).__name__}")
        theirs = first(labels, "agreement")
        if ours.shape != theirs.shape or ours.ndim < 2 or not ours.shape[-1]:
            raise TaskError(
                f"agreement: expected outputs of shape (batch, ..., classes), got {ours.shape}, "
                f"and {theirs.shape} from the original"
            )
        same = (ours.argmax(axis=-1) == theirs.argmax(axis=-1)) & ~np.isnan(ours).any(axis=-1)
        return np.asarray(same.reshape(len(same), -1).mean(axis=1) * 100.0, dtype=np.float64)


AGREEMENT = Agreement()
