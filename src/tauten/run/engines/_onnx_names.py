"""Gives the nodes of a graph names by which a profile can be read, and tells which weight each of them reads.

A lowered graph has nodes without names, which cost bytes and say nothing to a runtime. A runtime that joins nodes makes
the new one's name of an old one's, or of what an old one gave.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tauten.run.engines._onnx_wire import fields, text

_GRAPH: Final = 7  # of a model
_NODE: Final = 1  # of a graph
_INPUT, _OUTPUT, _NAME, _OP_TYPE = 1, 2, 3, 4  # of a node
_BYTES: Final = 2
_ON_THE_WAY: Final = ("DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze")
"""What may stand between a weight and the operation that it is for."""
_MARK: Final = re.compile(r"@(\d+)@")
_BLOCKED: Final = "_nchwc"
"""What the name of a convolution in blocks of channels ends in, after that of what it gives."""
_FAR: Final = 4
"""How many nodes away what belongs to an operation is looked for."""


@dataclass(frozen=True)
class Node:
    """An operation of the main graph, with the names of the values that it reads and gives."""

    kind: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """A graph whose nodes have names, and the nodes."""

    graph: bytes
    nodes: tuple[Node, ...]

    def weights(self, kinds: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
        """The weight that each operation of a runtime multiplies with, by its name; ``kinds`` are what they do by name.

        ``known`` are the names of all weights. A convolution that was made of several nodes has the name of what the
        last of them gives: then the nearest node before it that reads a weight and has no operation yet is meant.
        """
        makers = {name: place for place, node in enumerate(self.nodes) for name in node.gives}
        read = {place: weight for place in range(len(self.nodes)) if (weight := self._weight(place, makers, known))}
        places = {name: place for name in kinds if (place := self._place(name, makers)) is not None}
        found = {name: read[place] for name, place in places.items() if place in read}
        taken = {places[name] for name in found}
        for name, place in sorted(places.items(), key=lambda item: item[1]):
            if name in found or kinds[name] != "Conv":
                continue
            for before in self._before(place, makers):
                if before in read and before not in taken:
                    found[name] = read[before]
                    taken.add(before)
                    break
        return found

    def _place(self, name: str, makers: Mapping[str, int]) -> int | None:
        """Which node an operation of that name was made of, as far as its name tells."""
        if marked := _MARK.search(name):
            return int(marked[1])
        return makers.get(name.removesuffix(_BLOCKED))

    def _weight(self, place: int, makers: Mapping[str, int], known: Collection[str]) -> str | None:
        """The first weight that a node reads, as it is or through nodes that only change its form."""
        if self.nodes[place].kind in _ON_THE_WAY:
            return None
        for name in self.nodes[place].reads:
            for _ in range(_FAR):
                if name in known:
                    return name
                maker = self.nodes[makers[name]] if name in makers else None
                if maker is None or maker.kind not in _ON_THE_WAY or not maker.reads:
                    break
                name = maker.reads[0]
        return None

    def _before(self, place: int, makers: Mapping[str, int]) -> Iterator[int]:
        """The nodes before one, nearest first."""
        around = [place]
        for _ in range(_FAR):
            around = [makers[name] for one in around for name in self.nodes[one].reads if name in makers]
            yield from around


def name_nodes(graph: bytes) -> Named:
    """``graph``, a serialized ``ModelProto``, with ``@N@`` as the name of the main graph's Nth node.

    Raises ``ArtifactError`` for bytes that are none.
    """
    nodes: list[Node] = []
    whole = bytearray()
    for number, wire, begin, stop in fields(graph, 0, len(graph)):
        value = _named_graph(graph, begin, stop, nodes) if (number, wire) == (_GRAPH, _BYTES) else graph[begin:stop]
        whole += _field(number, wire, value)
    return Named(bytes(whole), tuple(nodes))


def _named_graph(data: bytes, start: int, end: int, nodes: list[Node]) -> bytes:
    made = bytearray()
    for number, wire, begin, stop in fields(data, start, end):
        value = data[begin:stop]
        if (number, wire) == (_NODE, _BYTES):
            value = b"".join(
                _field(inner, kind, data[first:last])
                for inner, kind, first, last in fields(data, begin, stop)
                if inner != _NAME
            ) + _field(_NAME, _BYTES, f"@{len(nodes)}@".encode())
            nodes.append(_node(data, begin, stop))
        made += _field(number, wire, value)
    return bytes(made)


def _node(data: bytes, start: int, end: int) -> Node:
    texts: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _OP_TYPE: []}
    for number, wire, begin, stop in fields(data, start, end):
        if number in texts and wire == _BYTES:
            texts[number].append(text(data, begin, stop))
    return Node("".join(texts[_OP_TYPE][-1:]), tuple(texts[_INPUT]), tuple(texts[_OUTPUT]))


def _field(number: int, wire: int, value: bytes) -> bytes:
    return _varint(number << 3 | wire) + (_varint(len(value)) if wire == _BYTES else b"") + value


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
