"""The V2 codec: what is encoded is decoded, and whatever comes is decoded or refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import InputError, ServeError
from tauten.run.serve.call import Batch, Call, gather
from tauten.run.serve.protocol.datatypes import BINARY_ONLY, DATATYPES, from_bytes
from tauten.run.serve.protocol.layout import Decoder
from tauten.run.serve.protocol.v2 import (
    InferResponse,
    Message,
    decode_response,
    encode_request,
    encode_response,
)
from tests.unit.serve.tiny import tensor

X = TensorSpec(name="x", shape=("batch", 3))
Y = TensorSpec(name="y", shape=("batch",))


class Decoded(NamedTuple):
    inputs: Arrays
    outputs: dict[str, bool]
    id: str | None


def decode_request(
    body: bytes, header_length: int | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Decoded:
    """What a decoder makes of ``body``: the first time, and again, as a client's every next request would be read."""
    decoder = Decoder(inputs, outputs)
    found = []
    for _ in range(2):
        layout, buffers = decoder(body, header_length)
        call = Call(buffers, layout.shapes, layout.rows, layout.group, lambda call: None)
        arrays = gather(Batch([call], layout.rows, ""), inputs)
        found.append(Decoded(arrays, layout.outputs, layout.id))
    first, again = found
    assert (first.outputs, first.id) == (again.outputs, again.id)
    assert all(same(first.inputs[name], again.inputs[name]) for name in first.inputs)
    return again


def joined(message: Message) -> bytes:
    return b"".join(message.parts)


def decode(document: object, specs: tuple[TensorSpec, ...] = (X,), outputs: tuple[TensorSpec, ...] = (Y,)) -> Any:
    return decode_request(json.dumps(document).encode(), None, specs, outputs)


def decode_data(dtype: str, shape: list[int], data: object) -> Array:
    spec = TensorSpec(name="x", shape=tuple(f"d{axis}" for axis in range(len(shape))), dtype=dtype)
    array: Array = decode({"inputs": [tensor("x", DATATYPES[dtype], shape, data)]}, (spec,)).inputs["x"]
    return array


@st.composite
def arrays(draw: st.DrawFn, finite: bool, dtypes: tuple[str, ...] = tuple(DATATYPES)) -> Array:
    dtype = draw(st.sampled_from(dtypes))
    elements = {"allow_nan": not finite, "allow_infinity": not finite} if "float" in dtype else {}
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, max_side=5)
    array: Array = draw(hnp.arrays(dtype, shapes, elements=hnp.from_dtype(np.dtype(dtype), **elements)))
    return array


def same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(st.lists(arrays(finite=False), min_size=1, max_size=4), st.none() | st.text(st.characters(codec="utf-8")))
@settings(deadline=None)
def test_binary_requests_come_through(tensors: list[Array], request_id: str | None) -> None:
    inputs = {f"in{number}": array for number, array in enumerate(tensors)}
    specs = [TensorSpec(name=name, shape=array.shape, dtype=array.dtype) for name, array in inputs.items()]
    message = encode_request(inputs, binary=True, request_id=request_id)
    decoded = decode_request(joined(message), message.header_length, specs, [Y])
    assert decoded.id == request_id
    assert decoded.outputs == {"y": True}
    assert list(decoded.inputs) == list(inputs)
    for name, array in inputs.items():
        assert same(decoded.inputs[name], array)
        assert decoded.inputs[name].flags.aligned


@given(arrays(finite=True, dtypes=tuple(set(DATATYPES) - BINARY_ONLY)))
@settings(deadline=None)
def test_json_requests_come_through(array: Array) -> None:
    spec = TensorSpec(name="x", shape=array.shape, dtype=array.dtype)
    message = encode_request({"x": array}, binary=False)
    assert message.header_length is None
    decoded = decode_request(joined(message), None, [spec], [Y]).inputs["x"]
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


@given(arrays(finite=True, dtypes=tuple(set(DATATYPES) - BINARY_ONLY)))
@settings(deadline=None)
def test_nested_data_is_the_same_as_flat(array: Array) -> None:
    nested = decode_data(array.dtype.name, list(array.shape), array.tolist())
    flat = decode_data(array.dtype.name, list(array.shape), array.reshape(-1).tolist())
    np.testing.assert_array_equal(nested, array)
    np.testing.assert_array_equal(flat, array)


