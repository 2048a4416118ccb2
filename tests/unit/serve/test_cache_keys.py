"""What an answer is remembered under."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tauten.core.tensor import TensorSpec
from tauten.run.serve.cache.keys import KEY_BYTES, Keys
from tauten.run.serve.call import Call
from tauten.run.serve.protocol.buffer import Buffer

FIXED = TensorSpec(name="x", shape=("batch", 3))
OPEN = TensorSpec(name="x", shape=("batch", "length"))
MASK = TensorSpec(name="mask", shape=("batch", "length"), dtype="bool")
OUT = TensorSpec(name="y", shape=("batch",))


def call(*tensors: tuple[Buffer, tuple[int, ...]]) -> Call:
    buffers, shapes = zip(*tensors, strict=True)
    return Call(buffers, shapes, shapes[0][0], "group", lambda call: None)


def keys(*specs: TensorSpec, secret: bytes = b"s", identity: tuple[bytes, ...] = (b"m", b"1")) -> Keys:
    return Keys(secret, identity, specs, [OUT])


def test_all_that_may_change_an_answer_changes_the_key() -> None:
    data = bytes(range(24))
    asked = call((data, (2, 3)))
    found = [
        keys(OPEN).of_call(asked),
        keys(OPEN).of_call(call((data, (3, 2)))),
        keys(OPEN).of_call(call((data[::-1], (2, 3)))),
        keys(OPEN, secret=b"other").of_call(asked),
        keys(OPEN, identity=(b"n", b"1")).of_call(asked),
        keys(OPEN, identity=(b"m", b"2")).of_call(asked),
        keys(OPEN, identity=(b"m1", b"")).of_call(asked),
        keys(OPEN.model_copy(update={"name": "z"})).of_call(asked),
        keys(OPEN.model_copy(update={"dtype": "int32"})).of_call(asked),
        Keys(b"s", (b"m", b"1"), [OPEN], [OUT, FIXED]).of_call(asked),
    ]
    found += keys(OPEN).of_rows(asked)
    assert all(len(key) == KEY_BYTES for key in found)
    assert len(set(found)) == len(found)


def test_the_same_is_the_same() -> None:
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    forms: list[Buffer] = [data, data.tobytes(), bytearray(data.tobytes()), memoryview(data.tobytes()), data.data]
    assert len({keys(FIXED).of_call(call((form, (2, 3)))) for form in forms}) == 1
    assert len({tuple(keys(FIXED).of_rows(call((form, (2, 3))))) for form in forms}) == 1


def test_a_row_among_others_has_the_key_that_it_has_alone() -> None:
    x, mask = np.arange(8, dtype=np.float32).reshape(2, 4), np.array([[1, 0, 0, 1], [0, 0, 1, 1]], bool)
    of_model = keys(OPEN, MASK)
    both = of_model.of_rows(call((x.tobytes(), (2, 4)), (mask.tobytes(), (2, 4))))
    alone = [of_model.of_row(call((x[i].tobytes(), (1, 4)), (mask[i].tobytes(), (1, 4)))) for i in range(2)]
    assert both == alone
    assert both[0] != both[1]


def test_bytes_that_move_from_one_input_to_the_next_are_another_request() -> None:
    specs = [OPEN.model_copy(update={"dtype": "uint8"}), TensorSpec(name="z", shape=("batch", "other"), dtype="uint8")]
    of_model = keys(*specs)
    first = call((b"ab", (1, 2)), (b"c", (1, 1)))
    second = call((b"a", (1, 1)), (b"bc", (1, 2)))
    assert of_model.of_row(first) != of_model.of_row(second)
    assert of_model.of_call(first) != of_model.of_call(second)


def test_rows_without_bytes_have_keys() -> None:
    empty = TensorSpec(name="x", shape=("batch", 0))
    assert len(set(keys(empty).of_rows(call((b"", (3, 0)))))) == 1


def test_answers_are_of_rows_only_where_each_tensor_has_its_batch_first() -> None:
    assert keys(FIXED).by_row
    assert keys(FIXED).row_bytes == 12
    assert keys(OPEN).row_bytes == 0
    assert not keys(TensorSpec(name="x", shape=(3, "batch"))).by_row
    assert not Keys(b"", [], [FIXED], [TensorSpec(name="y", shape=(3,))]).by_row


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=6, unique=True))
def test_no_two_shapes_of_the_same_bytes_share_a_key(shapes: list[tuple[int, int]]) -> None:
    of_model = keys(OPEN)
    found = {shape: of_model.of_call(call((bytes(4 * shape[0] * shape[1]), shape))) for shape in shapes}
    assert all(found[a] != found[b] for a, b in itertools.combinations(shapes, 2))
