"""Weights that are stored in 16 bits and widened to float32 while a runtime loads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tauten.core.tensor import Array
from tauten.errors import LoweringError
from tauten.make.lower._graph import drop_unused
from tauten.make.lower._quantize_weights import replace_nodes, tensors_of

Half = Literal["float16", "bfloat16"]

_LARGEST: Final = float(np.finfo(np.float16).max)
_BIT_CAST: Final = 26  # the version of ONNX's operations in which BitCast came
_IR: Final = 13  # the file format that goes with it


def store_halves(model: ModelProto, chosen: Mapping[str, Half]) -> dict[str, str]:
    """Hold the float weights ``chosen`` in half, in place; by its name why one stayed in float32.

    A weight keeps its name. ``bfloat16`` is stored as the upper half of float32's bits, ``uint16``: NumPy knows no such
    type. A table is widened row by row as it is read, all others once, while they load.
    """
    graph = model.graph
    tensors = tensors_of(graph)
    kept: dict[str, str] = {}
    stored: dict[str, Half] = {}
    for name, half in chosen.items():
        array = numpy_helper.to_array(tensors[name])
        if half == "float16" and float(np.abs(array).max(initial=0)) > _LARGEST:
            kept[name] = f"its numbers reach {float(np.abs(array).max()):.3g}, float16 ends at {_LARGEST:.0f}"
            continue
        stored[name] = half
        small = array.astype(np.float16) if half == "float16" else upper_bits(array)
        tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(small), name))
    nodes: list[NodeProto] = []
    wide: set[str] = set()
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in stored:
            nodes += _look_up(node, stored[node.input[0]])
            continue
        for name in node.input:
            if name in stored and name not in wide:
                wide.add(name)
                nodes += _widen(name, f"{name}_float", stored[name])
        node.input[:] = [f"{name}_float" if name in wide else name for name in node.input]
        nodes.append(node)
    replace_nodes(graph, nodes)
    if "bfloat16" in stored.values():
        _raise_version(model)
    drop_unused(graph)
    return kept


def upper_bits(array: Array) -> Array:
    """float32 rounded to the nearest bfloat16, ties to even, as the ``uint16`` of its bits."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    made: Array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return made


def _widen(source: str, target: str, half: Half) -> Sequence[NodeProto]:
    if half == "float16":
        return [helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=TensorProto.FLOAT)]
    bits = f"{target}_bits"
    return [
        helper.make_node("BitCast", [source], [bits], name=f"{target}_bit_cast", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", [bits], [target], name=f"{target}_cast", to=TensorProto.FLOAT),
    ]


def _look_up(node: NodeProto, half: Half) -> Sequence[NodeProto]:
    output = node.output[0]
    node.output[0] = f"{output}_half"
    return [node, *_widen(node.output[0], output, half)]


def _raise_version(model: ModelProto) -> None:
    """Declare the version of ONNX that has ``BitCast``; ``LoweringError`` where an operation has changed until then."""
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version < _BIT_CAST:
            opset.version = _BIT_CAST
    model.ir_version = max(model.ir_version, _IR)
    if all(opset.domain not in ("", "ai.onnx") for opset in model.opset_import):
        raise LoweringError("bfloat16: the graph has no operations of ONNX; store its weights in float16")
