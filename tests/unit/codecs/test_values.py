"""What is found in an array gives back its every bit, and what was put in is found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tauten.codecs._values import MOST_LEVEL, SMALL, Kind, Values, analyse, restore
from tauten.core.tensor import Array
from tauten.testing.codecs import _arrays

DRAW = np.random.default_rng(0)
FLOATS = ("float16", "float32", "float64")


def holds(array: Array) -> list[Values]:
    """What was found, each finding held to giving back all bits; ``RAW`` keeps them anyway."""
    found = analyse(array)
    for values in found:
        if values.kind is not Kind.RAW:
            back = restore(values, array.dtype, array.shape)
            assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes()), values.kind
    return found


def kinds(array: Array) -> list[Kind]:
    return [values.kind for values in holds(array)]


@settings(max_examples=200, deadline=None)
@given(_arrays())
def test_any_array_comes_back(array: Array) -> None:
    assert holds(np.array(array, order="C"))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(FLOATS),
    npst.arrays(np.int32, npst.array_shapes(min_dims=1, max_dims=3, max_side=12), elements=st.integers(-100, 100)),
    st.integers(1, 15),
    st.integers(-9, 5),
)
def test_a_grid_is_found(dtype: str, levels: Array, whole: int, exponent: int) -> None:
    array = (levels.astype(np.float64) * whole * 2.0**exponent).astype(dtype) + np.zeros(1, dtype)
    found = kinds(array)
    assert found[0] in (Kind.CONSTANT, Kind.GRID)


def test_a_step_that_no_value_has_is_found() -> None:
    levels = np.array([[2, -3, 0, 4], [6, 8, 9, -10]])
    found = holds((levels * np.float32(0.011)).astype(np.float32) * np.float32(1))[0]
    exact = holds((levels * 37 * 2.0**-9).astype(np.float32))[0]
    assert exact.kind is Kind.GRID
    assert exact.parameters.tolist() == [37 * 2.0**-9]
    assert exact.levels.tolist() == levels.tolist()
    assert found.kind in (Kind.PALETTE, Kind.GRID)


def test_products_that_float32_rounds_are_found_by_their_smallest() -> None:
    levels = DRAW.integers(-60, 61, (40, 50)).astype(np.float32)
    levels[0, 0] = 1
    array = levels * np.float32(0.0123)
    array[array == 0] = 0
    found = holds(array)[0]
    assert found.kind is Kind.GRID
    assert found.levels.tolist() == levels.tolist()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_step_a_row_is_found(dtype: str, turned: bool) -> None:
    levels = DRAW.integers(-7, 8, (30, 40))
    steps = DRAW.integers(3, 1000, 30)[:, None] * 2.0**-12
    array = (levels * steps).astype(dtype)
    array = np.ascontiguousarray(array.T if turned else array)
    found = holds(array)
    rows = [values for values in found if values.kind is Kind.ROWS]
    assert [values.turned for values in rows[-1:]] == [turned] or found[0].kind is Kind.GRID


def test_kernels_have_a_step_an_output_channel() -> None:
    levels = DRAW.integers(-7, 8, (16, 8, 3, 3))
    steps = (2 * DRAW.integers(2**10, 2**11, 16) + 1)[:, None, None, None] * 2.0**-20
    array = (levels * steps).astype(np.float32)
    assert (16, 72) in [values.levels.shape for values in holds(array) if values.kind is Kind.ROWS]
    # One step may fit all rows too, far below theirs: in a large array the smaller numbers win.
    large = np.tile(array, (1, 64, 1, 1))
    assert large.size > SMALL
    assert kinds(large) == [Kind.ROWS]


@pytest.mark.parametrize("dtype", FLOATS)
def test_shared_values_are_found(dtype: str) -> None:
    shared = DRAW.normal(0, 1, 33).astype(dtype)
    shared[0] = 0
    array = shared[DRAW.integers(0, 33, (20, 50))]
    found = next(values for values in holds(array) if values.kind is Kind.PALETTE)
    assert found.parameters.tolist() == sorted(set(array.reshape(-1).tolist()))
    assert (found.levels == 0).sum() >= (array == 0).sum() > 0


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int64", "bool"])
def test_whole_numbers_are_themselves(dtype: str) -> None:
    array = DRAW.integers(0, 2 if dtype == "bool" else 100, (9, 11)).astype(dtype)
    assert kinds(array)[0] is Kind.INTEGERS


def test_numbers_around_another_middle_are_told_from_there() -> None:
    array = (128 + np.rint(DRAW.normal(0, 2, (50, 50)))).astype(np.uint8)
    found = holds(array)[0]
    assert 126 <= found.offset <= 130


SPECIAL: dict[str, Callable[[], Array]] = {
    "a sign on a zero": lambda: np.array([[0.5, -0.0, 1.0], [0.0, 1.5, 2.0]], np.float32),
    "infinities": lambda: np.array([np.inf, -np.inf, 1, 2, 3], np.float32),
    "payloads": lambda: np.array([0x7FC00001, 0x7F800001, 0xFFC12345, 0x3F800000], np.uint32).view(np.float32),
    "subnormal": lambda: (np.arange(1, 50) * 1e-45).astype(np.float32),
    "the smallest double": lambda: np.arange(1, 50) * 5e-324,
    "the whole range": lambda: np.array([5e-324, 1.7e308, 3.0, 7.0]),
    "half floats": lambda: DRAW.normal(0, 1, (8, 9)).astype(np.float16).astype(np.float32),
    "brain floats": lambda: (DRAW.normal(0, 1, (8, 9)).astype(np.float32).view(np.uint32) & 0xFFFF0000).view("f4"),
    "a scalar": lambda: np.array(3.5),
    "nothing": lambda: np.zeros((0, 3), np.float16),
    "one row": lambda: np.arange(10, dtype=np.float32)[None],
    "large numbers": lambda: np.array([2**63, 2**64 - 1, 0], np.uint64),
    "both ends": lambda: np.array([-(2**63), 2**63 - 1], np.int64),
    "beyond a coder": lambda: np.array([-MOST_LEVEL, MOST_LEVEL, 0], np.int32),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_numbers_come_back(name: str) -> None:
    holds(SPECIAL[name]())


def test_a_large_array_is_looked_at_in_the_first_way_that_fits() -> None:
    levels = DRAW.integers(-3, 4, SMALL + 1)
    assert kinds((levels * 0.25).astype(np.float32)) == [Kind.GRID]
    assert kinds(DRAW.normal(0, 1, (300, 300)).astype(np.float32)) == [Kind.RAW]
    signed = np.where(levels == 0, -0.0, levels * 0.25).astype(np.float32)
    assert kinds(signed) == [Kind.PALETTE]
