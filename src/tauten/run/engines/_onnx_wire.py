"""Looks through an ONNX file before a runtime does, so that the runtime opens no other file.

ONNX is protobuf; a tensor in it may say "my bytes are in that file". This walks the wire format itself (Protocol
Buffers encoding; field numbers of onnx.proto, IR version 11), because the ``onnx`` package is no part of the half that
serves, and because what a check reads must not be more lenient than what the runtime reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tauten.errors import ArtifactError

MARKER: Final = "weights"
"""The only ``location`` that an external tensor may name: it says that the artifact's weights hold the tensor."""

DTYPES: Final = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""TensorProto.DataType to the name of a NumPy dtype."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64

# Message -> field number -> (message inside, may repeat). Only the fields through which a tensor can be reached.
_CHILDREN: Final[dict[str, dict[int, tuple[str, bool]]]] = {
    "Model": {7: ("Graph", False), 20: ("Training", True), 25: ("Function", True)},
    "Training": {1: ("Graph", False), 2: ("Graph", False)},
    "Function": {7: ("Node", True), 11: ("Attribute", True)},
    "Graph": {1: ("Node", True), 5: ("Tensor", True), 15: ("Sparse", True)},
    "Node": {5: ("Attribute", True)},
    "Attribute": {
        5: ("Tensor", False), 6: ("Graph", False), 10: ("Tensor", True), 11: ("Graph", True), 22: ("Sparse", False),
        23: ("Sparse", True),
    },
    "Sparse": {1: ("Tensor", False), 2: ("Tensor", False)},
}  # fmt: skip
_NODE_OP_TYPE = 4
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_ENTRY, _TENSOR_LOCATION = 1, 2, 8, 13, 14


@dataclass(frozen=True)
class ExternalTensor:
    """An initializer whose bytes are not in the graph."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass
class Survey:
    """What was found: the main graph's external initializers by name, and how often each operation occurs anywhere."""

    externals: dict[str, ExternalTensor] = field(default_factory=dict)
    operations: Counter[str] = field(default_factory=Counter)


def survey(graph: bytes) -> Survey:
    """Walk a serialized ``ModelProto``.

    Raises ``ArtifactError`` for bytes that are no protobuf, and for a tensor that points outside and is not a plain
    initializer of the main graph with the location ``MARKER``.
    """
    if graph[4:8] == b"ORTM":
        raise ArtifactError("graph: expected an ONNX file, got one in ONNX Runtime's own format")
    found = Survey()
    _walk(graph, 0, len(graph), "Model", "Model", found)
    return found


def _walk(data: bytes, start: int, end: int, message: str, path: str, found: Survey) -> None:
    if path.count("/") > _MAX_DEPTH:
        raise ArtifactError(f"graph: messages inside messages more than {_MAX_DEPTH} deep")
    children = _CHILDREN[message]
    seen: set[int] = set()
    for number, wire, begin, stop in fields(data, start, end):
        if message == "Node" and number == _NODE_OP_TYPE and wire == _BYTES:
            found.operations[text(data, begin, stop)] += 1
        if number not in children:
            continue
        child, repeats = children[number]
        # Protobuf merges a single message that comes twice: two harmless halves could make one harmful whole.
        if wire != _BYTES or (number in seen and not repeats):
            raise ArtifactError(f"graph: field {number} of {path} is malformed or given twice")
        seen.add(number)
        if child == "Tensor":
            _tensor(data, begin, stop, f"{path}/{child}", found)
        else:
            _walk(data, begin, stop, child, f"{path}/{child}", found)


def _tensor(data: bytes, start: int, end: int, path: str, found: Survey) -> None:
    dims: list[int] = []
    name, kinds, locations, entries = "", [0], [0], []
    for number, wire, begin, stop in fields(data, start, end):
        if number == _TENSOR_DIMS:
            dims += list(_varints(data, begin, stop))
        elif number == _TENSOR_TYPE and wire == _VARINT:
            kinds += _varints(data, begin, stop)
        elif number == _TENSOR_LOCATION and wire == _VARINT:
            locations += _varints(data, begin, stop)
        elif number == _TENSOR_NAME and wire == _BYTES:
            name = text(data, begin, stop)
        elif number == _TENSOR_ENTRY and wire == _BYTES:
            entries.append(_entry(data, begin, stop))
        elif number in (_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_ENTRY, _TENSOR_LOCATION):
            raise ArtifactError(f"graph: field {number} of {path} is malformed")
    if not entries and not any(locations):
        return
    if path != "Model/Graph/Tensor":
        raise ArtifactError(f"graph: a tensor at {path} ({name!r}) points to a file outside the graph")
    given = dict(entries)
    if len(given) != len(entries) or given.get("location") != MARKER or locations[1:] != [1]:
        raise ArtifactError(
            f"graph: expected initializer {name!r} to be in the artifact's weights (location {MARKER!r}), "
            f"got {given.get('location')!r}"
        )
    if name in found.externals:
        raise ArtifactError(f"graph: initializer {name!r} is given twice")
    if len(kinds) != 2 or kinds[1] not in DTYPES:
        raise ArtifactError(f"graph: initializer {name!r} has data type {kinds[-1]}, which weights cannot hold")
    found.externals[name] = ExternalTensor(name, DTYPES[kinds[1]], tuple(dims))


def _entry(data: bytes, start: int, end: int) -> tuple[str, str]:
    """A StringStringEntryProto; its two fields once each."""
    given = {number: (begin, stop) for number, wire, begin, stop in fields(data, start, end) if wire == _BYTES}
    if set(given) != {1, 2} or sum(1 for _ in fields(data, start, end)) != 2:
        raise ArtifactError("graph: external data is malformed")
    return text(data, *given[1]), text(data, *given[2])


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """``(number, wire type, begin, stop)`` of each field's value between ``start`` and ``end``."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        begin = position
        if wire == _VARINT:
            _, stop = _varint(data, position, end)
        elif wire == _BYTES:
            size, begin = _varint(data, position, end)
            stop = begin + size
        elif wire in (_FIXED32, _FIXED64):
            stop = begin + (4 if wire == _FIXED32 else 8)
        else:
            raise ArtifactError(f"graph: not an ONNX file (wire type {wire} at byte {position})")
        if stop > end or not 0 < number < 1 << 29:
            raise ArtifactError(f"graph: not an ONNX file (field {number} at byte {position} leaves its message)")
        yield number, wire, begin, stop
        position = stop


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
    raise ArtifactError(f"graph: not an ONNX file (a number without end at byte {position})")


def _varints(data: bytes, start: int, end: int) -> Iterator[int]:
    """The numbers of a repeated field, packed or alone."""
    while start < end:
        value, start = _varint(data, start, end)
        yield value


def text(data: bytes, start: int, end: int) -> str:
    """A text of a message."""
    try:
        return data[start:end].decode()
    except UnicodeDecodeError:
        raise ArtifactError("graph: a name in it is not UTF-8") from None
