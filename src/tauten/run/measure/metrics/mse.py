"""Mean squared error between the first output and labels of its shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from tauten.core.tensor import Array
from tauten.run.measure.metrics._shapes import alike
from tauten.run.measure.metrics.metric import Scores

__all__ = ["MSE"]


class MeanSquaredError:
    """The mean over a sample's numbers of the squared difference, in the label's unit, squared."""

    unit = "squared error"
    better: Literal["lower", "higher"] = "lower"
    reference = False

    def __call__(self, outputs: Mapping[str, Array], labels: Array | Mapping[str, Array]) -> Scores:
        output, wanted = alike(outputs, labels, "mse")
        return np.asarray(((output - wanted) ** 2).mean(axis=1), dtype=np.float64)


MSE = MeanSquaredError()
