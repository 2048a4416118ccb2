"""Masks without the detours of the exporter."""

from __future__ import annotations

import numpy as np
import pytest

from tauten.core.tensor import Array
from tauten.make.lower._masks import plain_masks

from .graphs import assert_same, copy, draw, kinds, parse

LOWEST = np.array(np.finfo(np.float32).min)

GATHERED = """
    rows = Shape <start = 0, end = 1> (m)
    row_count = Squeeze (rows)
    columns = Shape <start = 1, end = 2> (m)
    column_count = Squeeze (columns)
    row = Range (zero, row_count, one)
    column = Range (zero, column_count, one)
    row_4 = Unsqueeze (row, last_three)
    column_4 = Unsqueeze (column, first_three)
    both = Max (row_4, column_4)
    size = Shape (both)
    row_wide = Expand (row_4, size)
    column_wide = Expand (column_4, size)
    row_5 = Unsqueeze (row_wide, last)
    column_5 = Unsqueeze (column_wide, last)
    places = Concat <axis = -1> (row_5, column_5)
    seen = GatherND (m, places)
"""
NUMBERS = {
    "zero": np.array(0),
    "one": np.array(1),
    "last": np.array([-1]),
    "last_three": np.array([1, 2, 3]),
    "first_three": np.array([0, 1, 2]),
    "nothing": np.array(0, np.float32),
    "closed": LOWEST,
}


def mask(batch: int, length: int) -> Array:
    """The first token of the first sample, the first two of the second, and so on."""
    return np.tri(batch, length, dtype=bool)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 5), (3, 4)])
def test_a_mask_gathered_at_every_position_is_the_mask(batch: int, length: int) -> None:
    """And what is true everywhere, and gave it a row for each query, is left out."""
    before = parse(
        f"""(float[batch, 2, length, length] s, bool[batch, length] m) => (float[batch, 2, length, length] y) {{
            {GATHERED}
            query = Unsqueeze (column, first_two)
            query_4 = Unsqueeze (query, last)
            sure = GreaterOrEqual (query_4, zero)
            open = And (sure, seen)
            added = Where (open, nothing, closed)
            y = Add (s, added)
        }}""",
        **NUMBERS,
        first_two=np.array([0, 1]),
    )
    after = copy(before)
    assert plain_masks(after) == 2
    assert kinds(after) == ["Unsqueeze", "Where", "Add"]
    assert_same(before, after, s=draw(batch, 2, length, length), m=mask(batch, length))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(row_5, column_5)", "(column_5, row_5)"),  # the mask on its side
        ("Range (zero, column_count, one)", "Range (zero, row_count, one)"),  # other positions than all
        ("column_5 = Unsqueeze (column_wide, last)", "less = Neg (column_wide)\n column_5 = Unsqueeze (less, last)"),
    ],
)
def test_a_mask_gathered_otherwise_stays(old: str, new: str) -> None:
    assert old in GATHERED
    nodes = GATHERED.replace(old, new)
    before = parse(f"(bool[batch, length] m) => (bool[a, 1, 1, b] y) {{ {nodes} y = Not (seen) }}", **NUMBERS)
    after = copy(before)
    assert plain_masks(after) == 0
    assert_same(before, after, m=np.array([[True, False], [True, True]]))


def test_a_mask_that_is_open_everywhere_adds_nothing() -> None:
    before = parse(
        """(float[batch, 2, 3, 3] s) => (float[batch, 2, 3, 3] y) {
            sizes = Shape <start = 0, end = 1> (s)
            wide = Concat <axis = 0> (sizes, rest)
            open = Expand (sure, wide)
            added = Where (open, nothing, closed)
            sum = Add (s, added)
            y = Softmax (sum)
        }""",
        sure=np.ones((1, 1, 3, 1), bool),
        rest=np.array([1, 3, 3]),
        nothing=np.array(0, np.float32),
        closed=LOWEST,
    )
    after = copy(before)
    assert plain_masks(after) == 2
    assert kinds(after) == ["Softmax"]
    assert_same(before, after, s=draw(2, 2, 3, 3))


@pytest.mark.parametrize(
    "lines",
    [
        "y = Where (open, s, closed)",  # a part is closed
        "all = Or (open, sure)\n y = Where (all, s, closed)",  # not one of the forms that are known
    ],
)
def test_a_mask_that_is_not_open_everywhere_stays(lines: str) -> None:
    before = parse(
        f"(float[3, 3] s) => (float[3, 3] y) {{ {lines} }}",
        open=np.tri(3, dtype=bool),
        sure=np.ones((3, 3), bool),
        closed=LOWEST,
    )
    after = copy(before)
    assert plain_masks(after) == 0
    assert_same(before, after, s=draw(3, 3))


def test_a_mask_that_is_an_answer_keeps_its_shape() -> None:
    before = parse(
        "(bool[batch, 1, 1, 3] m) => (bool[batch, 1, 3, 3] y) { wide = And (sure, m)\n y = Not (wide) }",
        sure=np.ones((1, 1, 3, 1), bool),
    )
    after = copy(before)
    assert plain_masks(after) == 0


def test_a_bias_of_zeros_stays() -> None:
    before = parse("(float[batch, 3] x) => (float[batch, 3] y) { y = Add (x, bias) }", bias=np.zeros(3, np.float32))
    assert plain_masks(copy(before)) == 0
