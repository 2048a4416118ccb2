"""Tells which weight each operation of an OpenVINO graph multiplies with, as it runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

Node = Any
"""An operation of OpenVINO, which this file does not import: a backend belongs to its engine's file."""
Graph = Any

_ON_THE_WAY: Final = (
    "Convert", "Multiply", "Subtract", "FakeQuantize", "Reshape", "Transpose", "Squeeze", "Unsqueeze",
)  # fmt: skip
"""What may stand between a weight and the operation that it is for, which is then their first input."""
_PRODUCTS: Final = ("Convolution", "MatMul", "GroupConvolution", "ConvolutionBackpropData", "Gather", "LSTMSequence",
                    "GRUSequence", "RNNSequence", "GroupConvolutionBackpropData")  # fmt: skip


def read_weights(graph: Graph, running: Iterable[Node], known: Collection[str]) -> dict[str, str]:
    """The weight of each operation of a graph as it runs, by the operation's name.

    ``graph`` is what was compiled, whose constants have the names of weights; ``running`` are the operations after
    that, each of which says of which ones of the graph it was made. ``known`` are the names of all weights.
    """
    sources: dict[str, str | None] = {}
    for product in graph.get_ops():
        if product.get_type_name() not in _PRODUCTS:
            continue
        # A factor and a bias become part of the product, which then has the name of the last of them.
        weight, last = _weight(product, known), product
        for _ in range(4):
            sources.setdefault(last.get_friendly_name(), weight)
            readers = [port.get_node() for port in last.output(0).get_target_inputs()]
            if len(readers) != 1 or readers[0].get_type_name() not in ("Add", "Multiply"):
                break
            last = readers[0]
    found = {}
    for operation in running:
        notes, own = operation.get_rt_info(), operation.get_friendly_name()
        made_of = str(notes["originalLayersNames"].astype(str)).split(",") if "originalLayersNames" in notes else []
        # What OpenVINO makes of an operation of its own accord has its name and a word behind a stroke.
        names = [name for whole in (*made_of, own) for name in (whole, whole.rpartition("/")[0])]
        weight = next((sources[name] for name in names if sources.get(name)), None)
        if weight:
            found[own] = weight
    return found


def _weight(operation: Node, known: Collection[str]) -> str | None:
    for value in operation.input_values():
        node = value.get_node()
        for _ in range(8):
            name = node.get_friendly_name()
            if node.get_type_name() == "Constant" and name in known:
                return str(name)
            if node.get_type_name() not in _ON_THE_WAY:
                break
            node = node.input_value(0).get_node()
    return None
