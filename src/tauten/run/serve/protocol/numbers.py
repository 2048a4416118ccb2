"""Requests whose numbers are in JSON, read without making a Python object of each.

A reader for the usual case alone: whatever it is not sure of is left to the exact reader, which is several times slower
and says what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np
import simdjson

from tauten.core.tensor import Array, TensorSpec
from tauten.run.serve.protocol.datatypes import BINARY_ONLY, DATATYPES

_SMALL: Final = 512
"""Bytes of a body for which the exact reader is as fast."""


class _Kind(NamedTuple):
    """How numbers of a type are read: what the parser calls them, as which type they come, and what they become."""

    code: Literal["d", "i", "u"]
    wide: np.dtype[Any]
    dtype: np.dtype[Any]
    least: Any
    most: Any


def _kinds() -> Iterator[tuple[str, _Kind]]:
    codes: dict[str, Literal["d", "i", "u"]] = {"f": "d", "i": "i", "u": "u"}
    wide = {"d": np.dtype(np.float64), "i": np.dtype(np.int64), "u": np.dtype(np.uint64)}
    for name in DATATYPES:
        dtype = np.dtype(name)
        if name in BINARY_ONLY or dtype.kind not in codes:
            continue
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        code = codes[dtype.kind]
        # Limits in the type that is compared: to Python's own numbers every comparison would convert.
        yield name, _Kind(code, wide[code], dtype, wide[code].type(limits.min), wide[code].type(limits.max))


_KINDS: Final = dict(_kinds())

_parser = simdjson.Parser()
_least, _most = np.minimum.reduce, np.maximum.reduce


def read(body: bytes, specs: Mapping[str, TensorSpec]) -> dict[str, Any] | None:
    """The document in ``body``, with each input's ``data`` as an array of its shape; ``None`` where in doubt.

    All but the numbers is left to be checked by the caller.
    """
    if len(body) < _SMALL:
        return None
    try:
        return _read(body, specs)
    except (ValueError, TypeError, RuntimeError, KeyError, IndexError, AttributeError, OverflowError):
        return None


def _read(body: bytes, specs: Mapping[str, TensorSpec]) -> dict[str, Any] | None:
    global _parser
    try:
        root = _parser.parse(body)
    except RuntimeError:  # something of the last document is still held, by an error's traceback
        _parser = simdjson.Parser()
        root = cast("simdjson.Object", _parser.parse(body))
    document: dict[str, Any] = {}
    lists = 0
    for key, value in _members(cast("simdjson.Object", root)):
        if key != "inputs":
            document[key] = plain(value)
            continue
        entries = []
        lists += 1
        for item in cast("Iterable[simdjson.Object]", value):
            entry = {name: inner if name == "data" else plain(inner) for name, inner in _members(item)}
            spec, shape = specs[entry["name"]], entry["shape"]
            array, found = _array(entry["data"], spec.dtype, shape)
            if array is None:
                return None
            lists += 1 + found
            entry["data"] = array
            entries.append(entry)
        document[key] = entries
    if "outputs" in document:
        lists += 1
    # A list hidden among numbers would have been flattened: each list of the body must be one of those seen.
    return document if body.count(b"[") == lists else None


def read_list(text: bytes, dtype: str, count: int) -> Array | None:
    """``count`` numbers, of a type that JSON can say, in a flat list; ``None`` where in doubt."""
    global _parser
    try:
        data = cast("simdjson.Array", _parser.parse(text))
        kind = _KINDS[dtype]
        array = np.frombuffer(data.as_buffer(of_type=kind.code), kind.wide)
    except RuntimeError:
        _parser = simdjson.Parser()
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return _narrow(array, kind) if len(array) == count else None


def _narrow(array: Array, kind: _Kind) -> Array | None:
    """``array`` as its own type; ``None`` where a number does not fit into that."""
    if kind.dtype is kind.wide:
        return array
    if len(array) and not (_least(array) >= kind.least and _most(array) <= kind.most):
        return None
    return array.astype(kind.dtype)


def _members(item: simdjson.Object) -> list[tuple[str, Any]]:
    """Names and values, which ``items`` would make Python objects of. ``KeyError`` where a name comes twice."""
    names = list(item.keys())
    if len(set(names)) != len(names):
        raise KeyError("one name twice")
    return [(name, item[name]) for name in names]


def _array(data: simdjson.Array, dtype: str, shape: list[int]) -> tuple[Array | None, int]:
    """The numbers of ``data``, flat or nested as ``shape``, and how many lists they were in."""
    kind = _KINDS[dtype]
    count = math.prod(shape)
    lists = 1
    if count and type(data[0]) is simdjson.Array:
        if not _nested(data, shape):
            return None, 0
        for depth in range(1, len(shape)):
            lists += math.prod(shape[:depth])
    # The buffer is a copy: it does not keep the document.
    array = np.frombuffer(data.as_buffer(of_type=kind.code), kind.wide)
    if len(array) != count:
        return None, 0
    found = _narrow(array, kind)
    return (None, 0) if found is None else (found.reshape(shape), lists)


def _nested(data: simdjson.Array, shape: list[int]) -> bool:
    """Whether the lists are as long as ``shape`` says at each depth."""
    level: list[Any] = [data]
    for size in shape[:-1]:
        if any(len(row) != size for row in level):
            return False
        level = [inner for row in level for inner in row]
        if any(type(inner) is not simdjson.Array for inner in level):
            return False
    return all(len(row) == shape[-1] for row in level)


def plain(value: Any) -> Any:
    """A value of the document as Python's own."""
    if type(value) is simdjson.Array:
        return value.as_list()
    if type(value) is simdjson.Object:
        return value.as_dict()
    return value
