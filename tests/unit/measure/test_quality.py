"""Quality, what is lost, and metrics that users bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pytest

from tauten.artifact.read import Artifact
from tauten.core.tensor import TensorSpec
from tauten.errors import InputError, MeasureError, TaskError
from tauten.run.engines.engine import Engine
from tauten.run.measure.metrics import METRICS, FunctionMetric, find_metric
from tauten.run.measure.quality import Quality, drop, measure_quality


class Linear(Engine):
    """Scores of three classes: the input itself, with ``shift`` added to the first class."""

    def __init__(self, shift: float = 0.0, axis: int = 0) -> None:
        shape = ("batch", 3) if axis == 0 else (3, "batch")
        super().__init__((TensorSpec(name="x", shape=shape),), (TensorSpec(name="y", shape=shape),))
        self.shift = shift
        self.sizes: list[int] = []

    @classmethod
    def load(cls, artifact: Artifact, *, threads: int) -> Self:
        return cls()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.sizes.append(inputs["x"].shape[self.inputs[0].batch_axis])
        y = inputs["x"].copy()
        if self.shift:
            y[:, 0] += np.float32(self.shift)
        return {"y": y}


def data(rows: int = 40, batch: int = 10, seed: int = 0) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    labels = x.argmax(axis=1)
    return [({"x": x[at : at + batch]}, labels[at : at + batch]) for at in range(0, rows, batch)]


ACCURACY = METRICS.get("accuracy")


def test_quality_is_the_mean_score_over_samples_not_over_batches() -> None:
    batches = [
        ({"x": np.eye(3, dtype=np.float32)}, np.arange(3)),
        ({"x": np.eye(3, dtype=np.float32)[:1]}, np.array([2])),
    ]
    found = measure_quality(Linear(), batches, ACCURACY)
    assert found.measure.value == 75.0
    np.testing.assert_array_equal(found.scores, [100, 100, 100, 0])
    assert (found.measure.unit, found.measure.better, found.measure.repeats) == ("%", "higher", 4)


def test_all_right_still_has_an_interval() -> None:
    found = measure_quality(Linear(), data(400), ACCURACY)
    assert found.measure.value == found.measure.high == 100.0
    assert 98.5 < found.measure.low < 99.5


@pytest.mark.parametrize("batch", [1, 3, 4, 10, None])
def test_large_batches_run_in_parts_and_score_the_same(batch: int | None) -> None:
    engine = Linear(1.0)
    whole = measure_quality(Linear(1.0), data(), ACCURACY)
    parts = measure_quality(engine, data(), ACCURACY, batch=batch)
    np.testing.assert_array_equal(parts.scores, whole.scores)
    assert max(engine.sizes) <= (batch or 10)
    assert sum(engine.sizes) == 40


def test_parts_are_cut_along_the_batch_wherever_it_is() -> None:
    engine = Linear(axis=1)
    seen: list[np.ndarray] = []
    metric = FunctionMetric(lambda outputs, labels: seen.append(outputs["y"]) or 0.0)
    x = np.arange(15, dtype=np.float32).reshape(3, 5)
    measure_quality(engine, [({"x": x}, np.zeros(5))], metric, batch=2)
    assert engine.sizes == [2, 2, 1]
    np.testing.assert_array_equal(seen[0][1:], x[1:])


def test_nothing_lost_has_an_interval_around_zero() -> None:
    first, second = (measure_quality(Linear(), data(), ACCURACY) for _ in range(2))
    lost = drop(first, second, "higher")
    assert (lost.value, lost.unit, lost.better) == (0.0, "points", "lower")
    assert lost.low < 0 < lost.high


def test_what_is_lost_is_positive_and_turns_around() -> None:
    good, bad = measure_quality(Linear(), data(), ACCURACY), measure_quality(Linear(3.0), data(), ACCURACY)
    lost, won = drop(good, bad, "higher"), drop(bad, good, "higher")
    assert lost.value == pytest.approx(good.measure.value - bad.measure.value)
    assert lost.low > 0
    assert won.value == -lost.value


@pytest.mark.parametrize(("name", "sign"), [("mae", 1), ("mse", 1)])
def test_errors_that_grow_are_lost_points(name: str, sign: int) -> None:
    metric = METRICS.get(name)
    batches = [(inputs, inputs["x"]) for inputs, _ in data()]
    good, bad = measure_quality(Linear(0.1), batches, metric), measure_quality(Linear(0.5), batches, metric)
    assert drop(good, bad, "lower").value == pytest.approx(bad.measure.value - good.measure.value)
    assert sign * drop(good, bad, "lower").low > 0


def test_pairing_sees_what_separate_intervals_do_not() -> None:
    rng = np.random.default_rng(0)
    batches = [({"x": rng.normal(size=(50, 3)).astype(np.float32)}, rng.normal(0, 5, (50, 3))) for _ in range(4)]
    metric = METRICS.get("mae")
    first, second = measure_quality(Linear(), batches, metric), measure_quality(Linear(0.3), batches, metric)
    assert not first.measure.beats(second.measure)
    lost = drop(first, second, "lower")
    assert lost.high - lost.low < (first.measure.high - first.measure.low) / 4


def test_scores_of_other_samples_cannot_be_paired() -> None:
    with pytest.raises(MeasureError, match="same samples"):
        drop(measure_quality(Linear(), data(20), ACCURACY), measure_quality(Linear(), data(30), ACCURACY), "higher")


def test_fidelity_compares_with_the_original_and_needs_no_labels() -> None:
    unlabelled = [(inputs, None) for inputs, _ in data()]
    for name in ("cosine", "agreement", "sqnr"):
        metric = METRICS.get(name)
        same = measure_quality(Linear(), unlabelled, metric, Linear())
        other = measure_quality(Linear(0.5), unlabelled, metric, lambda inputs: {"y": inputs["x"]})
        assert same.measure.value == pytest.approx(150.0 if name == "sqnr" else 100.0)
        assert other.measure.value < same.measure.value
    with pytest.raises(TaskError, match="no reference was given"):
        measure_quality(Linear(), unlabelled, METRICS.get("cosine"))


def test_cosine_and_sqnr_have_their_textbook_values() -> None:
    a, b = {"y": np.array([[3.0, 4.0]])}, {"y": np.array([[4.0, 3.0]])}
    assert METRICS.get("cosine")(a, b) == pytest.approx([96.0])
    assert METRICS.get("sqnr")({"y": np.array([[1.1, 0.0]])}, {"y": np.array([[1.0, 0.0]])}) == pytest.approx([20.0])
    huge = {"y": np.array([[3e300, 4e300]])}
    assert METRICS.get("cosine")(huge, b) == pytest.approx([96.0])
    assert METRICS.get("cosine")({"y": np.zeros((1, 2))}, {"y": np.zeros((1, 2))}) == pytest.approx([100.0])
    assert METRICS.get("cosine")({"y": np.zeros((1, 2))}, b) == pytest.approx([0.0])


def test_top5_counts_five() -> None:
    scores = {"y": np.tile(np.arange(8.0), (8, 1))}
    np.testing.assert_array_equal(METRICS.get("top5")(scores, np.arange(8)), [0, 0, 0, 100, 100, 100, 100, 100])
    with pytest.raises(TaskError, match="more than 5 classes"):
        METRICS.get("top5")({"y": np.zeros((2, 5))}, np.zeros(2, int))
    assert METRICS.get("top5")({"y": np.zeros((1, 8))}, np.array([7])) == [0.0], "ties are no hits for the last class"


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.array([0.0, 1.0]), "integer labels"),
        (np.array([0, 3]), "labels from 0 to 2, got 0 to 3"),
        (np.array([-1, 0]), "labels from 0 to 2, got -1 to 0"),
        (np.zeros((2, 2), int), r"got \(2, 3\) and int64\(2, 2\)"),
        (np.array(["a", "b"]), "integer labels"),
    ],
)
def test_labels_that_do_not_fit_are_told(labels: np.ndarray, told: str) -> None:
    with pytest.raises(TaskError, match=told):
        ACCURACY({"y": np.zeros((2, 3))}, labels)


def test_a_column_of_labels_is_labels() -> None:
    np.testing.assert_array_equal(ACCURACY({"y": np.eye(2)}, np.array([[0], [0]])), [100, 0])


def test_regression_takes_a_column_for_a_row() -> None:
    np.testing.assert_array_equal(METRICS.get("mae")({"y": np.array([[1.0], [2.0]])}, np.array([1.0, 4.0])), [0, 2])


def test_missing_labels_and_samples_are_told() -> None:
    with pytest.raises(TaskError, match="batch 1: this metric needs labels"):
        measure_quality(Linear(), [data()[0], (data()[0][0], None)], ACCURACY)
    with pytest.raises(TaskError, match="at least one sample"):
        measure_quality(Linear(), [], ACCURACY)


def test_inputs_that_do_not_fit_are_told() -> None:
    with pytest.raises(InputError, match="expected shape"):
        measure_quality(Linear(), [({"x": np.zeros((2, 4), np.float32)}, np.zeros(2, int))], ACCURACY, batch=1)


def test_scores_that_are_not_finite_are_told() -> None:
    with pytest.raises(MeasureError, match="batch 0: 2 scores are not finite"):
        measure_quality(Linear(np.nan), [({"x": np.zeros((2, 3), np.float32)}, np.zeros((2, 3)))], METRICS.get("mse"))


def f1(outputs: Mapping[str, Any], labels: Any) -> float:
    return float((outputs["y"].argmax(axis=1) == labels).mean())


def test_a_plain_function_is_a_metric() -> None:
    metric = find_metric(f1)
    assert (metric.better, metric.unit, metric.reference) == ("higher", "points", False)
    batches = [
        ({"x": np.eye(3, dtype=np.float32)}, np.arange(3)),
        ({"x": np.eye(3, dtype=np.float32)[:1]}, np.array([2])),
    ]
    found = measure_quality(Linear(), batches, metric)
    assert found.measure.value == 0.75, "batches weigh by their rows"
    assert found.measure.repeats == 2, "a batch that is scored as a whole is one observation"
    assert (found.measure.low, found.measure.high) == (0.0, 1.0)


def test_an_interval_over_batches_is_wider_than_one_over_their_rows_would_be() -> None:
    batches = data(200, 20)
    by_batch = measure_quality(Linear(1.0), batches, FunctionMetric(f1))
    pretended = Quality(by_batch.measure, by_batch.scores)
    other = measure_quality(Linear(2.0), batches, FunctionMetric(f1))
    lost, narrow = drop(by_batch, other, "higher"), drop(pretended, other, "higher")
    assert lost.repeats == 10
    assert lost.high - lost.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda outputs, labels: outputs["z"], "metric <lambda>: KeyError"),
        (lambda outputs, labels: float("nan"), "expected a finite number, got nan"),
        (lambda outputs, labels: None, "metric <lambda>: TypeError"),
    ],
)
def test_a_function_that_fails_is_told(function: Any, told: str) -> None:
    with pytest.raises(TaskError, match=told):
        measure_quality(Linear(), data(), find_metric(function))


def test_metrics_are_found_or_told() -> None:
    assert find_metric("accuracy") is find_metric(ACCURACY) is ACCURACY
    with pytest.raises(TaskError, match=r"expected one of accuracy, .* got 'charm'"):
        find_metric("charm")
    for odd in (3, None, type(ACCURACY)):
        with pytest.raises(TaskError, match="metric: expected"):
            find_metric(odd)
    with pytest.raises(TaskError, match="better"):
        FunctionMetric(f1, better="bigger")
    with pytest.raises(TaskError, match="function"):
        FunctionMetric("f1")
