"""The Open Inference Protocol V2 as values: bytes in, bytes out, no I/O and no clock.

A message is JSON, or JSON and behind it the raw tensors in the order in which the JSON lists them (the binary tensor
data extension); the header ``Inference-Header-Content-Length`` then gives the length of the JSON. Both directions are
here, side by side: a server decodes requests and encodes responses, a client the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import InputError, ServeError
from tauten.run.serve.protocol.datatypes import (
    DATATYPES,
    from_bytes,
    from_json,
    item_bytes,
    json_ready,
    to_bytes,
)

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
MAX_DIM: Final = 2**31 - 1
_ALIGNMENT: Final = 8

_UNSUPPORTED: Final = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification")
_NUMPY_TYPES: Final = {datatype: dtype for dtype, datatype in DATATYPES.items()}

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What a client asks: inputs by name, and the outputs it wants, each with whether as bytes.

    ``id`` is answered as it came. ``outputs`` is in the order of the answer.
    """

    inputs: Arrays
    outputs: dict[str, bool]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class InferResponse:
    """What a server answers."""

    model_name: str
    model_version: str
    outputs: Arrays
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A body in parts, to be sent one after the other. ``header_length`` is set where raw tensors follow the JSON."""

    parts: list[Buffer] = field(default_factory=list)
    header_length: int | None = None

    @property
    def length(self) -> int:
        """Bytes of all parts."""
        return sum(len(part) for part in self.parts)


def decode_request(
    body: Buffer, header_length: int | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> InferRequest:
    """The request in ``body`` for a model with these specs.

    Raises ``InputError`` that says what was expected and what came, and nothing else, whatever the bytes.
    """
    data = memoryview(body)
    if header_length == 0:
        return _decode_raw(data, inputs, outputs)
    document, rest = _split(data, header_length)
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InputError(f"expected 'id' to be a string, got {_kind(request_id)}")
    arrays = _decode_inputs(_objects(document, "inputs"), rest, {spec.name: spec for spec in inputs})
    as_bytes = _flag(_parameters(document, "request"), "binary_data_output", False)
    chosen = _choose_outputs(document, [spec.name for spec in outputs], as_bytes)
    return InferRequest(arrays, chosen, request_id)


def encode_request(
    inputs: Mapping[str, Array], *, binary: bool, outputs: Sequence[str] = (), request_id: str | None = None
) -> Message:
    """The body that asks for ``outputs`` (all where none is named), with data both ways as bytes or as JSON."""
    document: dict[str, Any] = {} if request_id is None else {"id": request_id}
    document["inputs"], tensors = _encode_tensors(inputs, dict.fromkeys(inputs, binary))
    if binary:
        document["parameters"] = {"binary_data_output": True}
    if outputs:
        document["outputs"] = [{"name": name} for name in outputs]
    return _message(document, tensors)


def encode_response(response: InferResponse, as_bytes: Mapping[str, bool]) -> Message:
    """The body that answers with the outputs named in ``as_bytes``, each as bytes or as JSON.

    Raises ``InputError`` where an output is asked for as JSON and JSON cannot say it.
    """
    document: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id is not None:
        document["id"] = response.id
    chosen = {name: response.outputs[name] for name in as_bytes}
    document["outputs"], tensors = _encode_tensors(chosen, as_bytes)
    return _message(document, tensors)


def decode_response(body: Buffer, header_length: int | None) -> InferResponse:
    """The response in ``body``. Raises ``ServeError`` where it is none, or says that the request failed."""
    try:
        document, rest = _split(memoryview(body), header_length)
        if "error" in document:
            raise ServeError(f"the server refused: {document['error']}")
        tensors = _Cursor(rest)
        outputs: Arrays = {}
        for entry in _objects(document, "outputs"):
            name, datatype = _string(entry, "name", "an output"), _string(entry, "datatype", "an output")
            if datatype not in _NUMPY_TYPES:
                raise InputError(f"output {name}: unknown datatype {datatype!r:.80}")
            outputs[name] = _decode_data(entry, name, _NUMPY_TYPES[datatype], _shape(entry, name), tensors)
        tensors.expect_end()
    except InputError as fault:
        raise ServeError(f"expected an inference response: {fault}") from None
    return InferResponse(
        str(document.get("model_name", "")), str(document.get("model_version", "")), outputs, document.get("id")
    )


class _Cursor:
    """The raw tensors behind the JSON, taken one after the other."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, name: str, size: int) -> memoryview:
        left = len(self._data) - self._at
        if size > left:
            raise InputError(f"{name}: expected {size} bytes of binary data (binary_data_size), only {left} came")
        self._at += size
        return self._data[self._at - size : self._at]

    def expect_end(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise InputError(f"{left} bytes of binary data are left that no binary_data_size claims")


def _decode_inputs(entries: list[dict[str, Any]], rest: memoryview, specs: dict[str, TensorSpec]) -> Arrays:
    tensors = _Cursor(rest)
    arrays: Arrays = {}
    for entry in entries:
        name = _string(entry, "name", "an input")
        spec = specs.get(name)
        if spec is None:
            raise InputError(f"no input named {name!r:.80}: expected {list(specs)}")
        if name in arrays:
            raise InputError(f"input {name!r} came twice")
        expected = DATATYPES[spec.dtype]
        datatype = _string(entry, "datatype", name)
        if datatype != expected:
            raise InputError(f"{name}: expected datatype {expected}, got {datatype!r:.80}")
        shape = _shape(entry, name)
        _check_shape(spec, shape)
        arrays[name] = _decode_data(entry, name, spec.dtype, shape, tensors)
    tensors.expect_end()
    if len(arrays) != len(specs):
        raise InputError(f"expected inputs {list(specs)}, got {list(arrays)}")
    return arrays


def _decode_data(entry: dict[str, Any], name: str, dtype: str, shape: list[int], tensors: _Cursor) -> Array:
    parameters = _parameters(entry, name)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise InputError(f"{name}: expected 'data' or the parameter 'binary_data_size', got neither")
        return from_json(name, dtype, shape, entry["data"])
    if "data" in entry:
        raise InputError(f"{name}: expected 'data' or the parameter 'binary_data_size', got both")
    if type(size) is not int or size < 0:
        raise InputError(f"{name}: expected 'binary_data_size' to be a count of bytes, got {_kind(size)}")
    return from_bytes(name, dtype, shape, tensors.take(name, size))


def _decode_raw(data: memoryview, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> InferRequest:
    """Raw mode: no JSON, the body is the one input; its shape follows from its length. Answered as bytes."""
    if len(inputs) != 1:
        raise InputError(f"{HEADER_LENGTH}: 0 needs a model of one input, this one has {len(inputs)}")
    spec = inputs[0]
    shape = [1 if isinstance(dim, str) else dim for dim in spec.shape]
    open_axes = [axis for axis, dim in enumerate(spec.shape) if isinstance(dim, str)]
    if len(open_axes) > 1:
        raise InputError(f"{HEADER_LENGTH}: 0 needs at most one variable dimension, the model has {spec.shape_text}")
    row = item_bytes(spec.dtype)
    for dim in shape:
        row *= dim
    if open_axes and row:
        rows, odd = divmod(len(data), row)
        if odd or not rows:
            raise InputError(f"{spec.name}: expected a multiple of {row} bytes, got {len(data)}")
        shape[open_axes[0]] = rows
    return InferRequest(
        {spec.name: from_bytes(spec.name, spec.dtype, shape, data)}, dict.fromkeys((o.name for o in outputs), True)
    )


def _choose_outputs(document: dict[str, Any], names: list[str], as_bytes: bool) -> dict[str, bool]:
    if not document.get("outputs"):
        return dict.fromkeys(names, as_bytes)
    chosen: dict[str, bool] = {}
    for entry in _objects(document, "outputs"):
        name = _string(entry, "name", "an output")
        if name not in names:
            raise InputError(f"no output named {name!r:.80}: expected some of {names}")
        if name in chosen:
            raise InputError(f"output {name!r} was asked for twice")
        chosen[name] = _flag(_parameters(entry, name), "binary_data", as_bytes)
    return chosen


def _check_shape(spec: TensorSpec, shape: list[int]) -> None:
    """Hold ``shape`` against ``spec`` before anything is allocated; a variable dimension is at least 1."""
    for name, size in spec.sizes(shape).items():
        if size < 1:
            raise InputError(f"{spec.name}: expected dimension {name!r} to be at least 1, got shape {shape}")


def _shape(entry: dict[str, Any], name: str) -> list[int]:
    shape = entry.get("shape")
    if not isinstance(shape, list):
        raise InputError(f"{name}: expected 'shape' to be a list of integers, got {_kind(shape)}")
    if len(shape) > 64:
        raise InputError(f"{name}: expected a shape of at most 64 dimensions, got {len(shape)}")
    for dim in shape:
        if type(dim) is not int or not 0 <= dim <= MAX_DIM:
            raise InputError(f"{name}: expected dimensions that are integers from 0 to {MAX_DIM}, got {dim!r:.80}")
    return shape


def _split(data: memoryview, header_length: int | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON object at the start of ``data``, and the raw tensors behind it."""
    if header_length is not None and not 0 <= header_length <= len(data):
        raise InputError(f"{HEADER_LENGTH}: expected 0 to {len(data)}, the bytes of the body, got {header_length}")
    head = data if header_length is None else data[:header_length]
    try:
        document = orjson.loads(head)
    except orjson.JSONDecodeError as fault:
        hint = "" if header_length is not None else f" (with raw tensors behind it, {HEADER_LENGTH} is needed)"
        raise InputError(f"expected a JSON object{hint}: {fault}") from None
    if not isinstance(document, dict):
        raise InputError(f"expected a JSON object, got {_kind(document)}")
    return document, data[len(head) :]


def _objects(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = document.get(key)
    if not isinstance(entries, list):
        raise InputError(f"expected '{key}' to be a list of objects, got {_kind(entries)}")
    for entry in entries:
        if not isinstance(entry, dict):
            raise InputError(f"expected '{key}' to be a list of objects, got {_kind(entry)} in it")
    return entries


def _string(entry: dict[str, Any], key: str, owner: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise InputError(f"{owner}: expected '{key}' to be a string, got {_kind(value)}")
    return value


def _parameters(entry: dict[str, Any], owner: str) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InputError(f"{owner}: expected 'parameters' to be an object, got {_kind(parameters)}")
    for name in _UNSUPPORTED:
        if name in parameters:
            raise InputError(f"{owner}: the parameter '{name}' belongs to an extension that this server does not have")
    return parameters


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"expected the parameter '{name}' to be true or false, got {_kind(value)}")
    return value


def _kind(value: object) -> str:
    """What JSON calls a value that came, and the value where it is short."""
    if value is None:
        return "nothing"
    names = {dict: "an object", list: "a list", str: "the string", bool: "the truth value"}
    kind = names.get(type(value), "the number")
    return kind if isinstance(value, dict | list) else f"{kind} {value!r:.80}"


def _encode_tensors(
    arrays: Mapping[str, Array], as_bytes: Mapping[str, bool]
) -> tuple[list[dict[str, Any]], list[memoryview]]:
    entries: list[dict[str, Any]] = []
    tensors: list[memoryview] = []
    for name, array in arrays.items():
        entry: dict[str, Any] = {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": array.shape}
        if as_bytes[name]:
            tensors.append(to_bytes(array))
            entry["parameters"] = {"binary_data_size": array.nbytes}
        else:
            entry["data"] = json_ready(name, array)
        entries.append(entry)
    return entries, tensors


def _message(document: dict[str, Any], tensors: list[memoryview]) -> Message:
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tensors:
        return Message([head])
    # Blanks behind JSON mean nothing; with them the first tensor lies aligned and the other side need not copy it.
    head += b" " * (-len(head) % _ALIGNMENT)
    return Message([head, *tensors], len(head))
