"""How well a model answers: one file a metric.

::

    Metric
    ├── with labels       accuracy · top5 · mae · mse · FunctionMetric (a user's function)
    └── with the original cosine · agreement · sqnr

``accuracy`` and the like compare with labels; fidelity metrics (``reference`` is true) compare with what the original
model answers and need no labels. Metrics on a scale from 0 to 1 are told in percent, so that a point is one percent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from tauten.core.registry import Registry
from tauten.core.tensor import Arrays
from tauten.errors import TaskError
from tauten.run.measure.metrics._function import FunctionMetric
from tauten.run.measure.metrics.metric import Metric

__all__ = ["METRICS", "FunctionMetric", "Metric", "find_metric"]

METRICS: Registry[Metric] = Registry("metric", "tauten.run.measure.metrics", besides=("metric",))


def find_metric(metric: str | Metric | Callable[[Arrays, Any], float]) -> Metric:
    """A bundled or installed metric by name, a ``Metric`` itself, or a plain function ``(outputs, labels) -> float``.

    A plain function counts as better when higher; ``FunctionMetric(function, better="lower")`` says otherwise.
    Raises ``TaskError`` for an unknown name or anything else, ``PluginError`` where a metric does not import.
    """
    if isinstance(metric, str):
        if metric not in METRICS.names():
            raise TaskError(f"metric: expected one of {', '.join(METRICS.names())}, or a function, got {metric!r}")
        return METRICS.get(metric)
    if isinstance(metric, type):
        raise TaskError(f"metric: expected an instance, got the class {metric.__name__}")
    if all(hasattr(metric, field) for field in ("unit", "better", "reference")):
        return cast("Metric", metric)  # it has all that the protocol asks for
    if callable(metric):
        return FunctionMetric(cast("Callable[[Arrays, Any], float]", metric))
    raise TaskError(f"metric: expected a name, a Metric or a function (outputs, labels) -> float, got {metric!r}")
