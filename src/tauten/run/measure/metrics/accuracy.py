"""Accuracy: the share of samples whose highest score is the right class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from tauten.core.tensor import Array
from tauten.run.measure.metrics._shapes import classes
from tauten.run.measure.metrics.metric import Scores

__all__ = ["ACCURACY"]


class Accuracy:
    """100 where the argmax of the first output, ``(batch, classes)``, is the label, else 0; NaN is never right."""

    unit = "%"
    better: Literal["lower", "higher"] = "higher"
    reference = False

    def __call__(self, outputs: Mapping[str, Array], labels: Array | Mapping[str, Array]) -> Scores:
        output, wanted = classes(outputs, labels, "accuracy")
        right = (output.argmax(axis=1) == wanted) & ~np.isnan(output).any(axis=1)
        return np.where(right, 100.0, 0.0)


ACCURACY = Accuracy()
