"""Attention in the form that engines know: the same answers, also in rows that a mask closes whole."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from torch import nn

from tauten.core.tensor import Array, TensorSpec
from tauten.make.lower._attention import plain_attention
from tauten.make.model.task import Task

from .graphs import assert_same, copy, draw, kinds, parse
from .lowered import lower

GUARD = "p = Softmax (scores)\n bad = IsNaN (p)\n safe = Where (bad, zero, p)\n"
ZERO = np.array(0, np.float32)


def guarded(given: str, lines: str, /, **constants: Array) -> ModelProto:
    """Attention over scores ``s`` and values ``v``, and what else is ``given``, with a guard after its softmax."""
    return parse(
        f"""(float[batch, 2, n, k] s, float[batch, 2, k, 4] v{given}) => (float[batch, 2, n, 4] y) {{
            half = Mul (s, v_half)
            q = MatMul (half, eye)
            {lines}
            {GUARD}
            y = MatMul (safe, v)
        }}""",
        zero=ZERO,
        v_half=np.array(0.5, np.float32),
        eye=np.eye(5, dtype=np.float32),
        **constants,
    )


def scores(batch: int = 3) -> dict[str, Array]:
    return {"s": draw(batch, 2, 6, 5), "v": draw(batch, 2, 5, 4, seed=1)}


def test_without_a_mask_the_guard_goes() -> None:
    before = guarded("", "scores = Identity (q)")
    after = copy(before)
    assert plain_attention(after)["guards"] == 1
    assert "IsNaN" not in kinds(after)
    assert len(after.graph.node) == len(before.graph.node) - 2
    assert_same(before, after, **scores())


def test_with_a_mask_of_finite_numbers_the_guard_goes() -> None:
    lines = "added = Where (m, zero, lowest)\n scores = Add (q, added)"
    before = guarded(", bool[batch, 1, 1, k] m", lines, lowest=np.array(np.finfo(np.float32).min))
    after = copy(before)
    assert plain_attention(after)["guards"] == 1
    assert "IsNaN" not in kinds(after)
    mask = np.ones((3, 1, 1, 5), bool)
    mask[0, ..., 2:] = mask[1] = False
    assert_same(before, after, **scores(), m=mask)


def test_two_numbers_that_are_finite_alone_may_not_be_together() -> None:
    lines = "one = Where (m, zero, lowest)\n two = Add (one, one)\n scores = Add (q, two)"
    before = guarded(", bool[batch, 1, 1, k] m", lines, lowest=np.array(np.finfo(np.float32).min))
    after = copy(before)
    assert plain_attention(after)["guards"] == 1
    assert "ReduceMax" in kinds(after)
    mask = np.ones((3, 1, 1, 5), bool)
    mask[1] = False
    assert_same(before, after, **scores(), m=mask)


@pytest.mark.parametrize("closed", [False, True])
def test_a_constant_mask_is_looked_at(closed: bool) -> None:
    mask = np.where(np.tri(6, 5, dtype=bool), 0, -np.inf).astype(np.float32)
    mask[3] = -np.inf if closed else 0
    before = guarded("", "scores = Add (q, mask)", mask=mask)
    after = copy(before)
    assert plain_attention(after)["guards"] == 1
    assert ("ReduceMax" in kinds(after)) == closed
    assert_same(before, after, **scores())


@pytest.mark.parametrize("shape", [(3, 1, 6, 5), (3, 1, 1, 5), (5,), (3, 2, 6, 1)])
def test_rows_that_a_mask_closes_whole_are_zeros(shape: tuple[int, ...]) -> None:
    """Also where the mask has infinite and lowest numbers in one row, as two masks that were joined have."""
    dims = ", ".join(["a", "b", "c", "d"][4 - len(shape) :])
    before = guarded(f", float[{dims}] m", "scores = Add (q, m)")
    after = copy(before)
    assert plain_attention(after)["guards"] == 1
    assert "IsNaN" not in kinds(after)
    place = [(after.graph.node[i].op_type, after.graph.node[i + 1].op_type) for i in range(len(after.graph.node) - 1)]
    assert ("Softmax", "MatMul") in place
    generator = np.random.default_rng(0)
    for share in (0.0, 0.5, 1.0):
        mask = np.where(generator.random(shape) < share, -np.inf, generator.standard_normal(shape)).astype(np.float32)
        assert_same(before, after, **scores(), m=mask)
        assert_same(before, after, **scores(), m=np.where(mask > 0, np.finfo(np.float32).min, mask))


def test_two_layers_ask_once_which_rows_of_a_mask_are_open() -> None:
    before = parse(
        """(float[batch, n, n] s, float[n, n] m) => (float[batch, n, n] y) {
            first = MatMul (s, s)
            one = Add (first, m)
            p = Softmax (one)
            bad = IsNaN (p)
            safe = Where (bad, zero, p)
            two = MatMul (safe, s)
            three = Add (m, two)
            p_2 = Softmax (three)
            bad_2 = IsNaN (p_2)
            safe_2 = Where (bad_2, zero, p_2)
            y = MatMul (safe_2, s)
        }""",
        zero=ZERO,
    )
    after = copy(before)
    assert plain_attention(after)["guards"] == 2
    assert kinds(after).count("ReduceMax") == kinds(after).count("Where") == 1
    mask = np.zeros((4, 4), np.float32)
    mask[2] = mask[:, 1] = -np.inf
    assert_same(before, after, s=draw(2, 4, 4), m=mask)


@pytest.mark.parametrize("reader", ["z = Relu (safe)", "z = Relu (p)", "z = Relu (scores)"])
def test_a_guard_stays_where_something_else_reads_what_it_guards(reader: str) -> None:
    before = parse(
        f"""(float[2, 3] s, float[2, 3] m) => (float[2, 4] y, float[2, 3] z) {{
            sum = MatMul (s, eye)
            scores = Add (sum, m)
            {GUARD}
            y = MatMul (safe, v)
            {reader}
        }}""",
        zero=ZERO,
        eye=np.eye(3, dtype=np.float32),
        v=draw(3, 4),
    )
    after = copy(before)
    assert plain_attention(after)["guards"] == 0
    assert_same(before, after, s=draw(2, 3), m=np.full((2, 3), -np.inf, np.float32))


def keys(turn: str) -> str:
    return f"""(float[batch, length, 12] x) => (float[batch, 3, length, length] y) {{
        sizes = Shape <start = 0, end = 2> (x)
        split = Concat <axis = 0> (sizes, rest, width)
        heads = Reshape <allowzero = 1> (x, split)
        q = Transpose <perm = [0, 2, 1, 3]> (heads)
        {turn}
        q_scaled = Mul (q, scale)
        k_scaled = Mul (turned, scale)
        y = MatMul (q_scaled, k_scaled)
    }}"""


LONG = """
    k = Transpose <perm = [0, 2, 1, 3]> (heads)
    size = Shape (k)
    length_size = Slice (size, two, three)
    width_size = Slice (size, three, four)
    outer = Slice (size, none, two)
    merged = Concat <axis = 0> (rest, length_size, width_size)
    k_3 = Reshape (k, merged)
    turned_3 = Transpose <perm = [0, 2, 1]> (k_3)
    apart = Concat <axis = 0> (outer, width_size, length_size)
    turned = Reshape (turned_3, apart)
