"""Batches of any size from a sample."""

from __future__ import annotations

import numpy as np
import pytest

from tauten.core.rows import count_rows, has_batch, join_rows, resize_rows, take_rows
from tauten.core.tensor import TensorSpec
from tauten.errors import InputError

SPECS = (TensorSpec(name="x", shape=("batch", 2)), TensorSpec(name="last", shape=(2, "batch")))
SAMPLE = {"x": np.arange(6).reshape(3, 2), "last": np.arange(6).reshape(2, 3)}


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_rows_are_cut_or_repeated_along_the_batch(batch: int) -> None:
    found = resize_rows(SPECS, SAMPLE, batch)
    rows = [row % 3 for row in range(batch)]
    np.testing.assert_array_equal(found["x"], SAMPLE["x"][rows])
    np.testing.assert_array_equal(found["last"], SAMPLE["last"][:, rows])
    assert count_rows(SPECS, found) == batch


def test_parts_are_joined_along_the_batch() -> None:
    parts = [take_rows(SPECS, SAMPLE, rows) for rows in ([0, 1], [2])]
    joined = join_rows(SPECS, parts)
    for name, array in SAMPLE.items():
        np.testing.assert_array_equal(joined[name], array)
    fixed = (TensorSpec(name="x", shape=(3, 2)),)
    np.testing.assert_array_equal(join_rows(fixed, [SAMPLE, SAMPLE])["x"], SAMPLE["x"])


def test_a_fixed_shape_is_met_by_cutting() -> None:
    fixed = (TensorSpec(name="x", shape=(1, 2)), TensorSpec(name="last", shape=(2, "batch")))
    assert not has_batch(fixed)
    assert resize_rows(fixed, SAMPLE, 1)["x"].shape == (1, 2)


def test_a_sample_that_lacks_an_input_or_rows_is_refused() -> None:
    with pytest.raises(InputError, match="expected an array for 'last', got"):
        resize_rows(SPECS, {"x": SAMPLE["x"]}, 1)
    with pytest.raises(InputError, match="at least one row"):
        resize_rows(SPECS, {**SAMPLE, "x": np.zeros((0, 2))}, 1)


def test_rows_are_taken_in_the_order_asked_for() -> None:
    found = take_rows((*SPECS, TensorSpec(name="scale", shape=(1,))), {**SAMPLE, "scale": np.ones(1)}, [2, 0])
    np.testing.assert_array_equal(found["x"], SAMPLE["x"][[2, 0]])
    np.testing.assert_array_equal(found["last"], SAMPLE["last"][:, [2, 0]])
    assert found["scale"].shape == (1,)
