"""Embedding tables in 8 bits, one scale a row."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from tauten.make.lower._graph import all_nodes, drop_unused

_FEWEST_ROWS = 64


def quantize_embeddings(graph: GraphProto) -> list[str]:
    """Hold each float table that rows are gathered from as int8 with a float scale a row, in place; their names.

    Only the gathered rows are widened again, so that a call costs two small lookups and a product. A row of its own
    scale keeps rare words, whose vectors are short, as exact as frequent ones.
    """
    tables = {tensor.name: tensor for tensor in graph.initializer if _is_table(tensor)}
    readers: dict[str, list[NodeProto]] = {}
    for node in all_nodes(graph):
        for name in node.input:
            readers.setdefault(name, []).append(node)
    top = {id(node) for node in graph.node}
    treated = [
        name for name in tables if readers.get(name) and all(_gathers(n, name) and id(n) in top for n in readers[name])
    ]
    for name in treated:
        table = numpy_helper.to_array(tables[name])
        scale = np.abs(table).max(axis=1, keepdims=True).astype(np.float32) / 127
        scale[scale == 0] = 1
        small = np.rint(table / scale).astype(np.int8)
        for array, suffix in ((small, "_quantized"), (scale, "_scale")):
            graph.initializer.append(numpy_helper.from_array(array, name + suffix))
    nodes: list[NodeProto] = []
    for node in graph.node:
        name = node.input[0] if node.op_type == "Gather" else ""
        nodes += _gather(name, node) if name in treated else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)
    return treated


def _gather(name: str, node: NodeProto) -> list[NodeProto]:
    rows, indices, output = f"{node.output[0]}_int8", node.input[1], node.output[0]
    return [
        helper.make_node("Gather", [f"{name}_quantized", indices], [rows], axis=0),
        helper.make_node("Cast", [rows], [f"{rows}_float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}_scale", indices], [f"{rows}_scale"], axis=0),
        helper.make_node("Mul", [f"{rows}_float", f"{rows}_scale"], [output]),
    ]


def _is_table(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 and tensor.dims[0] >= _FEWEST_ROWS


def _gathers(node: NodeProto, table: str) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and axis == 0 and node.input[0] == table and table not in node.input[1:]
