"""Inference requests over gRPC as values: bytes in, no I/O and no clock.

Tensors travel raw (little-endian, row-major, in the order of the inputs, beside them) or typed (numbers within the
input's ``contents``); a request has one or the other.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from tauten.core.tensor import Array, TensorSpec
from tauten.errors import InputError
from tauten.run.serve.protocol.buffer import ALONE, Buffer
from tauten.run.serve.protocol.datatypes import datatype_of, from_bytes, item_bytes
from tauten.run.serve.protocol.elements import BYTES, BytesSpec, Packed, pack_elements
from tauten.run.serve.protocol.grpc.messages import MESSAGES
from tauten.run.serve.protocol.layout import MOST_MICROSECONDS, MOST_PRIORITY, check_shape, fit, whole
from tauten.run.serve.protocol.v2 import MAX_DIM, UNSUPPORTED

Raw = bytes | memoryview

REQUEST: Final = MESSAGES.of("inference.ModelInferRequest")

VIEWS_FROM_BYTES: Final = 64 * 2**10
"""From this size on, raw tensors are seen in the message as it came and not copied out of it."""

_CONTENTS: Final = {
    "bool": "bool_contents",
    "int8": "int_contents",
    "int16": "int_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "uint8": "uint_contents",
    "uint16": "uint_contents",
    "uint32": "uint_contents",
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""The field of typed contents that carries each type; the others travel raw alone."""

_RAW_INPUT: Final = 7 << 3 | 2


def parse(kind: Any, data: bytes) -> Any:
    """``data`` as a message of class ``kind``. Raises ``InputError`` where it is none."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InputError(
            f"expected a message {kind.DESCRIPTOR.full_name}, got {len(data)} bytes that are none"
        ) from None


def parse_request(data: bytes) -> tuple[Any, Sequence[Raw]]:
    """A ``ModelInferRequest`` and its raw tensors. Raises ``InputError`` where ``data`` is none."""
    if len(data) >= VIEWS_FROM_BYTES:
        fields = raw_fields(data)
        if fields is not None:
            rest, raw = split_raw(data, fields)
            return parse(REQUEST, rest), raw
    message = parse(REQUEST, data)
    return message, message.raw_input_contents


class RawField(NamedTuple):
    """Where one raw tensor lies in a request: its tag, and begin and end of its bytes."""

    tag: int
    begin: int
    end: int


def split_raw(data: bytes, fields: Iterable[RawField]) -> tuple[bytes, list[memoryview]]:
    """A request's message without its raw tensors, and views of these."""
    view = memoryview(data)
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    kept = 0
    for tag, begin, end in fields:
        raw.append(view[begin:end])
        rest.append(view[kept:tag])
        kept = end
    rest.append(view[kept:])
    return b"".join(rest), raw


def raw_fields(data: bytes) -> Sequence[RawField] | None:
    """The raw tensors of a request; ``None`` where ``data`` is not plain."""
    found: list[RawField] = []
    at = 0
    while at < len(data):
        begin = at
        tag, at = _varint(data, at)
        if tag & 7 == 2:
            size, at = _varint(data, at)
            at += size
            if tag == _RAW_INPUT:
                found.append(RawField(begin, at - size, at))
        elif tag & 7 == 0:
            _, at = _varint(data, at)
        else:
            return None  # a field that the protocol does not have: protobuf itself shall judge
    return found if at == len(data) else None


@dataclass(slots=True)
class Asked:
    """What a request says beside its numbers.

    ``shapes`` are in the order of the model's inputs, and ``order`` is which of the message's inputs each of these is.
    Requests of one ``group`` fit into one batch. ``outputs`` are the places of those that are asked for, in order.
    A client that ``wants_final`` wants to be told, in a stream, which answer to a request is the last. ``answers`` is
    for the ``Encoder``, to remember what the answers to such requests begin with.
    """

    shapes: tuple[tuple[int, ...], ...]
    order: list[int]
    rows: int
    group: Hashable
    outputs: list[int]
    priority: int
    timeout_ns: int
    wants_final: bool
    answers: dict[Any, tuple[bytes, ...]] = field(default_factory=dict)


