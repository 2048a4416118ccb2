"""Quality: how well an engine answers, and what is lost against another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tauten.core.measure import Measure
from tauten.core.rows import count_rows, has_batch, take_rows
from tauten.core.tensor import Array, Arrays, check_arrays
from tauten.errors import MeasureError, TaskError
from tauten.run.engines.engine import Engine
from tauten.run.measure._statistics import bootstrap_ratio, paired_shares, wilson
from tauten.run.measure.metrics import FunctionMetric, find_metric
from tauten.run.measure.metrics.metric import Metric, Scores

__all__ = ["FunctionMetric", "Quality", "drop", "find_metric", "measure_quality"]

Answers = Callable[[Mapping[str, Array]], Arrays]
"""An engine, or anything else that answers arrays by name."""


@dataclass(frozen=True)
class Quality:
    """The mean of a metric, and the scores it is the mean of.

    ``scores`` has shape ``(samples,)``. ``groups`` says which batch each score came from where the metric scores a
    batch as a whole, so that its rows are one observation and not many; else it is ``None``.
    """

    measure: Measure
    scores: Scores
    groups: npt.NDArray[np.int64] | None = None


def measure_quality(
    engine: Engine,
    batches: Iterable[tuple[Mapping[str, Array], Array | None]],
    metric: Metric,
    reference: Answers | None = None,
    *,
    batch: int | None = None,
) -> Quality:
    """The mean score over all samples of ``batches``, with its 95 % interval.

    A batch of more than ``batch`` rows is run in parts of that many (by default it runs as it is given); the metric
    sees its outputs joined again. Where all scores are 0 or 100 % the interval is Wilson's; else it is a bootstrap
    over samples, or over batches for a ``FunctionMetric``. A fidelity metric compares with what ``reference`` answers.

    Raises ``TaskError`` where batches, labels or the reference are missing or do not fit, ``MeasureError`` where a
    score is not finite.
    """
    if metric.reference and reference is None:
        raise TaskError("this metric compares with the original model, and no reference was given")
    parts: list[Scores] = []
    for index, (inputs, labels) in enumerate(batches):
        outputs = _run(engine, inputs, batch)
        if metric.reference and reference is not None:
            scores = metric(outputs, reference(inputs))
        elif labels is None:
            raise TaskError(f"batch {index}: this metric needs labels, and the batch has none")
        else:
            scores = metric(outputs, labels)
        if not np.isfinite(scores).all():
            raise MeasureError(f"batch {index}: {int((~np.isfinite(scores)).sum())} scores are not finite")
        parts.append(scores)
    if not sum(len(scores) for scores in parts):
        raise TaskError("expected at least one sample to judge quality by, got none")
    groups = None
    if isinstance(metric, FunctionMetric) or getattr(metric, "together", False):
        groups = np.repeat(np.arange(len(parts)), [len(scores) for scores in parts])
    scores = np.concatenate(parts)
    return Quality(_summary(scores, groups, metric), scores, groups)


def drop(baseline: Quality, candidate: Quality, better: Literal["lower", "higher"]) -> Measure:
    """What ``candidate`` lost against ``baseline`` on the same samples, in points of the metric; below 0 it won.

    ``better`` is which way the metric is better. The 95 % interval is paired: Agresti and Min's where all scores are
    0 or 100 %, else a bootstrap over samples (or over batches, where batches were scored).
    """
    first, second = baseline.scores, candidate.scores
    if first.shape != second.shape:
        raise MeasureError(f"expected scores of the same samples, got {first.shape} and {second.shape}")
    unit = baseline.measure.unit
    if _right_or_wrong(first, unit) and _right_or_wrong(second, unit):
        lost, won = int(np.sum(first > second)), int(np.sum(second > first))
        value, low, high = (100.0 * share for share in paired_shares(lost, won, len(first)))
        repeats = len(first)
    else:
        lost_each = second - first if better == "lower" else first - second
        sums, counts = _by_group(lost_each, baseline.groups)
        value, low, high = bootstrap_ratio(sums, counts)
        repeats = len(sums)
    return Measure(
        value=value, low=low, high=high, unit="points", better="lower", repeats=repeats, on=f"{len(first)} samples"
    )


def _run(engine: Engine, inputs: Mapping[str, Array], batch: int | None) -> Arrays:
    check_arrays(engine.inputs, inputs)
    rows = count_rows(engine.inputs, inputs)
    if batch is None or rows <= batch or not has_batch(engine.inputs):
        return engine(inputs)
    parts = [
        engine(take_rows(engine.inputs, inputs, range(start, min(start + batch, rows))))
        for start in range(0, rows, batch)
    ]
    axes = {spec.name: spec.batch_axis or 0 for spec in engine.outputs}
    return {name: np.concatenate([part[name] for part in parts], axis=axes.get(name, 0)) for name in parts[0]}


def _summary(scores: Scores, groups: npt.NDArray[np.int64] | None, metric: Metric) -> Measure:
    if groups is None and _right_or_wrong(scores, metric.unit):
        value, low, high = (100.0 * share for share in wilson(float((scores == 100.0).sum()), len(scores)))
        repeats = len(scores)
    else:
        sums, counts = _by_group(scores, groups)
        value, low, high = bootstrap_ratio(sums, counts)
        repeats = len(sums)
    on = f"{len(scores)} samples"
    return Measure(value=value, low=low, high=high, unit=metric.unit, better=metric.better, repeats=repeats, on=on)


def _by_group(scores: Scores, groups: npt.NDArray[np.int64] | None) -> tuple[Scores, Scores]:
    """Sums and counts of the units that a bootstrap draws."""
    if groups is None:
        return scores, np.ones(len(scores))
    sums = np.bincount(groups, weights=scores).astype(np.float64)
    return sums, np.bincount(groups).astype(np.float64)


def _right_or_wrong(scores: Scores, unit: str) -> bool:
    return unit == "%" and bool(np.isin(scores, (0.0, 100.0)).all())
