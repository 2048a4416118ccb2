"""The fast reader of JSON numbers: what it reads is what the exact reader reads, and what it doubts it leaves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tauten.core.tensor import Array, TensorSpec
from tauten.errors import InputError
from tauten.run.serve.protocol import numbers
from tauten.run.serve.protocol.datatypes import BINARY_ONLY, DATATYPES, from_json
from tauten.run.serve.protocol.layout import Decoder
from tests.unit.serve.tiny import tensor

PAD = " " * 600  # short bodies are left to the exact reader
FAST = tuple(sorted(set(DATATYPES) - BINARY_ONLY - {"bool"}))


def read(document: object, dtype: str = "float32") -> Any:
    text = document if isinstance(document, str) else json.dumps(document)
    return numbers.read((text + PAD).encode(), {"x": TensorSpec(name="x", shape=("a", "b"), dtype=dtype)})


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = draw(st.sampled_from(FAST))
    elements = {"allow_nan": False, "allow_infinity": False} if "float" in dtype else {}
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
    array: Array = draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(np.dtype(dtype), **elements)))
    return array


@given(arrays(), st.booleans())
@settings(deadline=None)
def test_numbers_are_those_of_the_exact_reader(array: Array, nested: bool) -> None:
    data = array.tolist() if nested else array.reshape(-1).tolist()
    entry = tensor("x", DATATYPES[array.dtype.name], array.shape, data)
    document = read({"id": "7", "inputs": [entry], "outputs": [{"name": "y"}]}, array.dtype.name)
    assert document["id"] == "7"
    assert document["outputs"] == [{"name": "y"}]
    found = document["inputs"][0]["data"]
    exact = from_json("x", array.dtype.name, array.shape, json.loads(json.dumps(data)))
    assert found.dtype == exact.dtype == array.dtype
    assert found.tobytes() == exact.tobytes()
    assert found.shape == array.shape


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=8), st.lists(st.integers(0, 4), max_size=3), st.sampled_from(FAST))
@settings(deadline=None)
def test_whatever_it_reads_the_exact_reader_reads_the_same(data: list[Any], shape: list[int], dtype: str) -> None:
    document = read({"inputs": [tensor("x", DATATYPES[dtype], shape, data)]}, dtype)
    if document is None:
        return
    exact = from_json("x", dtype, shape, data)
    found = document["inputs"][0]["data"]
    assert found.tobytes() == exact.tobytes()
    assert found.shape == exact.shape


@pytest.mark.parametrize(
    "data",
    [
        [[1.0, [2.0]], [3.0, 4.0]],  # a list hidden among numbers
        [1.0, [2.0], 3.0, 4.0],
        [[1.0, 2.0], 3.0, 4.0],
        [[1.0, 2.0, 3.0], [4.0]],
        [1.0, 2.0, 3.0],
        [1.0, 2.0, 3.0, True],
        [1.0, 2.0, 3.0, None],
        [1.0, 2.0, 3.0, "4"],
        [1.0, 2.0, 3.0, 1e39],  # no FP32
        {"0": 1.0},
        1.0,
    ],
)
def test_what_is_not_plain_numbers_of_that_shape_is_left(data: object) -> None:
    assert read({"inputs": [tensor("x", "FP32", [2, 2], data)]}) is None
    with pytest.raises(InputError):
        from_json("x", "float32", [2, 2], data)


@pytest.mark.parametrize(
    "text",
    [
        '{"inputs": [{"name": "x", "shape": [1, 1], "data": [1], "data": [2]}]}',  # which of the two?
        '{"inputs": [{"name": "x", "shape": [1, 1], "data": [1]}], "inputs": []}',
        '{"inputs": [{"name": "y", "shape": [1, 1], "data": [1]}]}',
        '{"inputs": [{"shape": [1, 1], "data": [1]}]}',
        '{"inputs": [{"name": "x", "shape": [1, "1"], "data": [1]}]}',
        '{"inputs": 3}',
        "[]",
        "nothing",
        '{"inputs": [{"name": "x", "shape": [1, 1], "data": [1]}]',
        '{"inputs": [{"name": "x", "shape": [1, 1], "data": [01]}]}',
    ],
)
def test_what_is_no_request_is_left(text: str) -> None:
    assert read(text) is None


def test_a_document_that_is_still_held_does_not_stop_the_next() -> None:
    document = {"inputs": [tensor("x", "FP32", [1, 2], [1.0, 2.0])]}
    held = numbers._parser.parse(b'{"a": [1]}')
    assert read(document)["inputs"][0]["data"].tolist() == [[1.0, 2.0]]
    assert held["a"].as_list() == [1]


def outcome(decoder: Decoder, body: bytes) -> Any:
    """What a decoder makes of ``body``: all that it says, or its error."""
    try:
        layout, buffers = decoder(body, None)
    except InputError as fault:
        return str(fault)
    return layout.shapes, layout.outputs, layout.id, layout.priority, [bytes(buffer) for buffer in buffers]


def body_of(data: object, **extra: object) -> bytes:
    document = {"inputs": [tensor("x", "FP32", [2, 2], data)], **extra}
    return (json.dumps(document) + PAD).encode()


@given(
    st.lists(JSON, min_size=1, max_size=5)
    | st.just([[1.0, 2.0], [3.0, 4.0]])
    | st.lists(st.floats(), min_size=4, max_size=4)
)
@settings(deadline=None)
def test_what_stands_around_numbers_is_remembered_and_changes_nothing(data: object) -> None:
    specs = [TensorSpec(name="x", shape=("batch", 2))]
    warm, cold = Decoder(specs, specs), Decoder(specs, specs)
    for number in range(2):
        assert outcome(warm, body_of([float(number), 2.0, 3.0, 4.0]))[0] == ((2, 2),)
    assert len(warm._around) == 1
    body = body_of(data)
    assert outcome(warm, body) == outcome(cold, body)


@pytest.mark.parametrize(
    "extra",
    [
        {"id": '"data": [1, 2, 3, 4]'},  # looks like it, and is a string
        {"parameters": {"data": [1, 2, 3, 4]}},
        {"outputs": []},
    ],
)
def test_numbers_elsewhere_are_not_taken_for_the_input(extra: dict[str, Any]) -> None:
    specs = [TensorSpec(name="x", shape=("batch", 2))]
    for first in (True, False):
        warm = Decoder(specs, specs)
        for number in range(3):
            data = [number + 0.5, 2.0, 3.0, 4.0]
            document = {"inputs": [tensor("x", "FP32", [2, 2], data)]}
            text = json.dumps({**extra, **document} if first else {**document, **extra}) + PAD
            assert outcome(warm, text.encode()) == outcome(Decoder(specs, specs), text.encode())
            assert outcome(warm, text.encode())[4] == [np.float32(data).tobytes()]
