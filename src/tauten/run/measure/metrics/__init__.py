"""How well a model answers: one file a metric.

``accuracy`` and the like compare with labels; fidelity metrics (``reference`` is true) compare with what the original
model answers and need no labels. Metrics on a scale from 0 to 1 are told in percent, so that a point is one percent.
"""

from __future__ import annotations

from tauten.core.registry import Registry
from tauten.run.measure.metrics.metric import Metric

METRICS: Registry[Metric] = Registry("metric", "tauten.run.measure.metrics", besides=("metric",))