class Decoder:
    """Reads requests for a model with these inputs and outputs."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, batches: bool = True) -> None:
        self._inputs = tuple(inputs)
        self._places = {spec.name: place for place, spec in enumerate(inputs)}
        self._natural = list(range(len(self._inputs)))
        self._looked_at = [  # in each request, and not only for their length
            place for place, spec in enumerate(inputs) if spec.dtype == "bool" or isinstance(spec, BytesSpec)
        ]
        self._outputs = {spec.name: place for place, spec in enumerate(outputs)}
        self._shares = batches and all(spec.batch_axis == 0 for spec in (*inputs, *outputs))

    def __call__(self, message: Any, raw: Sequence[Raw]) -> tuple[Asked, Sequence[Buffer]]:
        """What a request asks, and a buffer of elements for each of the model's inputs, in the model's order.

        Raises ``InputError`` that says what was expected and what came, and nothing else, whatever the message.
        """
        buffers, shapes, order = self._tensors(message.inputs, raw)
        rows, group = fit(self._inputs, shapes)
        parameters = plain_parameters(message.parameters)
        refuse_unsupported("request", parameters)
        asked = Asked(
            tuple(shapes),
            order,
            rows,
            group if self._shares else ALONE,
            self._choose(message.outputs),
            priority=whole(parameters, "priority", MOST_PRIORITY),
            timeout_ns=1000 * whole(parameters, "timeout", MOST_MICROSECONDS),
            wants_final=parameters.get("triton_enable_empty_final_response") is True,
        )
        return asked, buffers

    def again(self, asked: Asked, raw: Sequence[Raw]) -> Sequence[Buffer]:
        """The buffers of a request that asks the same, whose raw tensors are as long. Raises ``InputError``."""
        buffers: Sequence[Buffer] = raw if asked.order == self._natural else [raw[index] for index in asked.order]
        if self._looked_at:
            buffers = list(buffers)
            for place in self._looked_at:
                buffers[place] = _checked(self._inputs[place], asked.shapes[place], raw[asked.order[place]])
        return buffers

    def _tensors(self, tensors: Any, raw: Sequence[Raw]) -> tuple[list[Buffer], list[tuple[int, ...]], list[int]]:
        if raw and len(raw) != len(tensors):
            raise InputError(f"expected raw_input_contents for each of {len(tensors)} inputs, got {len(raw)}")
        count = len(self._inputs)
        buffers: list[Buffer] = [b""] * count
        shapes: list[tuple[int, ...]] = [()] * count
        order = [0] * count
        missing = set(self._places)
        for index, tensor in enumerate(tensors):
            place = self._places.get(tensor.name)
            if place is None:
                raise InputError(f"no input named {tensor.name!r:.80}: expected {list(self._places)}")
            if tensor.name not in missing:
                raise InputError(f"input {tensor.name!r} came twice")
            missing.remove(tensor.name)
            spec = self._inputs[place]
            shape = _shape(tensor, spec)
            if tensor.parameters:
                refuse_unsupported(spec.name, tensor.parameters)
            shapes[place] = shape
            order[place] = index
            if not raw:
                buffers[place] = _from_contents(tensor.contents, spec, shape)
            elif tensor.HasField("contents") and tensor.contents.ByteSize():
                raise InputError(f"{spec.name}: expected raw_input_contents or contents, got both")
            else:
                buffers[place] = _checked(spec, shape, raw[index])
        if missing:
            raise InputError(f"expected inputs {list(self._places)}, got {[tensor.name for tensor in tensors]}")
        return buffers, shapes, order

    def _choose(self, outputs: Any) -> list[int]:
        """The outputs that a request names, in its order; all where it names none."""
        if not outputs:
            return list(self._outputs.values())
        chosen: list[int] = []
        for output in outputs:
            place = self._outputs.get(output.name)
            if place is None:
                raise InputError(f"no output named {output.name!r:.80}: expected some of {list(self._outputs)}")
            if place in chosen:
                raise InputError(f"output {output.name!r} was asked for twice")
            if output.parameters:
                refuse_unsupported(output.name, output.parameters)
            chosen.append(place)
        return chosen


def refuse_unsupported(owner: str, parameters: Mapping[str, Any]) -> None:
    """Raise ``InputError`` for parameters that would change what the data means, and that are not known here."""
    for name in UNSUPPORTED:
        if name in parameters:
            raise InputError(f"{owner}: the parameter '{name}' belongs to an extension that this server does not have")


def plain_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The values of parameters, as JSON would have them; one that holds no value is ``None``."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        chosen = value.WhichOneof("parameter_choice")
        found[name] = None if chosen is None else getattr(value, chosen)
    return found


def _shape(tensor: Any, spec: TensorSpec) -> tuple[int, ...]:
    """The tensor's shape, held against ``spec`` before anything is allocated."""
    expected = datatype_of(spec.dtype)
    if tensor.datatype != expected:
        raise InputError(f"{spec.name}: expected datatype {expected}, got {tensor.datatype!r:.80}")
    if len(tensor.shape) > 64:
        raise InputError(f"{spec.name}: expected a shape of at most 64 dimensions, got {len(tensor.shape)}")
    shape = tuple(tensor.shape)
    for dim in shape:
        if not 0 <= dim <= MAX_DIM:
            raise InputError(f"{spec.name}: expected dimensions from 0 to {MAX_DIM}, got {dim}")
    check_shape(spec, shape)
    return shape


