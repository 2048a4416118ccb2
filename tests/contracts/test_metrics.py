"""Every metric that is found, against the metrics' contract; and the contract against metrics that break it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tauten.errors import TaskError
from tauten.run.measure.metrics import METRICS
from tauten.run.measure.metrics.accuracy import ACCURACY
from tauten.testing import metrics


@pytest.mark.parametrize("check", metrics.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", METRICS.names())
def test_metric_holds_the_contract(name: str, check: Callable[[object, metrics.Example], None]) -> None:
    metric = METRICS.get(name)
    check(metric, metrics.find_example(metric))


class Broken:
    unit, better, reference = "%", "higher", False

    def __init__(self, function):
        self.function = function

    def __call__(self, outputs, labels):
        return self.function(ACCURACY(outputs, labels), outputs)


def _sort_in_place(scores, outputs):
    outputs["y"].sort(axis=1)
    return scores


@pytest.mark.parametrize(
    ("function", "check"),
    [
        (lambda scores, _: scores.mean(), metrics.scores_each_sample),
        (lambda scores, _: scores.astype(np.float32), metrics.scores_each_sample),
        (lambda scores, _: scores * 2, metrics.scores_each_sample),
        (lambda scores, _: np.full_like(scores, scores.mean()), metrics.scores_samples_alone),
        (lambda scores, _: 100 - scores, metrics.prefers_perfect_answers),
        (_sort_in_place, metrics.leaves_its_arguments_alone),
        (lambda scores, _: np.full_like(scores, 100.0), metrics.stays_sane_on_odd_numbers),
    ],
)
def test_contract_catches(function, check: Callable[[object, metrics.Example], None]) -> None:
    with pytest.raises(AssertionError):
        check(Broken(function), metrics.find_example(ACCURACY))


def test_contract_catches_a_metric_that_takes_anything() -> None:
    class Anything(Broken):
        def __call__(self, outputs, labels):
            return np.zeros(metrics.ROWS)

    with pytest.raises(AssertionError, match="expected TaskError"):
        metrics.refuses_what_does_not_fit(Anything(None), metrics.find_example(ACCURACY))


def test_a_metric_of_another_kind_is_asked_for_its_own_example() -> None:
    class Picky(Broken):
        def __call__(self, outputs, labels):
            raise TaskError("expected boxes")

    with pytest.raises(TaskError, match="example of its own"):
        metrics.find_example(Picky(None))
