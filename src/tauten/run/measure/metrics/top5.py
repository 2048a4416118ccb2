"""Top-5 accuracy: the share of samples whose right class is among the five highest scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from tauten.core.tensor import Array
from tauten.errors import TaskError
from tauten.run.measure.metrics._shapes import classes
from tauten.run.measure.metrics.metric import Scores

__all__ = ["TOP5"]


class Top5:
    """100 where fewer than five classes score above the label's in the first output, ``(batch, classes)``, else 0.

    Ties with the label's score that come before it count above it, as in a stable sort.
    """

    unit = "%"
    better: Literal["lower", "higher"] = "higher"
    reference = False

    def __call__(self, outputs: Mapping[str, Array], labels: Array | Mapping[str, Array]) -> Scores:
        output, wanted = classes(outputs, labels, "top5")
        if output.shape[1] <= 5:
            raise TaskError(f"top5: expected more than 5 classes, got {output.shape[1]}: use accuracy")
        own = output[np.arange(len(output)), wanted][:, None]
        before = np.arange(output.shape[1])[None, :] < wanted[:, None]
        above = (output > own) | ((output == own) & before)
        return np.where((above.sum(axis=1) < 5) & ~np.isnan(output).any(axis=1), 100.0, 0.0)


TOP5 = Top5()
