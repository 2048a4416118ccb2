"""The measure that the zoo is judged by must not take what it cannot compare for alike."""

from __future__ import annotations

import numpy as np
import pytest

from tauten.core.tensor import Array
from tauten.testing.zoo.cut import difference

ONES = np.ones(3, np.float32)
BROKEN = np.array([1, np.nan, 1], np.float32)


def test_a_share_of_the_largest_number() -> None:
    assert difference({"y": 4 * ONES}, {"y": 4 * ONES}) == 0
    assert difference({"y": 4 * ONES}, {"y": 3 * ONES}) == 0.25


@pytest.mark.parametrize(
    ("expected", "found"),
    [(BROKEN, ONES), (ONES, BROKEN), (BROKEN, BROKEN), (ONES, ONES[:2]), (np.array([1, 2]), np.array([1, 3]))],
)
def test_what_is_not_alike_is_infinitely_far(expected: Array, found: Array) -> None:
    assert difference({"y": expected}, {"y": found}) == float("inf")
    assert difference({"x": ONES, "y": expected}, {"x": ONES, "y": found}) == float("inf")


def test_nothing_to_compare_is_not_alike() -> None:
    assert difference({}, {}) == float("inf")
    assert difference({"x": ONES}, {"y": ONES}) == float("inf")