@given(st.dictionaries(st.sampled_from("abc"), arrays(finite=True), min_size=1), st.booleans(), st.none() | st.text())
@settings(deadline=None)
def test_responses_come_through(outputs: dict[str, Array], binary: bool, text: str | None) -> None:
    request_id = None if text is None else text.encode("utf-8", "replace").decode()
    as_bytes = {name: binary or array.dtype.name in BINARY_ONLY for name, array in outputs.items()}
    message = encode_response(InferResponse("m", "1", outputs, request_id), as_bytes)
    assert message.length == len(joined(message))
    assert (message.header_length is not None) == any(as_bytes.values())
    decoded = decode_response(joined(message), message.header_length)
    assert (decoded.model_name, decoded.model_version, decoded.id) == ("m", "1", request_id)
    for name, array in outputs.items():
        assert decoded.outputs[name].dtype == array.dtype
        np.testing.assert_array_equal(decoded.outputs[name], array)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def near_requests(draw: st.DrawFn) -> bytes:
    """A good request with some parts replaced by anything."""
    entry: dict[str, Any] = tensor("x", "FP32", [1, 3], [1.0, 2.0, 3.0])
    document: dict[str, Any] = {"id": "1", "inputs": [entry], "outputs": [{"name": "y"}], "parameters": {}}
    entry["parameters"] = {}
    output = document["outputs"][0]
    for holder, key in draw(
        st.lists(
            st.sampled_from(
                [
                    *((entry, key) for key in ("name", "datatype", "shape", "data", "parameters")),
                    *((document, key) for key in ("id", "inputs", "outputs", "parameters")),
                    (output, "name"),
                    (output, "parameters"),
                ]
            ),
            max_size=4,
        )
    ):
        if draw(st.booleans()):
            holder.pop(key, None)
        else:
            holder[key] = draw(JSON | st.just({"binary_data_size": draw(JSON | st.integers(0, 20))}))
    head = json.dumps(document).encode()
    return head + draw(st.binary(max_size=20))


@given(
    st.binary(max_size=64) | near_requests() | JSON.map(lambda value: json.dumps(value).encode()),
    st.none() | st.integers(-5, 400),
)
@settings(deadline=None, max_examples=500)
def test_whatever_comes_is_decoded_or_refused(body: bytes, header_length: int | None) -> None:
    whole = TensorSpec(name="x", shape=("batch", "length"), dtype="int64")
    for specs in ((X,), (whole,), (X, whole.model_copy(update={"name": "z"}))):
        refused, decoded = "", None
        try:
            decoded = decode_request(body, header_length, specs, (Y,))
        except InputError as fault:
            refused = str(fault)
        if decoded is None:
            assert 0 < len(refused) < 1000
        else:
            assert set(decoded.inputs) == {spec.name for spec in specs}


@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()), st.none() | st.integers(-5, 80))
@settings(deadline=None)
def test_whatever_answers_is_decoded_or_refused(body: bytes, header_length: int | None) -> None:
    with pytest.raises(ServeError):
        decode_response(body, header_length)


