"""What every metric must hold.

Each function of ``CHECKS`` takes a metric and an example, and raises ``AssertionError`` where the contract is broken.
``find_example`` gives an example that suits the bundled kinds: classes, numbers, or the original's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tauten.core.tensor import Array, Arrays
from tauten.errors import TaskError
from tauten.run.measure.metrics.metric import Metric, Scores
from tauten.testing._hold import hold

ROWS: Final = 12
CLASSES: Final = 7


@dataclass(frozen=True)
class Example:
    """Answers of some quality, what they are compared with, and answers that could not be better."""

    outputs: Arrays
    labels: Array | Arrays
    perfect: Arrays


def find_example(metric: Metric) -> Example:
    """An example of the kind that the metric takes; ``TaskError`` where it takes none of the bundled kinds."""
    rng = np.random.default_rng(0)
    outputs: Arrays = {"y": rng.normal(size=(ROWS, CLASSES)).astype(np.float32)}
    if metric.reference:
        theirs: Arrays = {"y": rng.normal(size=(ROWS, CLASSES)).astype(np.float32)}
        return Example(outputs, theirs, theirs)
    classes = rng.integers(0, CLASSES, ROWS)
    numbers = rng.normal(size=(ROWS, CLASSES)).astype(np.float32)
    examples = (
        Example(outputs, classes, {"y": np.eye(CLASSES, dtype=np.float32)[classes]}),
        Example(outputs, numbers, {"y": numbers}),
    )
    for example in examples:
        try:
            metric(example.outputs, example.labels)
        except TaskError:
            continue
        return example
    raise TaskError("the metric takes neither class labels nor numbers: give an example of its own")


def describes_itself(metric: Metric, example: Example) -> None:
    """A unit, a direction, and whether it compares with the original."""
    hold(isinstance(metric.unit, str) and metric.unit, f"unit: {metric.unit!r}")
    hold(metric.better in ("lower", "higher"), f"better: {metric.better!r}")
    hold(isinstance(metric.reference, bool), f"reference: {metric.reference!r}")


def scores_each_sample(metric: Metric, example: Example) -> None:
    """One finite float64 a sample."""
    scores = metric(example.outputs, example.labels)
    rows = len(next(iter(example.outputs.values())))
    hold(scores.shape == (rows,) and scores.dtype == np.float64, f"expected ({rows},) float64, got {scores!r}")
    hold(np.isfinite(scores).all(), f"scores are not finite: {scores}")
    hold(metric.unit != "%" or (np.abs(scores) <= 100).all(), f"percent beyond 100: {scores}")


def scores_samples_alone(metric: Metric, example: Example) -> None:
    """A sample's score does not depend on the others of its batch, unless the metric says so (``together``)."""
    if getattr(metric, "together", False):
        return
    together = metric(example.outputs, example.labels)
    alone = np.concatenate([_cut(metric, example, slice(row, row + 1)) for row in range(len(together))])
    hold(np.allclose(together, alone, rtol=1e-9, atol=1e-9), f"alone {alone}, together {together}")


def prefers_perfect_answers(metric: Metric, example: Example) -> None:
    """Perfect answers score as well as any, and better than others on the whole."""
    best = metric(example.perfect, example.labels)
    others = metric(example.outputs, example.labels)
    sign = 1 if metric.better == "higher" else -1
    hold((sign * best >= sign * others).all(), f"perfect {best}, others {others}")
    hold(sign * best.mean() > sign * others.mean(), f"perfect {best.mean()} is no better than {others.mean()}")


def leaves_its_arguments_alone(metric: Metric, example: Example) -> None:
    """Neither outputs nor labels change."""
    held = {**example.outputs, **({f"labels {k}": v for k, v in _labels(example).items()})}
    before = {name: array.tobytes() for name, array in held.items()}
    metric(example.outputs, example.labels)
    hold(all(array.tobytes() == before[name] for name, array in held.items()), "an argument was changed")


def refuses_what_does_not_fit(metric: Metric, example: Example) -> None:
    """Fewer labels than samples, no outputs, a number for a batch: ``TaskError``."""
    fewer: Any = {name: array[:-1] for name, array in _labels(example).items()}
    fewer = fewer if isinstance(example.labels, Mapping) else fewer["labels"]
    scalars: Arrays = {name: np.ones((), np.float32) for name in example.outputs}
    for outputs, labels in ((example.outputs, fewer), ({}, example.labels), (scalars, example.labels)):
        try:
            metric(outputs, labels)
        except TaskError as fault:
            hold("expected" in str(fault), f"the message does not say what was expected: {fault}")
        else:
            raise AssertionError("expected TaskError for shapes that do not fit")


def stays_sane_on_odd_numbers(metric: Metric, example: Example) -> None:
    """Answers of zeros, NaN or infinity raise nothing, and NaN is never as good as perfect."""
    best = metric(example.perfect, example.labels)
    for value in (0.0, np.inf, np.nan):
        odd: Arrays = {name: np.full_like(array, value) for name, array in example.outputs.items()}
        with np.errstate(invalid="ignore"):
            scores = metric(odd, example.labels)
        hold(scores.shape == best.shape, f"{value}: {scores.shape}")
        if np.isnan(value):
            sign = 1 if metric.better == "higher" else -1
            hold(not (sign * scores >= sign * best).any(), f"NaN scored {scores}, perfect answers {best}")


def _labels(example: Example) -> dict[str, Array]:
    return dict(example.labels) if isinstance(example.labels, Mapping) else {"labels": example.labels}


def _cut(metric: Metric, example: Example, rows: slice) -> Scores:
    labels: Any = {name: array[rows] for name, array in _labels(example).items()}
    labels = labels if isinstance(example.labels, Mapping) else labels["labels"]
    return metric({name: array[rows] for name, array in example.outputs.items()}, labels)


CHECKS: Final[tuple[Callable[[Metric, Example], None], ...]] = (
    describes_itself,
    scores_each_sample,
    scores_samples_alone,
    prefers_perfect_answers,
    leaves_its_arguments_alone,
    refuses_what_does_not_fit,
    stays_sane_on_odd_numbers,
)
