"""Mean absolute error between the first output and labels of its shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from tauten.core.tensor import Array
from tauten.run.measure.metrics._shapes import alike
from tauten.run.measure.metrics.metric import Scores

__all__ = ["MAE"]


class MeanAbsoluteError:
    """The mean over a sample's numbers of the absolute difference, in the label's unit."""

    unit = "absolute error"
    better: Literal["lower", "higher"] = "lower"
    reference = False

    def __call__(self, outputs: Mapping[str, Array], labels: Array | Mapping[str, Array]) -> Scores:
        output, wanted = alike(outputs, labels, "mae")
        return np.asarray((np.abs(output - wanted)).mean(axis=1), dtype=np.float64)


MAE = MeanAbsoluteError()