@pytest.mark.parametrize(
    ("dtype", "data", "says"),
    [
        ("uint8", [256, 0, 0], "outside the range of UINT8"),
        ("uint8", [-1, 0, 0], "outside the range of UINT8"),
        ("int64", [2**63, 0, 0], "outside the range of INT64"),
        ("int64", [2**64, 0, 0], "expected INT64 numbers, got float"),
        ("int32", [1.0, 2, 3], "expected INT32 numbers, got float"),
        ("int32", [True, 2, 3], "expected INT32 numbers, got bool"),
        ("float32", [True, 2, 3], "expected FP32 numbers, got bool"),
        ("float32", ["1", 2, 3], "expected FP32 numbers, got str"),
        ("float32", [None, 2, 3], "expected FP32 numbers, got NoneType"),
        ("float32", [1e39, 2, 3], "outside the range of FP32"),
        ("bool", [1, 0, 1], "expected BOOL numbers, got int"),
        ("float16", [1, 0, 1], "FP16 has no JSON form"),
        ("float32", [1, 2], "expected 3 elements"),
        ("float32", [1, 2, 3, 4], "expected 3 elements"),
        ("float32", [[1, 2, 3]], "expected 3 rows"),
        ("float32", [1, [2], 3], "got list"),
        ("float32", {"a": 1}, "to be a list"),
        ("float32", 1.0, "to be a list"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(dtype: str, data: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        decode_data(dtype, [3], data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([[1, 2], [3]], "lists of 2 at depth 1"),
        ([[1, 2], 3], "lists of 2 at depth 1"),
        ([[1, 2], [3, 4], [5, 6]], "expected 2 rows"),
        ([[[1], [2]], [[3], [4]]], "got list"),
    ],
)
def test_data_nested_otherwise_than_its_shape_is_refused(data: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        decode_data("int32", [2, 2], data)


@pytest.mark.parametrize("infinite", [b"NaN", b"Infinity", b"1e999"])
def test_json_input_that_is_no_json_number_is_refused(infinite: bytes) -> None:
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[%b,0,0]}]}' % infinite
    with pytest.raises(InputError, match="expected a JSON object"):
        decode_request(body, None, [X], [Y])


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ([-1, 3], "dimensions that are integers"),
        ([1.0, 3], "dimensions that are integers"),
        ([True, 3], "dimensions that are integers"),
        ([2**31, 3], "dimensions that are integers"),
        ([2**80, 3], "dimensions that are integers"),
        ([2**31 - 1, 3], "expected 6442450941 elements"),
        ([0, 3], "at least 1"),
        ([3], "expected shape"),
        ([1, 4], "expected shape"),
        ([1] * 65, "at most 64 dimensions"),
        ("1,3", "list of integers"),
        (None, "list of integers"),
    ],
)
def test_shapes_that_cannot_be_are_refused(shape: object, says: str) -> None:
    entry = {"name": "x", "datatype": "FP32", "shape": shape, "data": [1, 2, 3]}
    with pytest.raises(InputError, match=says):
        decode({"inputs": [entry]})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inputs": []}, r"expected inputs \['x'\], got \[\]"),
        ({"inputs": "x"}, "'inputs' to be a list"),
        ({"inputs": [3]}, "'inputs' to be a list of objects"),
        ({"inputs": [tensor("z", "FP32", [1, 3], [1, 2, 3])]}, "no input named 'z': expected"),
        ({"inputs": [tensor("x", "FP32", [1, 3], [1, 2, 3])] * 2}, "came twice"),
        ({"inputs": [tensor("x", "FP64", [1, 3], [1, 2, 3])]}, "expected datatype FP32, got 'FP64'"),
        ({"inputs": [tensor("x", "BYTES", [1, 3], ["a", "b", "c"])]}, "expected datatype FP32, got 'BYTES'"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3]}]}, "got neither"),
        (
            {"inputs": [{**tensor("x", "FP32", [1, 3], [1, 2, 3]), "parameters": {"binary_data_size": 12}}]},
            "got both",
        ),
        (
            {"inputs": [{**tensor("x", "FP32", [1, 3], [1, 2, 3]), "parameters": {"shared_memory_region": "r"}}]},
            "shared_memory_region",
        ),
        ({"id": 7}, "'id' to be a string, got the number 7"),
        ({"parameters": []}, "'parameters' to be an object"),
        ({"parameters": {"binary_data_output": 1}}, "true or false"),
        ({"outputs": [{"name": "z"}]}, "no output named 'z'"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "asked for twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification"),
    ],
)
def test_requests_that_break_a_rule_are_refused(change: dict[str, Any], says: str) -> None:
    good = {"inputs": [tensor("x", "FP32", [1, 3], [1, 2, 3])]}
    decode(good)
    with pytest.raises(InputError, match=says):
        decode({**good, **change})


def binary_request(size: object, data: bytes, datatype: str = "FP32") -> tuple[bytes, int]:
    entry = {"name": "x", "datatype": datatype, "shape": [1, 3], "parameters": {"binary_data_size": size}}
    head = orjson.dumps({"inputs": [entry]})
    return head + data, len(head)


