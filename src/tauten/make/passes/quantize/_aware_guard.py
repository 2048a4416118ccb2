"""Whether training a quantized model has paid: what is trained is held against what was there before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from tauten.core.tensor import Array
from tauten.make.model.fit import has_labels
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.run.measure.metrics import Metric, find_metric

_WITHOUT_LABELS = "sqnr"


@dataclass(frozen=True)
class Judge:
    """Scores modules by the task's metric on ``validate``; without labels by how near they come to the original.

    Without ``validate`` it is ``calibrate`` that tells how near.
    """

    model: Model
    context: Context

    def __call__(self, module: nn.Module) -> float:
        """The mean score of ``module``."""
        metric, split = self._chosen()
        parts = []
        for inputs, labels in self.context.task.data(split):
            answers = forward(module, self.model.inputs, self.model.outputs, inputs)
            against = labels if not metric.reference else self._original(inputs)
            if against is not None:
                parts.append(metric(answers, against))
        return float(np.concatenate(parts).mean())

    def prefers(self, one: float, other: float) -> bool:
        """Whether a score of ``one`` is at least as good as ``other``; what is no number is worse than any."""
        if not np.isfinite(one):
            return False
        better: Literal["lower", "higher"] = self._chosen()[0].better
        return not np.isfinite(other) or (one <= other if better == "lower" else one >= other)

    def told(self) -> str:
        """What is judged by, in words."""
        metric, split = self._chosen()
        task = self.context.task
        if metric.reference and not find_metric(task.metric).reference:
            return f"{_WITHOUT_LABELS} against the original on {split}"
        name = task.metric if isinstance(task.metric, str) else getattr(task.metric, "__name__", "the metric")
        return f"{name} on {split}"

    def _chosen(self) -> tuple[Metric, str]:
        task = self.context.task
        metric = find_metric(task.metric)
        labelled = task.has("validate") and has_labels(task.data("validate"))
        if not metric.reference and not labelled:
            metric = find_metric(_WITHOUT_LABELS)
        return metric, "validate" if task.has("validate") else "calibrate"

    def _original(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return forward(self.context.reference, self.model.inputs, self.model.outputs, inputs)
