"""A metric that a user gives as a plain function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tauten.core.tensor import Array, Arrays
from tauten.errors import TaskError, TautenError
from tauten.run.measure.metrics._shapes import rows
from tauten.run.measure.metrics.metric import Scores


@dataclass(frozen=True)
class FunctionMetric:
    """``function(outputs by name, labels) -> float``, which scores a batch as a whole.

    Every row of a batch gets the batch's score, so that batches weigh by their rows. Intervals then draw batches, not
    rows: give several. ``unit`` is what a point of it is.
    """

    function: Callable[[Arrays, Any], float]
    better: Literal["lower", "higher"] = "higher"
    unit: str = "points"
    reference: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TaskError(f"metric: expected a function (outputs, labels) -> float, got {self.function!r}")
        if self.better not in ("lower", "higher"):
            raise TaskError(f"metric: better: expected 'lower' or 'higher', got {self.better!r}")

    def __call__(self, outputs: Mapping[str, Array], labels: Array | Mapping[str, Array]) -> Scores:
        name = getattr(self.function, "__name__", "function")
        try:
            score = float(self.function(dict(outputs), labels))
        except TautenError:
            raise
        except Exception as fault:
            raise TaskError(f"metric {name}: {type(fault).__name__}: {fault}") from fault
        if not math.isfinite(score):
            raise TaskError(f"metric {name}: expected a finite number, got {score}")
        return np.full(rows(outputs), score)
