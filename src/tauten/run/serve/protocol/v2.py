"""The Open Inference Protocol V2 as values: bytes in, bytes out, no I/O and no clock.

A message is JSON, or JSON and behind it the raw tensors in the order in which the JSON lists them (the binary tensor
data extension); the header ``Inference-Header-Content-Length`` then gives the length of the JSON. Both directions are
here, side by side: a server decodes requests and encodes responses, a client the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson

from tauten.core.tensor import Array, Arrays
from tauten.errors import InputError, ServeError
from tauten.run.serve.protocol.datatypes import (
    DATATYPES,
    datatype_of,
    from_bytes,
    from_json,
    json_ready,
    to_bytes,
)
from tauten.run.serve.protocol.elements import BYTES

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
MAX_DIM: Final = 2**31 - 1
_ALIGNMENT: Final = 8

UNSUPPORTED: Final = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification")
_NUMPY_TYPES: Final = {"BYTES": BYTES, **{datatype: dtype for dtype, datatype in DATATYPES.items()}}

Buffer = bytes | bytearray | memoryview


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


def encode_request(
    inputs: Mapping[str, Array],
    *,
    binary: bool,
    outputs: Sequence[str] = (),
    request_id: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Message:
    """The body that asks for ``outputs`` (all where none is named), with data both ways as bytes or as JSON."""
    document: dict[str, Any] = {} if request_id is None else {"id": request_id}
    document["inputs"], tensors = _encode_tensors(inputs, dict.fromkeys(inputs, binary))
    all_parameters = {**(parameters or {}), **({"binary_data_output": True} if binary else {})}
    if all_parameters:
        document["parameters"] = all_parameters
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
        document, rest = split(memoryview(body), header_length)
        if "error" in document:
            raise ServeError(f"the server refused: {document['error']}")
        tensors = Cursor(rest)
        outputs: Arrays = {}
        for entry in objects(document, "outputs"):
            name, datatype = string(entry, "name", "an output"), string(entry, "datatype", "an output")
            if datatype not in _NUMPY_TYPES:
                raise InputError(f"output {name}: unknown datatype {datatype!r:.80}")
            outputs[name] = decode_data(entry, name, _NUMPY_TYPES[datatype], shape_of(entry, name), tensors)
        tensors.expect_end()
    except InputError as fault:
        raise ServeError(f"expected an inference response: {fault}") from None
    return InferResponse(
        str(document.get("model_name", "")), str(document.get("model_version", "")), outputs, document.get("id")
    )


class Cursor:
    """The raw tensors behind the JSON, taken one after the other."""

    __slots__ = ("_data", "at")

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.at = 0

    def take(self, name: str, size: int) -> memoryview:
        left = len(self._data) - self.at
        if size > left:
            raise InputError(f"{name}: expected {size} bytes of binary data (binary_data_size), only {left} came")
        self.at += size
        return self._data[self.at - size : self.at]

    def expect_end(self) -> None:
        left = len(self._data) - self.at
        if left:
            raise InputError(f"{left} bytes of binary data are left that no binary_data_size claims")


def decode_data(entry: dict[str, Any], name: str, dtype: str, shape: Sequence[int], tensors: Cursor) -> Array:
    """The elements of one tensor: from its JSON, read already or not, or from the next of the raw ones."""
    parameters = parameters_of(entry, name)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise InputError(f"{name}: expected 'data' or the parameter 'binary_data_size', got neither")
        data = entry["data"]
        return data if isinstance(data, np.ndarray) else from_json(name, dtype, shape, data)
    if "data" in entry:
        raise InputError(f"{name}: expected 'data' or the parameter 'binary_data_size', got both")
    if type(size) is not int or size < 0:
        raise InputError(f"{name}: expected 'binary_data_size' to be a count of bytes, got {kind(size)}")
    return from_bytes(name, dtype, shape, tensors.take(name, size))


def choose_outputs(document: dict[str, Any], names: list[str], as_bytes: bool) -> dict[str, bool]:
    if document.get("outputs") in (None, []):
        return dict.fromkeys(names, as_bytes)
    chosen: dict[str, bool] = {}
    for entry in objects(document, "outputs"):
        name = string(entry, "name", "an output")
        if name not in names:
            raise InputError(f"no output named {name!r:.80}: expected some of {names}")
        if name in chosen:
            raise InputError(f"output {name!r} was asked for twice")
        chosen[name] = flag(parameters_of(entry, name), "binary_data", as_bytes)
    return chosen


def shape_of(entry: dict[str, Any], name: str) -> list[int]:
    shape = entry.get("shape")
    if not isinstance(shape, list):
        raise InputError(f"{name}: expected 'shape' to be a list of integers, got {kind(shape)}")
    if len(shape) > 64:
        raise InputError(f"{name}: expected a shape of at most 64 dimensions, got {len(shape)}")
    for dim in shape:
        if type(dim) is not int or not 0 <= dim <= MAX_DIM:
            raise InputError(f"{name}: expected dimensions that are integers from 0 to {MAX_DIM}, got {dim!r:.80}")
    return shape


def split(data: memoryview, header_length: int | None) -> tuple[dict[str, Any], memoryview]:
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
        raise InputError(f"expected a JSON object, got {kind(document)}")
    return document, data[len(head) :]


def objects(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = document.get(key)
    if not isinstance(entries, list):
        raise InputError(f"expected '{key}' to be a list of objects, got {kind(entries)}")
    for entry in entries:
        if not isinstance(entry, dict):
            raise InputError(f"expected '{key}' to be a list of objects, got {kind(entry)} in it")
    return entries


def string(entry: dict[str, Any], key: str, owner: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise InputError(f"{owner}: expected '{key}' to be a string, got {kind(value)}")
    return value


def parameters_of(entry: dict[str, Any], owner: str) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InputError(f"{owner}: expected 'parameters' to be an object, got {kind(parameters)}")
    for name in UNSUPPORTED:
        if name in parameters:
            raise InputError(f"{owner}: the parameter '{name}' belongs to an extension that this server does not have")
    return parameters


def flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"expected the parameter '{name}' to be true or false, got {kind(value)}")
    return value


def kind(value: object) -> str:
    """What JSON calls a value that came, and the value where it is short."""
    if value is None:
        return "nothing"
    names = {dict: "an object", list: "a list", str: "the string", bool: "the truth value"}
    word = names.get(type(value), "the number")
    return word if isinstance(value, dict | list) else f"{word} {value!r:.80}"


def _encode_tensors(
    arrays: Mapping[str, Array], as_bytes: Mapping[str, bool]
) -> tuple[list[dict[str, Any]], list[memoryview]]:
    entries: list[dict[str, Any]] = []
    tensors: list[memoryview] = []
    for name, array in arrays.items():
        entry: dict[str, Any] = {"name": name, "datatype": datatype_of(array.dtype.name), "shape": array.shape}
        if as_bytes[name]:
            tensors.append(to_bytes(array))
            entry["parameters"] = {"binary_data_size": tensors[-1].nbytes}
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
