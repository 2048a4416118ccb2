"""Small rewrites of an exported graph, into forms that the runtime has fast kernels for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from tauten.core.tensor import Array
from tauten.make.lower._graph import SMALLEST, drop_unused, rename

_PLANES: Final = ({2, 3}, {-2, -1})


def pool_means(model: ModelProto) -> int:
    """Say a mean over height and width as ``GlobalAveragePool``, in place; returns how many were found.

    The exporter says adaptive pooling to size 1 as ``ReduceMean``, which breaks the runtime's channel-blocked layout
    in float and has no 8-bit kernel.
    """
    graph = model.graph
    ranks = _ranks(model)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    found = 0
    for node in graph.node:
        if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != 4 or not _over_planes(node, constants):
            nodes.append(node)
            continue
        found += 1
        keeps = all(a.i for a in node.attribute if a.name == "keepdims")
        pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name))
        if not keeps:
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flatten", axis=1))
    if found:
        del graph.node[:]
        graph.node.extend(nodes)
        drop_unused(graph)
    return found


def name_transposed(graph: GraphProto, state: Mapping[str, torch.Tensor]) -> None:
    """Give a matrix that the exporter transposed while it folded constants the name of its parameter again."""
    wanted = [
        t for t in graph.initializer if t.name not in state and len(t.dims) == 2 and t.dims[0] * t.dims[1] >= SMALLEST
    ]
    taken = {tensor.name for tensor in graph.initializer}
    known: dict[bytes, str] = {}
    if wanted:
        for name, tensor in state.items():
            if tensor.dim() == 2 and name not in taken:
                known.setdefault(_fingerprint(tensor.detach().cpu().numpy().T), name)
    names = {}
    for tensor in wanted:
        same = known.get(_fingerprint(numpy_helper.to_array(tensor)))
        if same is not None:
            names[tensor.name] = same
    rename(graph, lambda name: names.get(name, name))


def _fingerprint(array: Array) -> bytes:
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).digest()


def _ranks(model: ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: len(value.type.tensor_type.shape.dim) for value in values if value.type.HasField("tensor_type")}


def _over_planes(node: NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    axes = [list(a.ints) for a in node.attribute if a.name == "axes"]
    if len(node.input) > 1 and node.input[1] in constants:
        axes = [numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()]
    return len(axes) == 1 and set(axes[0]) in _PLANES
