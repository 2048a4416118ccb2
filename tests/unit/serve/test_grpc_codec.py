"""Messages of inference over gRPC, without a server."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tauten.core.tensor import TensorSpec
from tauten.errors import InputError
from tauten.run.serve.protocol.buffer import ALONE, Buffer
from tauten.run.serve.protocol.datatypes import BINARY_ONLY, DATATYPES
from tauten.run.serve.protocol.elements import BytesSpec, bounds, pack_elements, to_objects
from tauten.run.serve.protocol.grpc import codec
from tauten.run.serve.protocol.grpc.answers import Encoder
from tauten.run.serve.protocol.grpc.codec import Asked, Decoder, parse_request, raw_fields, split_raw
from tauten.run.serve.protocol.grpc.messages import HEALTH, INFERENCE, MESSAGES, REFLECTIONS
from tauten.run.serve.protocol.grpc.schema import Schema
from tauten.run.serve.protocol.grpc.seen import SeenRequests, cut
from tests.unit.serve.grpc_tiny import REQUEST, RESPONSE, arrays_of, field_of, ones, request_of

X = TensorSpec(name="x", shape=("batch", 3))
Y = TensorSpec(name="y", shape=("batch", "length"), dtype="int8")
B = TensorSpec(name="b", shape=(2,), dtype="bool")


def decode(
    message: Any, *specs: TensorSpec, outputs: tuple[TensorSpec, ...] = (X, Y)
) -> tuple[Asked, Sequence[Buffer]]:
    return Decoder(specs or (X,), outputs)(*parse_request(message.SerializeToString()))


def back(asked: Asked, buffers: Sequence[Buffer], specs: tuple[TensorSpec, ...]) -> list[np.ndarray[Any, Any]]:
    return [
        np.frombuffer(data, spec.dtype).reshape(shape)
        for data, shape, spec in zip(buffers, asked.shapes, specs, strict=True)
    ]


def encoded(outputs: Mapping[str, np.ndarray[Any, Any]], request_id: str = "", **parameters: Any) -> Any:
    """The response with all of ``outputs``, written twice: the second time from what was remembered of the first."""
    specs = [TensorSpec(name=name, shape=array.shape) for name, array in outputs.items()]
    encode = Encoder("m", "1", specs)
    asked = Asked((), [], 1, ALONE, list(range(len(specs))), 0, 0, wants_final=False)
    first, second = (encode(asked, list(outputs.values()), request_id, parameters) for _ in range(2))
    assert first == second
    return RESPONSE.FromString(second)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[tuple[TensorSpec, ...], dict[str, np.ndarray[Any, Any]]]:
    rows = draw(st.integers(1, 3))
    found: dict[str, np.ndarray[Any, Any]] = {}
    specs = []
    for index in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(list(DATATYPES)))
        inner = draw(st.lists(st.integers(0, 3), max_size=2))
        name = f"t{index}"
        found[name] = draw(arrays.arrays(dtype, (rows, *inner)))
        specs.append(TensorSpec(name=name, shape=("batch", *inner), dtype=dtype))
    return tuple(specs), found


@given(tensors(), st.randoms(use_true_random=False), st.booleans(), st.sampled_from(["", "7"]))
def test_what_goes_in_comes_out_whatever_the_types_shapes_and_order(
    tensors: Any, random: Any, large: bool, request_id: str
) -> None:
    specs, given_arrays = tensors
    names = list(given_arrays)
    random.shuffle(names)
    shuffled = {name: given_arrays[name] for name in names}
    typed = not any(array.dtype.name in BINARY_ONLY for array in given_arrays.values())
    for message in (request_of(shuffled), *([request_of(shuffled, typed=True)] if typed else [])):
        data = message.SerializeToString()
        fields = raw_fields(data)
        assert fields is not None
        apart = split_raw(data, fields)
        parsed = (codec.parse(REQUEST, apart[0]), apart[1]) if large else parse_request(data)
        asked, buffers = Decoder(specs, specs)(*parsed)
        assert asked.rows == len(next(iter(given_arrays.values())))
        for came, wanted in zip(back(asked, buffers, specs), given_arrays.values(), strict=True):
            np.testing.assert_array_equal(came, wanted, strict=True)
    response = encoded(given_arrays, request_id)
    assert (response.model_name, response.model_version, response.id) == ("m", "1", request_id)
    for name, array in arrays_of(response).items():
        np.testing.assert_array_equal(array, given_arrays[name], strict=True)


def test_a_large_tensor_is_seen_where_it_came() -> None:
    array = np.arange(3 * 2**14, dtype=np.float32).reshape(-1, 3)
    message = request_of({"x": array})
    data = message.SerializeToString()
    assert len(data) > codec.VIEWS_FROM_BYTES
    parsed, raw = parse_request(data)
    assert [view.obj for view in raw] == [data]  # type: ignore[union-attr]
    assert not parsed.raw_input_contents
    parsed.raw_input_contents.extend(bytes(view) for view in raw)
    assert parsed == message


@given(st.binary(max_size=200))
def test_taking_a_message_apart_agrees_with_protobuf(data: bytes) -> None:
    try:
        whole = REQUEST.FromString(data)
    except DecodeError:
        return  # whatever was taken apart is parsed, and refused, later
    fields = raw_fields(data)
    if fields is not None:
        apart = split_raw(data, fields)
        message = REQUEST.FromString(apart[0])
        message.raw_input_contents.extend(bytes(view) for view in apart[1])
        assert message == whole


@given(st.data())
def test_any_bytes_are_a_request_or_an_input_error(data: st.DataObject) -> None:
    valid = bytearray(ones(2, typed=data.draw(st.booleans()), outputs=["x"]).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        valid[data.draw(st.integers(0, len(valid) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        Decoder((X,), (X,))(*parse_request(bytes(valid[: data.draw(st.integers(0, len(valid)))])))


def again(seen: SeenRequests[Decoder], data: bytes) -> tuple[Asked, list[bytes]] | None:
    """What is remembered of ``data``, and its tensors as bytes."""
    found = seen.find(data)
    if found is None:
        return None
    buffers = found.way.again(found.asked, cut(data, found.cuts))
    return found.asked, [bytes(memoryview(buffer).cast("B")) for buffer in buffers]


@given(tensors(), st.randoms(use_true_random=False))
def test_a_request_like_one_seen_before_says_what_it_would_say_read_anew(tensors: Any, random: Any) -> None:
    specs, arrays_given = tensors
    names = list(arrays_given)
    random.shuffle(names)
    decoder, seen = Decoder(specs, specs), SeenRequests[Decoder]()
    first, second = (
        request_of(dict(zip(names, values, strict=True))).SerializeToString()
        for values in ([arrays_given[name] for name in names], [arrays_given[name][::-1].copy() for name in names])
    )
    asked, _ = decoder(*parse_request(first))
    seen.learn(first, decoder, asked)
    remembered = again(seen, second)
    assert remembered is not None
    assert remembered[0] is asked
    _, buffers = decoder(*parse_request(second))
    assert remembered[1] == [bytes(memoryview(buffer).cast("B")) for buffer in buffers]
    assert seen.find(second[:-1]) is None
    assert seen.find(second + b"\x1a\x011") is None  # an id behind it


def test_what_is_seen_is_the_same_in_all_but_its_tensors() -> None:
    two = Decoder((X, Y), (X,))
    seen = SeenRequests[Decoder]()

    def pair(rows: int, columns: int, fill: int = 0) -> bytes:
        both: dict[str, np.ndarray[Any, Any]] = {
            "x": np.full((rows, 3), fill, np.float32),
            "y": np.full((rows, columns), fill, np.int8),
        }
        return bytes(request_of(both).SerializeToString())

    data = pair(1, 12)
    asked, _ = two(*parse_request(data))
    seen.learn(data, two, asked)
    assert again(seen, pair(1, 12, 1)) == (asked, [np.ones(3, np.float32).tobytes(), b"\1" * 12])
    assert seen.find(pair(1, 11)) is None
    assert seen.find(pair(2, 12)) is None
    # As long as the one before, with the same beginning: but the second tensor has another length than its shape.
    message = REQUEST.FromString(data)
    del message.raw_input_contents[1:]
    message.raw_input_contents.extend([b"\0" * 4, b"\0" * 6])
    other = message.SerializeToString()
    assert len(other) == len(data)
    assert seen.find(other) is None


def test_a_request_that_goes_on_behind_its_tensors_is_another() -> None:
    decoder, seen = Decoder((X,), (X,)), SeenRequests[Decoder]()
    short, long = ones(1).SerializeToString(), ones(2).SerializeToString()
    for data in (short, long):
        seen.learn(data, decoder, decoder(*parse_request(data))[0])
    with_id = short + b"\x1a\x0a0123456789"
    assert len(with_id) == len(long)
    assert seen.find(short) is not None
    assert seen.find(with_id) is None


def test_what_differs_each_time_or_is_not_plain_is_not_remembered() -> None:
    decoder = Decoder((X,), (X,))
    for data in (
        ones(typed=True).SerializeToString(),
        ones().SerializeToString() + b"\x0a\x01m",  # the model's name once more, behind the tensors
        ones(model="m" * 5000).SerializeToString(),
    ):
        seen = SeenRequests[Decoder]()
        asked, _ = decoder(*parse_request(data))
        seen.learn(data, decoder, asked)
        assert seen.find(data) is None


def test_no_client_fills_the_memory_with_what_it_sends() -> None:
    decoder, seen = Decoder((X,), (X,)), SeenRequests[Decoder]()
    for number in range(3000):
        data = ones(1 + number % 3, model=f"m{number}").SerializeToString()
        seen.learn(data, decoder, decoder(*parse_request(data))[0])
        assert seen.find(data) is not None
    assert len(seen._seen) <= 512
    assert len(seen._ends) <= 512


def test_truth_values_and_elements_of_bytes_are_looked_at_in_each_request() -> None:
    text = BytesSpec(name="text", shape=(1,))
    for spec, good, bad in (
        (B, b"\x01\x00", b"\x01\x02"),
        (text, pack_elements([b"abcd"]), b"\xff" + pack_elements([b"abcd"])[1:]),
    ):
        message = request_of({"b": np.array([True, False])}) if spec is B else REQUEST(raw_input_contents=[good])
        if spec is text:
            message.inputs.add(name="text", datatype="BYTES", shape=[1])
        message.raw_input_contents[0] = good
        data = message.SerializeToString()
        decoder, seen = Decoder((spec,), (X,)), SeenRequests[Decoder]()
        seen.learn(data, decoder, decoder(*parse_request(data))[0])
        message.raw_input_contents[0] = bad
        with pytest.raises(InputError, match=spec.name):
            again(seen, message.SerializeToString())


def test_what_answers_begin_with_is_remembered_by_what_they_are() -> None:
    encode = Encoder("m", "1", (X,))
    asked = Asked((), [], 1, ALONE, [0], 0, 0, wants_final=False)
    plain = np.arange(12, dtype=np.float32).reshape(4, 3)
    for array in (plain, plain + 1, plain[:2], plain.T.copy().T, plain.astype(">f4"), plain.astype(np.int64), plain):
        answer = arrays_of(RESPONSE.FromString(encode(asked, [array])))["x"]
        np.testing.assert_array_equal(answer, array)
    whole = RESPONSE.FromString(encode(asked, [plain], "7", {"a": 1, "b": True, "c": "d"}))
    assert (whole.id, whole.parameters["a"].int64_param, whole.parameters["c"].string_param) == ("7", 1, "d")
    texts = [to_objects([b"a" * size], (1,)) for size in (1, 5)]
    for text in texts:
        assert RESPONSE.FromString(encode(asked, [text])).raw_output_contents[0] == pack_elements(text.tolist())


def test_rows_and_groups() -> None:
    y = np.zeros((2, 5), np.int8)
    asked, _ = decode(request_of({"y": y}), Y)
    assert (asked.rows, asked.group) == (2, (5,))
    assert decode(request_of({"y": y}), Y, outputs=(B,))[0].group is ALONE
    apart, _ = Decoder((Y,), (Y,), batches=False)(*parse_request(request_of({"y": y}).SerializeToString()))
    assert apart.group is ALONE


def test_elements_of_bytes_travel_raw_and_typed() -> None:
    spec = BytesSpec(name="text", shape=("batch",))
    raw = REQUEST(model_name="m", raw_input_contents=[pack_elements([b"ab", b""])])
    raw.inputs.add(name="text", datatype="BYTES", shape=[2])
    typed = REQUEST(model_name="m")
    typed.inputs.add(name="text", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"ab", b""])
    for message in (raw, typed):
        asked, buffers = decode(message, spec, outputs=(spec,))
        assert (asked.rows, asked.group) == (2, ())
        assert bounds(buffers[0], 2) == [0, 6, 10]  # type: ignore[arg-type]
    raw.raw_input_contents[0] += b"!"
    wrong(raw, "text: expected 4 bytes of length at byte 10, only 1 are left", spec)
    response = encoded({"text": to_objects([b"ab", b""], (2,))})
    assert response.outputs[0].datatype == "BYTES"
    assert response.raw_output_contents[0] == pack_elements([b"ab", b""])


def test_parameters_are_priority_and_timeout() -> None:
    message = ones()
    message.parameters["priority"].uint64_param = 2
    message.parameters["timeout"].int64_param = 1500
    message.parameters["sequence_of_others"].string_param = "kept out"
    asked, _ = decode(message)
    assert (asked.priority, asked.timeout_ns) == (2, 1_500_000)


def wrong(message: Any, text: str, *specs: TensorSpec) -> None:
    with pytest.raises(InputError, match=text):
        decode(message, *specs)


def test_each_mistake_is_named() -> None:
    wrong(REQUEST(), r"expected inputs \['x'\], got \[\]")
    wrong(request_of({"z": np.zeros((1, 3), np.float32)}), r"no input named 'z': expected \['x'\]")
    wrong(request_of({"x": np.zeros((1, 3), np.float64)}), "x: expected datatype FP32, got 'FP64'")
    wrong(request_of({"x": np.zeros((1, 4), np.float32)}), r"x: expected shape \(batch, 3\), got \(1, 4\)")
    wrong(request_of({"x": np.zeros((0, 3), np.float32)}), "expected dimension 'batch' to be at least 1")
    wrong(ones(outputs=["z"]), r"no output named 'z': expected some of \['x', 'y'\]")
    wrong(ones(outputs=["x", "x"]), "output 'x' was asked for twice")
    twice = ones()
    twice.inputs.append(twice.inputs[0])
    wrong(twice, "expected raw_input_contents for each of 2 inputs, got 1")
    twice.raw_input_contents.append(twice.raw_input_contents[0])
    wrong(twice, "input 'x' came twice")
    both = ones()
    both.inputs[0].contents.fp32_contents.append(1)
    wrong(both, "x: expected raw_input_contents or contents, got both")
    short = ones()
    short.raw_input_contents[0] = b"1234"
    wrong(short, r"x: expected 12 bytes for shape \[1, 3\] of FP32, got 4")
    few = ones(typed=True)
    del few.inputs[0].contents.fp32_contents[0]
    wrong(few, r"x: expected 3 elements in fp32_contents for shape \[1, 3\], got 2")
    other = ones(typed=True)
    other.inputs[0].contents.int_contents.append(1)
    wrong(other, "x: expected FP32 in fp32_contents, got int_contents")
    negative = ones()
    negative.inputs[0].shape[0] = -1
    wrong(negative, "x: expected dimensions from 0 to 2147483647, got -1")
    deep = ones()
    deep.inputs[0].shape.extend([1] * 70)
    wrong(deep, "expected a shape of at most 64 dimensions, got 72")
    wrong(request_of({"y": np.zeros((1, 1), np.int8)}, typed=True), "expected inputs", X, Y)
    half = TensorSpec(name="h", shape=(1,), dtype="float16")
    message = request_of({"h": np.zeros(1, np.float16)})
    del message.raw_input_contents[:]
    wrong(message, "h: FP16 has no typed contents: send it in raw_input_contents", half)


def test_numbers_outside_a_type_are_refused() -> None:
    message = request_of({"y": np.array([[1, 2]], np.int8)}, typed=True)
    message.inputs[0].contents.int_contents[1] = 128
    wrong(message, "y: a number lies outside the range of INT8", Y)
    message.inputs[0].contents.int_contents[1] = -128
    assert back(*decode(message, Y), (Y,))[0].tolist() == [[1, -128]]
    truth = request_of({"b": np.array([True, False])})
    truth.raw_input_contents[0] = b"\x01\x02"
    wrong(truth, "b: expected bytes 0 or 1 for BOOL, got another", B)


@pytest.mark.parametrize(("name", "field", "value"), [
    ("priority", "int64_param", -1),
    ("timeout", "string_param", "soon"),
    ("timeout", "double_param", 1.0),
    ("timeout", "bool_param", True),
])  # fmt: skip
def test_parameters_of_another_kind_are_refused(name: str, field: str, value: object) -> None:
    message = ones()
    setattr(message.parameters[name], field, value)
    wrong(message, f"expected the parameter '{name}' to be a whole number")


def test_extensions_that_are_not_there_are_refused() -> None:
    for place in ("request", "input", "output"):
        message = ones(outputs=["x"])
        owner = {"request": message, "input": message.inputs[0], "output": message.outputs[0]}[place]
        owner.parameters["shared_memory_region"].string_param = "r"
        wrong(message, "'shared_memory_region' belongs to an extension that this server does not have")


def fields(descriptor: Any) -> dict[str, Any]:
    """What decides the bytes of a message: each field's number, type and whether it repeats, and nested messages."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.containing_oneof and field.containing_oneof.name,
            field.enum_type and [(value.name, value.number) for value in field.enum_type.values],
            field.message_type and field.message_type.name,
        )
        for field in descriptor.fields
    }