"""
SIZES = {
    "rest": np.array([-1]), "width": np.array([4]), "none": np.array([0]), "two": np.array([2]), "three": np.array([3]),
    "four": np.array([4]), "scale": np.array(0.7, np.float32),
}  # fmt: skip


@pytest.mark.parametrize("turn", [LONG, "turned = Transpose <perm = [0, 2, 3, 1]> (heads)"])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 5)])
def test_keys_are_turned_once_and_scaled_with_the_queries(turn: str, batch: int, length: int) -> None:
    before = parse(keys(turn), **SIZES)
    after = copy(before)
    done = plain_attention(after)
    assert (done["keys"], done["scales"]) == (1, 1)
    perms = [list(node.attribute[0].ints) for node in after.graph.node if node.op_type == "Transpose"]
    assert sorted(perms) == [[0, 1, 3, 2], [0, 2, 1, 3], [0, 2, 1, 3]]
    assert sorted(kinds(after)) == sorted(["Reshape", "Mul", "MatMul", *["Transpose"] * 3])
    assert_same(before, after, x=draw(batch, length, 12))


def test_a_reshape_that_joins_other_axes_is_no_transposition() -> None:
    before = parse(
        """(float[batch, 4, 6] x) => (float[batch, 6, 4] y) {
            wide = Reshape (x, one)
            turned = Transpose <perm = [0, 2, 1]> (wide)
            y_2 = Reshape (turned, two)
            y = Relu (y_2)
        }""",
        one=np.array([-1, 6, 4]),
        two=np.array([-1, 6, 4]),
    )
    after = copy(before)
    assert plain_attention(after)["keys"] == 0
    assert_same(before, after, x=draw(2, 4, 6))


def test_keys_that_are_an_answer_too_stay() -> None:
    before = parse(keys(LONG).replace("length] y)", "length] y, float[batch, 3, 4, length] turned)"), **SIZES)
    after = copy(before)
    plain_attention(after)
    assert_same(before, after, x=draw(2, 5, 12))


class Attention(nn.Module):
    """Attention over ``x`` with a mask of the tokens that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.all(x).chunk(3, -1))
        made = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None].bool())
        return made.transpose(1, 2).flatten(2)


def test_attention_of_a_module() -> None:
    """``lower`` holds the graph against the module."""
    mask = np.tri(4, 5, 1, dtype=np.int64)
    specs = (
        TensorSpec(name="x", shape=("batch", "length", 8)),
        TensorSpec(name="mask", shape=("batch", "length"), dtype="int64"),
    )
    task = Task(model=Attention().eval(), inputs=specs, calibrate=[{"x": draw(4, 5, 8), "mask": mask}])
    lowered = lower(task)
    names = kinds(onnx.load_from_string(lowered.graph))
    assert not {"IsNaN", "Shape", "Concat"} & set(names)
    assert names.count("Reshape") == 4
    assert names.count("Mul") == 1
