"""Elements of the Open Inference Protocol V2: names of types, and numbers as JSON or as bytes.

Bytes are little-endian and row-major. Arrays of the datatype BYTES hold ``bytes`` objects; they are in no model, and
may be before and after one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson

from tauten.core.tensor import Array
from tauten.errors import InputError
from tauten.run.serve.protocol.elements import BYTES, pack_elements, to_objects, unpack_elements

DATATYPES: Final = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The protocol's name of each NumPy type that a model may have."""

BINARY_ONLY: Final = frozenset({"float16"})
"""Types that the protocol carries as bytes only."""

_WIRE: Final = {name: np.dtype(name).newbyteorder("<") for name in DATATYPES}
_JSON_KINDS: Final[dict[str, frozenset[type]]] = {
    name: frozenset({bool}) if name == "bool" else frozenset({int, float}) if "float" in name else frozenset({int})
    for name in DATATYPES
}


def datatype_of(dtype: str) -> str:
    """The protocol's name of a spec's type or of an array's."""
    return "BYTES" if dtype in (BYTES, "object") else DATATYPES[dtype]


def item_bytes(dtype: str) -> int:
    """Bytes of one element."""
    return _WIRE[dtype].itemsize


def from_bytes(name: str, dtype: str, shape: Sequence[int], data: memoryview) -> Array:
    """A read-only view of ``data`` as an array; copied only where its address is not aligned for ``dtype``.

    Raises ``InputError`` where ``data`` is not as long as ``shape`` says, or holds a truth value other than 0 and 1.
    """
    if dtype == BYTES:
        return to_objects(unpack_elements(name, shape, data), shape)
    expected = math.prod(shape) * item_bytes(dtype)
    if data.nbytes != expected:
        raise InputError(
            f"{name}: expected {expected} bytes for shape {list(shape)} of {DATATYPES[dtype]}, got {data.nbytes}"
        )
    if dtype == "bool" and data.nbytes and np.frombuffer(data, np.uint8).max() > 1:
        raise InputError(f"{name}: expected bytes 0 or 1 for BOOL, got another")
    array = np.frombuffer(data, _WIRE[dtype])
    if not array.flags.aligned:
        # Through bytes, whose memory is aligned: NumPy's own copy would let other threads run first.
        array = np.frombuffer(bytes(data), _WIRE[dtype])
    return array.reshape(shape)


def from_json(name: str, dtype: str, shape: Sequence[int], data: Any) -> Array:
    """An array of the numbers in ``data``, nested like ``shape`` or flat in row-major order; of strings for BYTES.

    Raises ``InputError`` for a number too many or too few, one of another kind, or one that ``dtype`` cannot hold.
    """
    if dtype == BYTES:
        return to_objects([_encode(name, text) for text in _flat(name, shape, data)], shape)
    datatype = DATATYPES[dtype]
    if dtype in BINARY_ONLY:
        raise InputError(f"{name}: {datatype} has no JSON form: send it as binary data")
    numbers = _flat(name, shape, data)
    strange = set(map(type, numbers)) - _JSON_KINDS[dtype]
    if strange:
        came = ", ".join(sorted(kind.__name__ for kind in strange))
        raise InputError(f"{name}: expected {datatype} numbers, got {came}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(numbers, dtype)
    except OverflowError:
        raise InputError(f"{name}: a number lies outside the range of {datatype}") from None
    # JSON has no infinity, so one that is here came from a number that the type cannot hold.
    if "float" in dtype and not np.isfinite(array).all():
        raise InputError(f"{name}: a number lies outside the range of {datatype}")
    return array.reshape(shape)


def _encode(name: str, text: Any) -> bytes:
    if type(text) is not str:
        raise InputError(f"{name}: expected BYTES as strings, got {type(text).__name__}")
    return text.encode()


def _flat(name: str, shape: Sequence[int], data: Any) -> list[Any]:
    """The numbers of ``data`` in row-major order, level by level."""
    if not isinstance(data, list):
        if shape:
            raise InputError(f"{name}: expected 'data' to be a list, got {type(data).__name__}")
        return [data]
    level = data
    if data and isinstance(data[0], list) and shape:
        if len(data) != shape[0]:
            raise InputError(f"{name}: expected {shape[0]} rows for shape {list(shape)}, got {len(data)}")
        for depth, inner in enumerate(shape[1:], start=1):
            if any(type(row) is not list or len(row) != inner for row in level):
                raise InputError(f"{name}: expected lists of {inner} at depth {depth} for shape {list(shape)}")
            level = list(chain.from_iterable(level))
    expected = math.prod(shape)
    if len(level) != expected:
        raise InputError(f"{name}: expected {expected} elements for shape {list(shape)}, got {len(level)}")
    return level


def to_bytes(array: Array) -> memoryview:
    """The elements of ``array`` as bytes; a view where its memory is already in that form."""
    if array.dtype == object:
        return memoryview(pack_elements(array.reshape(-1).tolist()))
    wire = np.ascontiguousarray(array, _WIRE[array.dtype.name])
    return wire.reshape(-1).view(np.uint8).data


def json_ready(name: str, array: Array) -> Array | list[str]:
    """``array``, flat, when JSON can say it; elements of bytes as strings.

    Raises ``InputError`` for a type that is binary only, for bytes that are no text in UTF-8, and for NaN or infinity:
    JSON has neither, and anything put in their place would be another answer than the model's.
    """
    if array.dtype == object:
        try:
            return [element.decode() for element in array.reshape(-1).tolist()]
        except UnicodeDecodeError:
            raise InputError(
                f"output {name}: holds bytes that are no text in UTF-8: ask for it with 'binary_data': true"
            ) from None
    dtype = array.dtype.name
    if dtype in BINARY_ONLY:
        raise InputError(f"output {name}: {DATATYPES[dtype]} has no JSON form: ask for it with 'binary_data': true")
    if "float" in dtype and not np.isfinite(array).all():
        raise InputError(
            f"output {name}: holds NaN or infinity, which JSON cannot say: ask for it with 'binary_data': true"
        )
    return np.ascontiguousarray(array).reshape(-1)


def dump_numbers(name: str, array: Array) -> bytes:
    """The elements of ``array``, flat, as JSON. Raises as ``json_ready`` does."""
    if array.dtype == np.float32 and array.flags.c_contiguous:
        data = orjson.dumps(array.reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY)
        if b"n" not in data:  # what is not finite is written as null
            return data
    return orjson.dumps(json_ready(name, array), option=orjson.OPT_SERIALIZE_NUMPY)
