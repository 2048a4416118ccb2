"""Sizes of a graph's values in terms of its open dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from tauten.make.lower._shapes import Shapes, divide, number, product

from .graphs import parse

BATCH, LENGTH = (1, ("batch",)), (1, ("length",))


def test_sizes_are_multiplied_and_divided() -> None:
    assert product([BATCH, number(12), LENGTH]) == (12, ("batch", "length"))
    assert divide((12, ("batch", "length")), (4, ("length",))) == (3, ("batch",))
    assert divide((12, ("batch",)), (5, ())) is None
    assert divide((12, ("batch",)), LENGTH) is None
    assert divide(BATCH, number(0)) is None


def test_heads_are_split_and_joined_with_both_dimensions_open() -> None:
    shapes = Shapes(
        parse(
            """(float[batch, length, 12] x) => (float[batch, length, 12] y) {
                sizes = Shape <start = 0, end = 2> (x)
                split = Concat <axis = 0> (sizes, rest, width)
                heads = Reshape (x, split)
                turned = Transpose <perm = [0, 2, 1, 3]> (heads)
                back = Transpose <perm = [0, 2, 1, 3]> (turned)
                join = Concat <axis = 0> (sizes, rest)
                y = Reshape (back, join)
            }""",
            rest=np.array([-1]),
            width=np.array([4]),
        )
    )
    assert shapes.values["split"] == (BATCH, LENGTH, number(-1), number(4))
    assert shapes.shape["turned"] == (BATCH, number(3), LENGTH, number(4))
    assert shapes.shape["y"] == (BATCH, LENGTH, number(12))


def test_a_table_that_is_cut_to_the_length_has_it() -> None:
    """The cut may be shorter than asked for, but then it could not be added."""
    shapes = Shapes(
        parse(
            """(float[batch, length, 4] x) => (float[batch, n, 4] y) {
                size = Shape <start = 1, end = 2> (x)
                places = Slice (table, zero, size, one)
                y = Add (x, places)
            }""",
            table=np.ones((1, 32, 4), np.float32),
            zero=np.array([0]),
            one=np.array([1]),
        )
    )
    assert shapes.shape["places"] not in ((number(1), LENGTH, number(4)), (number(1), number(32), number(4)))
    assert shapes.shape["y"] == (BATCH, LENGTH, number(4))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("y = MatMul (x, w)", (BATCH, LENGTH, number(5))),
        ("y = Unsqueeze (x, at)", (BATCH, number(1), LENGTH, number(4))),
        ("y = ReduceMean <keepdims = 0> (x, at)", (BATCH, number(4))),
        ("y = ReduceMax (x, at)", (BATCH, number(1), number(4))),
        ("y = Gather <axis = 1> (x, at)", (BATCH, number(1), number(4))),
        ("y = Slice (x, at, end, at)", None),
        ("y = Concat <axis = 2> (x, x)", (BATCH, LENGTH, number(8))),
        ("y = Softmax (x)", (BATCH, LENGTH, number(4))),
        ("y = Expand (x, wide)", (BATCH, LENGTH, number(4))),
        ("s = Shape (x)\n t = Gather (s, at)\n l = Squeeze (t)\n y = Range (zero, l, one)", (LENGTH,)),
    ],
)
def test_operations(line: str, wanted: object) -> None:
    shapes = Shapes(
        parse(
            f"(float[batch, length, 4] x) => (y) {{ {line} }}",
            w=np.ones((4, 5), np.float32),
            at=np.array([1]),
            end=np.array([3]),
            wide=np.array([1, 1, 4]),
            zero=np.array(0),
            one=np.array(1),
        )
    )
    if wanted is None:
        assert shapes.shape["y"][0] == BATCH
        assert shapes.shape["y"][1][1][0].startswith("?")
    else:
        assert shapes.shape["y"] == wanted


def test_two_open_sizes_that_meet_are_one_that_is_not_known() -> None:
    shapes = Shapes(parse("(float[a, 4] x, float[b, 4] z) => (float[c, 4] y) { y = Add (x, z) }"))
    first, second = shapes.shape["y"]
    assert first not in (number(1), (1, ("a",)), (1, ("b",)))
    assert second == number(4)


def test_what_has_no_rule_here_is_as_onnx_infers_it() -> None:
    shapes = Shapes(
        parse(
            "(float[batch, 3, 8, 8] x) => (float[batch, 5, 6, 6] y) { y = Conv (x, w) }",
            w=np.ones((5, 3, 3, 3), np.float32),
        )
    )
    assert shapes.shape["y"] == (BATCH, number(5), number(6), number(6))
