"""Which samples calls are timed on."""

from __future__ import annotations

import numpy as np

import tauten
from tauten.make.search.evaluator import rows


def task(*shapes: tuple[int, int]) -> tauten.Task:
    start, batches = 0, []
    for count, length in shapes:
        batches.append(np.arange(start, start + count * length, dtype=np.float32).reshape(count, length))
        start += count * length
    return tauten.Task(
        model=lambda: None,  # type: ignore[arg-type,return-value]
        inputs=(tauten.TensorSpec(name="x", shape=("batch", "length")),),
        calibrate=batches,
        metric="cosine",
    )


def test_rows_come_from_as_many_batches_as_it_takes() -> None:
    np.testing.assert_array_equal(rows(task((2, 1), (2, 1), (2, 1)), 5)["x"][:, 0], [0, 1, 2, 3, 4])


def test_rows_of_another_length_are_passed_over() -> None:
    np.testing.assert_array_equal(rows(task((2, 1), (2, 3), (2, 1)), 4)["x"][:, 0], [0, 1, 8, 9])


def test_too_few_rows_are_repeated() -> None:
    np.testing.assert_array_equal(rows(task((2, 1)), 3)["x"][:, 0], [0, 1, 0])
