"""Weights as they are: the safetensors format (Hugging Face, 2022), which any tool reads.

A file is the header's length (8 bytes, little-endian), the header (JSON: name to dtype, shape and the place of its
bytes), and the arrays' bytes without holes. Reading is done here, because views into the bytes that were read spare a
second copy of all weights; what is read is held to the format first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import safetensors.numpy

from tauten.core.tensor import Array, Arrays
from tauten.errors import ArtifactError, ConfigError

__all__ = ["PLAIN"]

_DTYPES: Final = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
}
_RESERVED: Final = "__metadata__"
_LENGTH: Final = 8
_MOST_HEADER_BYTES: Final = 16 * 2**20
_MOST_DIMS: Final = 32


class Plain:
    """Uncoded little-endian arrays behind a JSON header."""

    suffix = ".safetensors"

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        for name, array in arrays.items():
            if array.dtype.name not in _DTYPES.values() or name == _RESERVED:
                raise ConfigError(f"weights: {name!r} ({array.dtype.name}): safetensors has no such array")
        # Sorted, so that equal weights are equal bytes whatever order they came in. Little-endian here, because
        # safetensors would swap the caller's own bytes; asarray, because ascontiguousarray makes a scalar a vector.
        return safetensors.numpy.save(
            {
                name: np.asarray(arrays[name], dtype=arrays[name].dtype.newbyteorder("<"), order="C")
                for name in sorted(arrays)
            }
        )

    def decode(self, data: bytes | bytearray, limit_bytes: int | None = None) -> Arrays:
        header, start = _header(data)
        held_bytes = sum(place.end - place.begin for place in header.values())
        if limit_bytes is not None and held_bytes > limit_bytes:
            raise ArtifactError(f"weights: expected arrays of at most {limit_bytes} bytes, got {held_bytes}")
        held = data if isinstance(data, bytearray) else bytearray(data)
        found: Arrays = {}
        end = start
        for name, place in sorted(header.items(), key=lambda item: (item[1].begin, item[1].end)):
            if start + place.begin != end:
                raise ArtifactError(f"weights: {name!r}: expected its bytes at {end - start}, found {place.begin}")
            found[name] = _array(name, held, start, place)
            end = start + place.end
        if end != len(data):
            raise ArtifactError(f"weights: expected {end} bytes, got {len(data)}")
        return {name: found[name] for name in header}

    def coded_bytes(self, data: bytes | bytearray, limit_bytes: int | None = None) -> dict[str, int]:
        """What each array takes in the file: its own bytes, for they are not coded."""
        return {name: place.end - place.begin for name, place in _header(data)[0].items()}


class _Place:
    """One entry of the header, held to the format."""

    def __init__(self, name: str, entry: Any) -> None:
        fits = isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}
        if not fits or not (_counts(entry["shape"], _MOST_DIMS) and _counts(entry["data_offsets"], 2)):
            raise ArtifactError(f"weights: {_short(name)}: expected dtype, shape and data_offsets, got {_short(entry)}")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES or len(entry["data_offsets"]) != 2:
            raise ArtifactError(
                f"weights: {_short(name)}: expected a dtype of {', '.join(_DTYPES)}, got {_short(entry)}"
            )
        self.dtype = np.dtype(_DTYPES[entry["dtype"]]).newbyteorder("<")
        self.shape: tuple[int, ...] = tuple(entry["shape"])
        self.begin, self.end = entry["data_offsets"]
        self.elements = math.prod(self.shape)
        if self.end - self.begin != self.elements * self.dtype.itemsize:
            raise ArtifactError(f"weights: {_short(name)}: its shape and its place differ in size: {_short(entry)}")


def _header(data: bytes | bytearray) -> tuple[dict[str, _Place], int]:
    """The entries by name, and where the arrays' bytes start."""
    length = int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or length > min(len(data) - _LENGTH, _MOST_HEADER_BYTES):
        raise ArtifactError("weights: expected a safetensors file, got bytes without a whole header")
    start = _LENGTH + length
    try:
        document = json.loads(data[_LENGTH:start].decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as fault:
        raise ArtifactError(f"weights: expected a header of JSON: {_short(str(fault))}") from None
    if not isinstance(document, dict):
        raise ArtifactError(f"weights: expected a header that is an object, got {_short(document)}")
    document.pop(_RESERVED, None)
    return {name: _Place(name, entry) for name, entry in document.items()}, start


def _array(name: str, held: bytearray, start: int, place: _Place) -> Array:
    if start + place.end > len(held):
        raise ArtifactError(f"weights: {_short(name)}: ends at {place.end}, beyond the file")
    array: Array = (
        np.frombuffer(held, place.dtype, place.elements, start + place.begin)
        if place.elements
        else np.empty(0, place.dtype)
    )
    if place.dtype == bool and (array.view(np.uint8) > 1).any():
        raise ArtifactError(f"weights: {_short(name)}: expected booleans, found other bytes")
    if not (array.flags.aligned and array.dtype.isnative):
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        return array.reshape(place.shape)
    except ValueError as fault:
        raise ArtifactError(
            f"weights: {_short(name)}: no array can have the shape {_short(place.shape)}: {fault}"
        ) from None


def _counts(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(item) is int and item >= 0 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


PLAIN = Plain()
