"""Batches of any size from a sample."""

from __future__ import annotations

import numpy as np
import pytest

from tauten.core.tensor import TensorSpec
from tauten.errors import MeasureError
from tauten.run.measure._sample import has_dynamic_batch, rows_of, with_batch

SPECS = (TensorSpec(name="x", shape=("batch", 2)), TensorSpec(name="last", shape=(2, "batch")))
SAMPLE = {"x": np.arange(6).reshape(3, 2), "last": np.arange(6).reshape(2, 3)}


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_rows_are_cut_or_repeated_along_the_batch(batch: int) -> None:
    found = with_batch(SPECS, SAMPLE, batch)
    rows = [row % 3 for row in range(batch)]
    np.testing.assert_array_equal(found["x"], SAMPLE["x"][rows])
    np.testing.assert_array_equal(found["last"], SAMPLE["last"][:, rows])
    assert rows_of(SPECS, found) == batch


def test_a_fixed_shape_is_met_by_cutting() -> None:
    fixed = (TensorSpec(name="x", shape=(1, 2)), TensorSpec(name="last", shape=(2, "batch")))
    assert not has_dynamic_batch(fixed)
    assert with_batch(fixed, SAMPLE, 1)["x"].shape == (1, 2)


def test_a_sample_that_lacks_an_input_or_rows_is_refused() -> None:
    with pytest.raises(MeasureError, match="expected an array for 'last', got"):
        with_batch(SPECS, {"x": SAMPLE["x"]}, 1)
    with pytest.raises(MeasureError, match="at least one row"):
        with_batch(SPECS, {**SAMPLE, "x": np.zeros((0, 2))}, 1)
