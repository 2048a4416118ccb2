"""Rows that nothing reads are not computed: the same answers from fewer rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from torch import nn

from tauten.core.tensor import Array, TensorSpec
from tauten.make.lower._compare import open_session, run_session
from tauten.make.lower._rows import needed_rows
from tauten.make.model.task import Task

from .graphs import assert_same, copy, draw, kinds, parse
from .lowered import lower

WEIGHTS = {"w": draw(8, 8, seed=1), "g": draw(8, seed=2), "zero": np.array(0), "last": np.array(-1)}


def rows_of(model: ModelProto, inputs: dict[str, Array], *names: str) -> list[int]:
    """How many rows, along the axis before the last, each of these values has."""
    opened = copy(model)
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found = run_session(open_session(opened, optimize=False), list(names), inputs)
    return [found[name].shape[-2] for name in names]


BLOCK = """
    n = LayerNormalization (x, g)
    q = MatMul (n, w)
    k = MatMul (n, w)
    v = Mul (k, g)
    kt = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul (q, kt)
    m = Add (s, mask)
    p = Softmax (m)
    o = MatMul (p, v)
    h = Add (o, x)
    u = LayerNormalization (h, g)
    f = Gelu (u)
    z = Add (f, h)
"""
HEADS = """(float[batch, length, 8] x, float[batch, a, length] mask) => (float[batch, 8] y) {
    %s
    y = Gather <axis = 1> (z, %s)
}"""


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 4), (3, 5)])
@pytest.mark.parametrize("index", ["zero", "last"])
@pytest.mark.parametrize("whole", [False, True])
def test_of_a_block_of_which_one_token_is_read(batch: int, length: int, index: str, whole: bool) -> None:
    """Queries, probabilities and sums have one row, keys and values have all; a mask may have one row or all."""
    before = parse(HEADS % (BLOCK, index), **WEIGHTS)
    after = copy(before)
    assert needed_rows(after) == 9
    inputs = {"x": draw(batch, length, 8), "mask": draw(batch, length if whole else 1, length)}
    assert_same(before, after, **inputs)
    if length > 1:
        assert rows_of(after, inputs, "q_rows", "p_rows", "h_rows", "z_rows", "k", "v") == [1, 1, 1, 1, length, length]
    assert kinds(after).count("Slice") == 3  # of the norm, of the input, of the mask
    assert "Gather" not in kinds(after)


def test_a_row_in_the_middle_where_sizes_are_not_known_to_be_equal() -> None:
    """Of a mask with one row for all queries there is no row 2 to take: the choice is made below it."""
    before = parse(HEADS % (BLOCK, "second"), second=np.array(2), **WEIGHTS)
    after = copy(before)
    needed_rows(after)
    for rows in (1, 5):
        inputs = {"x": draw(2, 5, 8), "mask": draw(2, rows, 5)}
        assert_same(before, after, **inputs)
        assert rows_of(after, inputs, "z_rows", "u_rows", "h") == [1, 1, 5]


@pytest.mark.parametrize(
    "reader",
    [
        "other = ReduceMean <keepdims = 0> (z, one)\n y = Add (first, other)",
        "other = Gather <axis = 1> (z, places)\n mean = ReduceMean <keepdims = 0> (other, one)\n y = Add (first, mean)",
    ],
)
def test_another_reader_of_every_row_keeps_them(reader: str) -> None:
    before = parse(
        f"""(float[batch, length, 8] x, float[batch, 1, length] mask) => (float[batch, 8] y) {{
            {BLOCK}
            first = Gather <axis = 1> (z, zero)
            {reader}
        }}""",
        one=np.array([1]),
        places=np.array([2, 0]),
        **WEIGHTS,
    )
    after = copy(before)
    assert needed_rows(after) == 0
    assert after == before


def test_a_value_that_is_an_answer_too_stays_whole() -> None:
    before = parse((HEADS % (BLOCK, "zero")).replace("8] y)", "8] y, float[batch, length, 8] h)"), **WEIGHTS)
    after = copy(before)
    assert needed_rows(after) == 3
    inputs = {"x": draw(2, 5, 8), "mask": draw(2, 1, 5)}
    assert_same(before, after, **inputs)
    assert rows_of(after, inputs, "u_rows", "q") == [1, 5]


def test_two_choices_of_neighbours_are_one_of_both() -> None:
    """As where one token tells the class and the next what a teacher would say."""
    text = """(float[batch, 6, 8] x) => (float[batch, 8] y, float[batch, 1, 8] z) {
        a = MatMul (x, w)
        b = Relu (a)
        c = MatMul (b, w)
        y = Gather <axis = 1> (c, one)
        z = Slice (c, two, three, one_only)
    }"""
    numbers = {"one": np.array(1), "two": np.array([2]), "three": np.array([3]), "one_only": np.array([1])}
    before = parse(text, **numbers, **WEIGHTS)
    after = copy(before)
    assert needed_rows(after) == 3
    inputs = {"x": draw(2, 6, 8)}
    assert_same(before, after, **inputs)
    assert rows_of(after, inputs, "a_rows", "c_rows") == [2, 2]


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("c = Softmax <axis = 1> (b)", 0),
        ("c = Transpose <perm = [0, 2, 1]> (b)", 1),  # what is chosen is columns: the product needs every row
        ("c = Reshape (b, mixed)", 0),
        ("c = Reshape (b, same)", 3),
        ("four = Unsqueeze (b, one)\n c = Squeeze (four, one)", 4),
        ("m = ReduceMean (b, one)\n c = Add (b, m)", 0),
        ("m = ReduceMean (b, two)\n c = Sub (b, m)", 4),
        ("c = Concat <axis = 2> (b, x)", 3),
        ("c = Concat <axis = 1> (b, x)", 0),
        ("c = CumSum (b, at)", 0),
        ("c = Where (some, b, x)", 3),
        ("f = Flatten <axis = 2> (b)\n g_ = Gemm (f, w)\n c = Reshape (g_, apart)", 0),
    ],
)
def test_operations(line: str, count: int) -> None:
    """After a product ``b``; what mixes rows stops the choice there."""
    before = parse(
        f"""(float[batch, 8, 8] x) => (float[batch, n] y) {{
            a = Mul (x, g)
            b = MatMul (a, w)
            {line}
            y = Gather <axis = 1> (c, zero)
        }}""",
        mixed=np.array([0, 4, 16]),
        same=np.array([0, 0, 8]),
        apart=np.array([-1, 8, 8]),
        one=np.array([1]),
        two=np.array([2]),
        at=np.array(1),
        some=np.tri(8, dtype=bool),
        **WEIGHTS,
    )
    after = copy(before)
    assert needed_rows(after) == (0 if line.startswith("c = Transpose") else count)
    assert_same(before, after, x=draw(3, 8, 8))


def test_a_shape_that_names_the_size_is_changed() -> None:
    before = parse(
        """(float[batch, 6, 8] x) => (float[batch, 2, 4] y) {
            a = MatMul (x, w)
            heads = Reshape (a, split)
            turned = Transpose <perm = [0, 2, 1, 3]> (heads)
            y = Gather <axis = 2> (turned, last)
        }""",
        split=np.array([-1, 6, 2, 4]),
        **WEIGHTS,
    )
    after = copy(before)
    assert needed_rows(after) == 3
    assert_same(before, after, x=draw(3, 6, 8))


def test_samples_are_rows_too() -> None:
    before = parse(
        "(float[4, 8] x) => (float[8] y) { a = Gemm <transB = 1> (x, w)\n y = Gather <axis = 0> (a, last) }", **WEIGHTS
    )
    after = copy(before)
    assert needed_rows(after) == 1
    assert_same(before, after, x=draw(4, 8))


def test_a_branch_reads_everything() -> None:
    before = parse(
        """(float[batch, 3, 8] x, bool c) => (float[batch, 8] y, float[batch, 3, 8] z) {
            a = MatMul (x, w)
            y = Gather <axis = 1> (a, zero)
            z = If (c) <
                then_branch = one () => (float[batch, 3, 8] t) { t = Relu (a) },
                else_branch = two () => (float[batch, 3, 8] e) { e = Neg (a) }
            >
        }""",
        **WEIGHTS,
    )
    after = copy(before)
    assert needed_rows(after) == 0


class Tagged(nn.Module):
    """A block with a head on the last token, of texts of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.all, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        q, k = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.all(normed), normed))
        x = x + nn.functional.scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(2)
        made: torch.Tensor = self.head(x[:, -1])
        return made


def test_the_last_token_of_a_text() -> None:
    """``lower`` holds the graph against the module."""
    spec = TensorSpec(name="x", shape=("batch", "length", 8))
    task = Task(model=Tagged().eval(), inputs=(spec,), calibrate=[draw(4, 5, 8)])
    graph = onnx.load_from_string(lower(task).graph)
    assert kinds(graph).count("Slice") == 2
    assert "Gather" not in kinds(graph)
