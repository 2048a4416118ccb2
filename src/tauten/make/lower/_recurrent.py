"""LSTM and GRU nodes: names of their weights, and LSTM with 8-bit weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from tauten.core.tensor import Array
from tauten.make.lower._graph import drop_unused, rename
from tauten.make.lower._quantize_weights import Rounded, replace_nodes, tensors_of
from tauten.make.lower._weight_only import use_own_operations

_GATES: Final = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Which of PyTorch's gates stands in each place of ONNX's weight: i f g o as i o f c, and r z n as z r h."""


def name_recurrent(graph: GraphProto, state: Mapping[str, torch.Tensor]) -> None:
    """Give the weights of recurrent nodes the names of the parameters that the exporter made them of, in place.

    Those of both directions stand in one tensor, which is named after the forward one, and so do the two biases.
    """
    tensors = tensors_of(graph)
    known: dict[bytes, str] = {}
    for name, tensor in state.items():
        if tensor.dim() == 2 and "_l" in name:
            known.setdefault(_digest(tensor.detach().cpu().numpy()), name)
    names: dict[str, str] = {}
    for node in graph.node:
        for name in node.input[1:3] if node.op_type in _GATES else ():
            if name not in tensors or len(tensors[name].dims) != 3 or name in names:
                continue
            gates = np.split(numpy_helper.to_array(tensors[name])[0], len(_GATES[node.op_type]))
            order = np.argsort(_GATES[node.op_type])
            same = known.get(_digest(np.concatenate([gates[place] for place in order])))
            if same is not None and same not in tensors and same not in names.values():
                names[name] = same
        bias = node.input[3] if node.op_type in _GATES and len(node.input) > 3 else ""
        first = names.get(node.input[1], "") if bias in tensors else ""
        if "weight_ih" in first:
            names[bias] = first.replace("weight_ih", "bias")
    rename(graph, lambda name: names.get(name, name))


def dynamic_lstms(model: ModelProto, chosen: Mapping[str, Rounded]) -> list[str]:
    """Let each LSTM whose two weights are in ``chosen`` multiply in int8, in place; the weights of those.

    Its inputs' and its state's ranges are found at each step (ONNX Runtime's ``DynamicQuantizeLSTM``).
    """
    graph = model.graph
    nodes: list[NodeProto] = []
    done: dict[str, None] = {}
    for node in graph.node:
        if not fits(node, chosen):
            nodes.append(node)
            continue
        parts: list[list[str]] = []
        for name in node.input[1:3]:
            rounded = chosen[name]
            parts.append([f"{name}{suffix}" for suffix in ("_quantized", "_scale", "_zero_point")])
            if name not in done:
                done[name] = None
                directions, gates, _ = rounded.codes.shape
                # One scale a gate's row; the two directions share it, so that it is there twice.
                scale = np.tile(rounded.scale.reshape(-1), (directions, 1))
                arrays = (rounded.codes.transpose(0, 2, 1), scale, np.zeros((directions, gates), np.int8))
                for part, array in zip(parts[-1], arrays, strict=True):
                    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), part))
        first, second = parts
        rest = [*node.input[3:], *[""] * (8 - len(node.input))]
        said = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name != "layout"}
        read = [node.input[0], first[0], second[0], *rest, *first[1:], *second[1:]]
        nodes.append(
            helper.make_node("DynamicQuantizeLSTM", read, node.output, name=node.name, domain="com.microsoft", **said)
        )
    replace_nodes(graph, nodes)
    if done:
        use_own_operations(model)
    drop_unused(graph)
    return list(done)


def fits(node: NodeProto, chosen: Mapping[str, Rounded]) -> bool:
    """Whether there is an 8-bit kernel for this recurrent node: LSTM alone, time first, symmetric weights."""
    if node.op_type != "LSTM" or any(attribute.name == "layout" and attribute.i for attribute in node.attribute):
        return False
    weights: Sequence[str] = node.input[1:3]
    found = [chosen[name] for name in weights if name in chosen]
    return len(found) == 2 and all(rounded.axis == 1 and rounded.zero_point is None for rounded in found)


def _digest(array: Array) -> bytes:
    return hashlib.sha256(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes()).digest()
