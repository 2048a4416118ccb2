"""OpenVINO's graph document (IR) as an artifact holds it, and back into what OpenVINO reads.

OpenVINO's own form is an XML document whose constants name a place in a file of bytes. Here, each constant of some size
is an array of the artifact's weights, which any codec may store: its ``data`` element has the attribute ``weight`` with
the array's name. The others lie together in the array ``constants``, at ``offset`` and in ``size`` bytes. The document
is compressed with gzip.

Nothing of a foreign document reaches OpenVINO: what it is given is written anew from what was checked here.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from tauten.artifact.nibbles import pack_nibbles
from tauten.core.tensor import Array
from tauten.errors import ArtifactError, ConfigError

Element = ElementTree.Element

CONSTANTS: Final = "constants"
"""The array that holds all small constants, as bytes."""

ALIGNMENT: Final = 64
"""Each array begins at a multiple of so many bytes, as vector instructions like it."""

ELEMENTS: Final = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "uint16", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "i4": "int8", "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8",
    "u4": "uint8", "boolean": "bool",
}  # fmt: skip
"""The array that holds a constant of each element type. NumPy has no bfloat16: its bits are whole numbers. ``u4`` are
the bytes as OpenVINO packs them, two numbers each; ``i4`` are numbers from -8 to 7."""

HINTS: Final = ("decompression", "keep_const_precision", "precise")
"""The notes on an operation that change how OpenVINO runs it; it writes others, which are dropped."""

_MOST_BYTES: Final = 512 * 2**20  # of the document, unpacked
_DEEPEST: Final = 40  # elements inside each other: a loop's body adds four
_MOST_DIMS: Final = 32
_OPSET: Final = re.compile(r"opset[1-9][0-9]?")
_COUNT: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_STATE: Final = ("Assign", "ReadValue")
_PARTS: Final = {
    "net": ("layers", "edges"),
    "layers": ("layer",),
    "layer": (
        "data", "rt_info", "input", "output", "body", "port_map", "back_edges", "then_body", "else_body",
        "then_port_map", "else_port_map",
    ),
    "rt_info": ("attribute",),
    "input": ("port",),
    "output": ("port",),
    "port": ("dim",),
    "edges": ("edge",),
    "port_map": ("input", "output"),
    "then_port_map": ("input", "output"),
    "else_port_map": ("input", "output"),
    "back_edges": ("edge",),
    **dict.fromkeys(("body", "then_body", "else_body"), ("layers", "edges")),
}  # fmt: skip
"""What may stand in what."""


@dataclass(frozen=True)
class Graph:
    """What OpenVINO reads: the document, and for each array its first byte in the file of constants."""

    document: bytes
    places: Mapping[str, int]
    size: int

    def fill(self, data: Any, weights: Mapping[str, Array]) -> None:
        """Write ``weights``, which the graph was read with, into ``data``, ``(size,)`` bytes."""
        for name, start in self.places.items():
            held = np.ascontiguousarray(weights[name]).reshape(-1).view(np.uint8)
            data[start : start + len(held)] = held


def read_graph(packed: bytes, weights: Mapping[str, Array]) -> tuple[Graph, dict[str, Array]]:
    """The graph of the packed document, and the arrays that its ``fill`` takes: ``weights`` with 4-bit ones packed.

    Raises ``ArtifactError`` where the document is none, holds what may not be there or is not there whole, or does not
    fit the weights.
    """
    root = _parse(_unpack(packed))
    if root.tag != "net":
        raise ArtifactError(f"graph: expected an OpenVINO document, got an element {_short(root.tag)}")
    _check(root)
    kinds: dict[str, str] = {}
    for layer in layers(root):
        _check_layer(layer, weights, kinds)
    for network in (root, *_bodies(root)):
        _check_order(network)
    unread = sorted(set(weights) - set(kinds) - {CONSTANTS})
    if unread:
        raise ArtifactError(f"graph: no constant reads the weights {unread[:5]}")
    arrays = {name: _as_stored(name, weights[name], kind) for name, kind in kinds.items()}
    if CONSTANTS in weights:
        arrays = {CONSTANTS: weights[CONSTANTS], **arrays}
    places, end = dict[str, int](), 0
    for name, array in arrays.items():
        places[name] = end
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    for layer in layers(root):
        if layer.get("type") == "Const":
            _place(layer, places)
    return Graph(ElementTree.tostring(root, encoding="utf-8"), places, end), arrays


def layers(root: Element) -> Iterator[Element]:
    """Every operation of the document, those inside loops and branches too."""
    return root.iter("layer")


def element_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """The bytes that so many numbers of an element type take in OpenVINO's file."""
    bits = 4 if kind in ("i4", "u4") else np.dtype(ELEMENTS[kind]).itemsize * 8
    return -(-math.prod(shape) * bits // 8)


def shape_of(text: str) -> tuple[int, ...]:
    """``(6, 1)`` for ``"6, 1"``; ``ArtifactError`` where it is none."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if len(parts) > _MOST_DIMS or not all(_COUNT.fullmatch(part) for part in parts):
        raise ArtifactError(f"graph: expected a shape, got {_short(text)}")
    return tuple(int(part) for part in parts)


def _unpack(packed: bytes) -> bytes:
    opened = zlib.decompressobj(wbits=31)  # gzip's own header
    try:
        data = opened.decompress(packed, _MOST_BYTES)
    except zlib.error as fault:
        raise ArtifactError(f"graph: expected a document compressed with gzip: {fault}") from None
    if not opened.eof or opened.unused_data or opened.unconsumed_tail:
        raise ArtifactError(f"graph: expected one compressed document of at most {_MOST_BYTES} bytes")
    return data


def _parse(data: bytes) -> Element:
    """The document's elements and attributes; no text, and nothing that a declaration could bring in."""
    builder = ElementTree.TreeBuilder()
    depth = 0

    def refuse(*_: Any) -> None:
        raise ArtifactError("graph: a document with declarations, entities, instructions or comments is refused")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise ArtifactError(f"graph: elements lie more than {_DEEPEST} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.ProcessingInstructionHandler = refuse
    parser.CommentHandler = refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, AssertionError, UnicodeError, ValueError) as fault:
        raise ArtifactError(f"graph: expected an XML document: {fault}") from None


def _check(element: Element, depth: int = 0) -> None:
    """See that only known elements stand where they may, and text in dimensions alone."""
    allowed = _PARTS.get(element.tag, ())
    if element.tag == "dim":
        if len(element) or not re.fullmatch(r"-1|[0-9]{1,18}", element.text or ""):
            raise ArtifactError(f"graph: expected a dimension, got {_short(element.text)}")
    elif (element.text or "").strip():
        raise ArtifactError(f"graph: text in {_short(element.tag)}: {_short(element.text)}")
    for child in element:
        if child.tag not in allowed or (child.tail or "").strip():
            raise ArtifactError(f"graph: {_short(child.tag)} may not stand in {_short(element.tag)}")
        _check(child, depth + 1)
    if element.tag == "attribute" and element.get("name") not in HINTS:
        raise ArtifactError(f"graph: a note {_short(element.get('name'))} may not stand on an operation")


def _check_layer(layer: Element, weights: Mapping[str, Array], kinds: dict[str, str]) -> None:
    kind, version = layer.get("type", ""), layer.get("version", "")
    if not _OPSET.fullmatch(version) or kind in _STATE:
        raise ArtifactError(
            f"graph: expected a stateless operation of OpenVINO's own, got {_short(kind)} of {_short(version)}"
        )
    if kind != "Const":
        return
    data = layer.findall("data")
    if len(data) != 1:
        raise ArtifactError(f"graph: constant {_short(layer.get('name'))}: expected one element data")
    known = data[0].attrib
    element, named = known.get("element_type", ""), "weight" in known
    if set(known) != {"element_type", "shape", *(("weight",) if named else ("offset", "size"))}:
        raise ArtifactError(f"graph: constant {_short(layer.get('name'))}: unexpected {_short(sorted(known))}")
    if element not in ELEMENTS:
        raise ArtifactError(f"graph: constant {_short(layer.get('name'))}: unknown element type {_short(element)}")
    shape = shape_of(known["shape"])
    if named:
        _check_weight(known["weight"], element, shape, weights, kinds)
        return
    room = weights.get(CONSTANTS)
    if room is None or room.dtype != np.uint8 or room.ndim != 1:
        raise ArtifactError(f"graph: expected weights {CONSTANTS!r} of bytes")
    numbers = [int(known[key]) if _COUNT.fullmatch(known[key]) else -1 for key in ("offset", "size")]
    if min(numbers) < 0 or numbers[1] != element_bytes(element, shape) or sum(numbers) > room.nbytes:
        raise ArtifactError(
            f"graph: constant {_short(layer.get('name'))} of {element}{shape} does not lie in the weights: "
            f"{known['size']} bytes at {known['offset']}"
        )


def _check_weight(
    name: str, element: str, shape: tuple[int, ...], weights: Mapping[str, Array], kinds: dict[str, str]
) -> None:
    array = weights.get(name)
    if array is None or name == CONSTANTS:
        raise ArtifactError(f"graph: reads the weights {_short(name)}, which are not there")
    expected = (element_bytes(element, shape),) if element == "u4" else shape
    if array.dtype.name != ELEMENTS[element] or array.shape != expected:
        raise ArtifactError(
            f"graph: expects {_short(name)} as {ELEMENTS[element]}{expected}, "
            f"the weights hold {array.dtype.name}{array.shape}"
        )
    if kinds.setdefault(name, element) != element:
        raise ArtifactError(f"graph: reads {_short(name)} as {element} and as {kinds[name]}")


def _as_stored(name: str, array: Array, kind: str) -> Array:
    if kind != "i4":
        return array
    try:
        return pack_nibbles(array)
    except ConfigError as fault:
        raise ArtifactError(f"weights: {_short(name)}: {fault}") from None


def _place(layer: Element, places: Mapping[str, int]) -> None:
    """Say where a constant's bytes lie, as OpenVINO reads it."""
    (data,) = layer.findall("data")
    weight = data.attrib.pop("weight", None)
    if weight is None:
        data.set("offset", str(int(data.attrib["offset"]) + places[CONSTANTS]))
    else:
        data.set("offset", str(places[weight]))
        data.set("size", str(element_bytes(data.attrib["element_type"], shape_of(data.attrib["shape"]))))


def _bodies(root: Element) -> Iterator[Element]:
    for tag in ("body", "then_body", "else_body"):
        yield from root.iter(tag)


def _check_order(network: Element) -> None:
    """See that operations have names of their own, and that no result reaches back to where it came from.

    OpenVINO follows edges by calling itself.
    """
    inner, wires = network.findall("layers"), network.findall("edges")
    if len(inner) != 1 or len(wires) != 1:
        raise ArtifactError("graph: expected operations and edges between them, once each")
    ids = [layer.get("id", "") for layer in inner[0]]
    after: dict[str, list[str]] = {name: [] for name in ids}
    waits = dict.fromkeys(ids, 0)
    if len(after) < len(ids) or not all(_COUNT.fullmatch(name) for name in ids):
        raise ArtifactError("graph: expected a number of its own for each operation")
    for edge in wires[0]:
        source, target = edge.get("from-layer", ""), edge.get("to-layer", "")
        if source not in after or target not in after:
            raise ArtifactError(f"graph: an edge from {_short(source)} to {_short(target)}, which are not both there")
        after[source].append(target)
        waits[target] += 1
    ready = [name for name, count in waits.items() if not count]
    done = 0
    while ready:
        done += 1
        for target in after[ready.pop()]:
            waits[target] -= 1
            if not waits[target]:
                ready.append(target)
    if done < len(ids):
        raise ArtifactError("graph: operations wait for each other in a circle")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