def _checked(spec: TensorSpec, shape: tuple[int, ...], data: Raw) -> Buffer:
    """``data`` as it is, where it is as long as ``shape`` says and each of its elements is one."""
    if isinstance(spec, BytesSpec):
        from_bytes(spec.name, BYTES, shape, memoryview(data))
        return Packed(data)
    if spec.dtype == "bool" or len(data) != math.prod(shape) * item_bytes(spec.dtype):
        from_bytes(spec.name, spec.dtype, shape, memoryview(data))  # says what is wrong
    return data


def _from_contents(contents: Any, spec: TensorSpec, shape: tuple[int, ...]) -> Buffer:
    datatype = datatype_of(spec.dtype)
    wanted = _CONTENTS.get(spec.dtype)
    if wanted is None:
        raise InputError(f"{spec.name}: {datatype} has no typed contents: send it in raw_input_contents")
    for came, _ in contents.ListFields():
        if came.name != wanted:
            raise InputError(f"{spec.name}: expected {datatype} in {wanted}, got {came.name}")
    numbers = getattr(contents, wanted)
    expected = math.prod(shape)
    if len(numbers) != expected:
        raise InputError(
            f"{spec.name}: expected {expected} elements in {wanted} for shape {list(shape)}, got {len(numbers)}"
        )
    if isinstance(spec, BytesSpec):
        return Packed(pack_elements(numbers))
    array: Array = np.array(numbers, _WIDE[wanted])
    if array.dtype.name != spec.dtype:
        info = np.iinfo(spec.dtype)
        if array.size and not (info.min <= array.min() and array.max() <= info.max):
            raise InputError(f"{spec.name}: a number lies outside the range of {datatype}")
        array = array.astype(spec.dtype)
    return array.data


_WIDE: Final = {
    "bool_contents": np.bool_,
    "int_contents": np.int32,
    "int64_contents": np.int64,
    "uint_contents": np.uint32,
    "uint64_contents": np.uint64,
    "fp32_contents": np.float32,
    "fp64_contents": np.float64,
}
"""The NumPy type of the numbers in each field."""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that starts at ``at``, and where it ends; past the end where it is cut off or too long."""
    number = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    return 0, len(data) + 1