def assert_within(ours: Any, theirs: Any) -> None:
    """Each field of ``ours``, and of the messages in it, is the same in ``theirs``."""
    known = fields(theirs)
    for name, facts in fields(ours).items():
        assert known[name] == facts, f"{ours.full_name}.{name}"
    for inner in ours.nested_types:
        assert_within(inner, theirs.nested_types_by_name[inner.name])


def test_messages_are_those_of_an_independent_client() -> None:
    pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
    from tritonclient.grpc import model_config_pb2, service_pb2

    for name in INFERENCE.messages:
        if "." not in name:
            module = service_pb2 if name in service_pb2.DESCRIPTOR.message_types_by_name else model_config_pb2
            assert_within(MESSAGES.of(f"inference.{name}").DESCRIPTOR, module.DESCRIPTOR.message_types_by_name[name])
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for name, method in MESSAGES.methods(INFERENCE).items():
        other = theirs.methods_by_name[name]
        assert method.request.DESCRIPTOR.full_name == other.input_type.full_name
        assert method.response.DESCRIPTOR.full_name == other.output_type.full_name
        assert (method.request_streaming, method.response_streaming) == (
            other.client_streaming,
            other.server_streaming,
        )


def test_health_and_reflection_are_those_of_the_public_packages() -> None:
    health = pytest.importorskip("grpc_health.v1.health_pb2")
    reflection = pytest.importorskip("grpc_reflection.v1alpha.reflection_pb2")
    for schema, package in ((HEALTH, health), (REFLECTIONS[1], reflection)):
        for name in schema.messages:
            theirs = package.DESCRIPTOR.message_types_by_name[name]
            assert_within(MESSAGES.of(f"{schema.package}.{name}").DESCRIPTOR, theirs)


def test_a_line_that_is_no_field_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"p\.M: expected TYPE NAME = NUMBER, got 'string name'"):
        Schema("f", "p", {"M": "string name"}).descriptor()


def test_the_fields_of_typed_contents() -> None:
    assert {dtype: field_of(dtype) for dtype in codec._CONTENTS} == codec._CONTENTS