@pytest.mark.parametrize(
    ("size", "data", "says"),
    [
        (12, bytes(8), "only 8 came"),
        (12, bytes(16), "4 bytes of binary data are left"),
        (8, bytes(8), "expected 12 bytes for shape"),
        (-1, bytes(12), "count of bytes"),
        (True, bytes(12), "count of bytes"),
        ("12", bytes(12), "count of bytes"),
        (2**70, bytes(12), "only 12 came|count of bytes"),
    ],
)
def test_binary_data_of_another_length_is_refused(size: object, data: bytes, says: str) -> None:
    if isinstance(size, int) and size > 2**64:
        head = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"parameters":{"binary_data_size":%d}}]}' % size
        body, length = head + data, len(head)
    else:
        body, length = binary_request(size, data)
    with pytest.raises(InputError, match=says):
        decode_request(body, length, [X], [Y])


def test_binary_data_is_not_copied_when_aligned() -> None:
    data = memoryview(np.arange(3, dtype=np.float32).tobytes())
    assert np.shares_memory(from_bytes("x", "float32", [1, 3], data), np.frombuffer(data, np.uint8))


def test_what_is_encoded_lies_aligned_for_the_other_side() -> None:
    message = encode_request({"x": np.ones((1, 3), np.float64)}, binary=True, request_id="odd")
    assert message.header_length is not None
    assert message.header_length % 8 == 0
    spec = TensorSpec(name="x", shape=(1, 3), dtype="float64")
    body = joined(message)
    decoded = decode_request(body, message.header_length, [spec], [Y]).inputs["x"]
    assert np.shares_memory(decoded, np.frombuffer(body, np.uint8))


def test_a_truth_value_other_than_0_and_1_is_refused() -> None:
    with pytest.raises(InputError, match="0 or 1 for BOOL"):
        from_bytes("x", "bool", [3], memoryview(b"\x00\x01\x02"))


def test_raw_mode_takes_the_shape_from_the_length() -> None:
    data = np.arange(6, dtype=np.float32)
    decoded = decode_request(data.tobytes(), 0, [X], [Y])
    assert same(decoded.inputs["x"], data.reshape(2, 3))
    assert decoded.outputs == {"y": True}


@pytest.mark.parametrize("length", [0, 4, 13])
def test_raw_mode_refuses_a_length_that_is_no_whole_batch(length: int) -> None:
    with pytest.raises(InputError, match="multiple of 12 bytes"):
        decode_request(bytes(length), 0, [X], [Y])


def test_raw_mode_needs_one_input_and_at_most_one_variable_dimension() -> None:
    with pytest.raises(InputError, match="one input"):
        decode_request(bytes(12), 0, [X, Y], [Y])
    with pytest.raises(InputError, match="one variable dimension"):
        decode_request(bytes(12), 0, [TensorSpec(name="x", shape=("batch", "length"))], [Y])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_output_that_json_cannot_say_is_refused_and_travels_as_bytes(value: float) -> None:
    response = InferResponse("m", "1", {"y": np.array([value], np.float32)})
    with pytest.raises(InputError, match=r"NaN or infinity.*binary_data"):
        encode_response(response, {"y": False})
    message = encode_response(response, {"y": True})
    assert same(decode_response(joined(message), message.header_length).outputs["y"], response.outputs["y"])


def test_outputs_come_in_the_order_asked_for_and_each_in_its_form() -> None:
    specs = tuple(TensorSpec(name=name, shape=(2,)) for name in "abc")
    outputs = [{"name": "c", "parameters": {"binary_data": True}}, {"name": "a", "parameters": {"binary_data": False}}]
    document = {"inputs": [tensor("x", "FP32", [1, 3], [1, 2, 3])], "outputs": outputs}
    chosen = decode(document, outputs=specs).outputs
    assert list(chosen.items()) == [("c", True), ("a", False)]
    everything = {name: np.array([1.5, 2], np.float32) for name in "abc"}
    message = encode_response(InferResponse("m", "1", everything), chosen)
    document = json.loads(joined(message)[: message.header_length])
    assert [entry["name"] for entry in document["outputs"]] == ["c", "a"]
    assert document["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert document["outputs"][1]["data"] == [1.5, 2.0]
    assert joined(message)[message.header_length :] == everything["c"].tobytes()
