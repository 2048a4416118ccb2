"""An OpenVINO model as an artifact holds it: a document without weights, and the weights by name."""

from __future__ import annotations

import gzip
import re
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

import numpy as np

from tauten.artifact.nibbles import unpack_nibbles
from tauten.core.tensor import Array, Arrays
from tauten.errors import LoweringError
from tauten.make.lower._graph import SMALLEST, SMALLEST_VECTOR
from tauten.run.engines._openvino_ir import CONSTANTS, ELEMENTS, HINTS, Element, layers, shape_of

if TYPE_CHECKING:
    import openvino as ov

_SMALL: Final = 8  # a constant in ``constants`` begins at a multiple of so many bytes


@dataclass(frozen=True)
class Written:
    """``graph`` is what ``run.engines._openvino_ir`` reads; ``four_bit`` are weights of 4-bit numbers."""

    graph: bytes
    weights: Arrays
    four_bit: frozenset[str]


def write_graph(model: ov.Model, borders: Collection[str], four_bit: Collection[str] = ()) -> Written:
    """The model's document and weights.

    ``borders`` are the names of its inputs and outputs, ``four_bit`` those of int8 constants with numbers from -8 to 7.

    Raises ``LoweringError`` for a constant of an element type that weights cannot hold.
    """
    import openvino as ov  # not before the engine has imported it, which keeps its telemetry out

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        ov.serialize(model, path)
        root = ElementTree.fromstring(path.read_bytes())  # OpenVINO's own words, just written
        data = np.fromfile(path.with_suffix(".bin"), np.uint8)
    _tidy(root, frozenset(borders))
    parts = _Parts(data)
    for layer in layers(root):
        if layer.get("type") == "Const":
            parts.take(layer)
    document = ElementTree.tostring(root, encoding="utf-8")
    weights = parts.weights()
    nibbles = parts.four_bit | {name for name in four_bit if name in weights and weights[name].dtype == np.int8}
    return Written(gzip.compress(document, mtime=0), weights, frozenset(nibbles))


class _Parts:
    """Takes constants out of OpenVINO's file of bytes."""

    def __init__(self, data: Array) -> None:
        self._data = data
        self._weights: Arrays = {}
        self._named: dict[tuple[str, str, str], str] = {}  # one array for constants that lie at one place
        self._small: dict[bytes, int] = {}
        self._room = bytearray()
        self.four_bit: set[str] = set()

    def take(self, layer: Element) -> None:
        data = _only(layer, "data")
        element, shape = data.attrib["element_type"], shape_of(data.attrib["shape"])
        if element not in ELEMENTS:
            raise LoweringError(f"OpenVINO: {layer.get('name')}: weights cannot hold numbers of type {element}")
        key = (data.attrib.pop("offset"), data.attrib.pop("size"), element)
        start, size = int(key[0]), int(key[1])
        raw = self._data[start : start + size]
        count = int(np.prod(shape, dtype=np.int64))
        if count < (SMALLEST_VECTOR if len(shape) < 2 else SMALLEST):
            data.attrib |= {"offset": str(self._place(raw.tobytes())), "size": str(size)}
            return
        if key not in self._named:
            name = self._named[key] = self._free(layer.get("name", ""))
            self._weights[name] = _array(raw, element, shape)
            if element == "i4":
                self.four_bit.add(name)
        name = self._named[key]
        if self._weights[name].size == count:
            # One place may be read in several shapes; which bytes they are is what counts.
            data.set("weight", name)
            if element != "u4" and self._weights[name].shape != shape:
                again = self._free(layer.get("name", ""))
                self._weights[again] = self._weights[name].reshape(shape)
                data.set("weight", again)
        layer.set("name", data.attrib["weight"])

    def weights(self) -> Arrays:
        small = {CONSTANTS: np.frombuffer(bytes(self._room), np.uint8)} if self._room else {}
        return {**small, **self._weights}

    def _place(self, raw: bytes) -> int:
        """Where these bytes lie among the small constants, each kept once."""
        if raw not in self._small:
            self._room += bytes(-len(self._room) % _SMALL)
            self._small[raw] = len(self._room)
            self._room += raw
        return self._small[raw]

    def _free(self, name: str) -> str:
        taken = {CONSTANTS, *self._weights}
        wanted, number = name, 2
        while wanted in taken:
            wanted, number = f"{name}_{number}", number + 1
        return wanted


def _array(raw: Array, element: str, shape: tuple[int, ...]) -> Array:
    if element == "i4":
        return unpack_nibbles(raw, shape)
    if element == "u4":
        return raw.copy()
    return raw.copy().view(ELEMENTS[element]).reshape(shape)


def _tidy(root: Element, borders: frozenset[str]) -> None:
    """Drop what OpenVINO does not need to run the graph, and give operations names that are the same each time."""
    for note in [child for child in root if child.tag not in ("layers", "edges")]:
        root.remove(note)
    root.attrib = {"name": "g", "version": root.attrib["version"]}
    names: set[str] = set()
    for layer in layers(root):
        for notes in layer.findall("rt_info"):
            for note in [note for note in notes if note.get("name") not in HINTS]:
                notes.remove(note)
            if not len(notes):
                layer.remove(notes)
        layer.set("name", _free_name(_steady_name(layer), names))
    for element in root.iter():
        if element.tag == "port" and "names" in element.attrib:
            kept = [name for name in _split_names(element.attrib.pop("names")) if name in borders]
            if kept:
                element.set("names", ",".join(name.replace(",", "\\,") for name in kept))
        if element.tag != "dim":
            element.text = None
        element.tail = None


def _steady_name(layer: Element) -> str:
    """The operation's name; OpenVINO's own names count all operations of the process, which differs each time."""
    name = layer.get("name", "")
    if re.fullmatch(r"[A-Za-z]+_\d+", name) and name.startswith((layer.get("type", ""), "Constant")):
        return f"{layer.get('type')}_{layer.get('id')}"
    return name


def _free_name(name: str, taken: set[str]) -> str:
    wanted, number = name, 2
    while wanted in taken:
        wanted, number = f"{name}_{number}", number + 1
    taken.add(wanted)
    return wanted


def _split_names(text: str) -> Iterator[str]:
    """Names that stand between commas; a comma inside one has a backslash before it."""
    for part in re.split(r"(?<!\\),", text):
        yield part.replace("\\,", ",")


def _only(element: Element, tag: str) -> Element:
    found = element.find(tag)
    if found is None:
        raise LoweringError(f"OpenVINO: {element.get('name')}: expected an element {tag}")
    return found
