"""Int8 for what products with a weight read, and for nothing else: fixed ranges, or ranges found at each call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from tauten.core.tensor import Array
from tauten.make.lower._graph import drop_unused
from tauten.make.lower._quantize_weights import Rounded, replace_nodes, tensors_of
from tauten.make.model.ranges import Range

_STEPS: Final = 255
_RELU: Final = ("Relu", "Clip")


def static_products(
    graph: GraphProto,
    chosen: Mapping[str, Rounded],
    ranges: Mapping[str, Range],
    activations: str,
    *,
    pairs: bool,
) -> list[str]:
    """Round weights and inputs of the products that read a weight of ``chosen``, in place; the weights of those done.

    A value is rounded for these products alone: what else reads it (the sum around a block) has it in float. Results
    stay float, but with ``pairs`` a convolution's is rounded too where its range is known: ONNX Runtime has no 8-bit
    convolution with a float result. Weights that decided nothing else keep their names.
    """
    treated = {id(node): node.input[1] for node in graph.node if _fits(node, chosen, ranges)}
    behind = _single_readers(graph)
    paired: set[str] = set()
    for node in graph.node:
        if pairs and id(node) in treated and node.op_type == "Conv":
            follows = behind.get(node.output[0])
            last = follows if follows is not None and follows.op_type in _RELU else node
            paired |= {last.output[0]} & ranges.keys()
    paired -= {value.name for value in graph.output}
    values = paired | {node.input[0] for node in graph.node if id(node) in treated}
    maker = _Maker(graph)
    rounding = {name: maker.value(name, ranges[name], activations) for name in sorted(values)}
    nodes = [made for value in graph.input for made in rounding.get(value.name, ())]
    for node in graph.node:
        read = list(node.input)
        if id(node) in treated:
            rounded = chosen[read[1]]
            nodes += maker.weight(read[1], rounded)
            if len(read) > 2:
                read[2], more = maker.bias(read[2], maker.scales[read[0]], rounded)
                nodes += more
            read[:2] = f"{read[0]}_rounded", f"{read[1]}_float"
        node.input[:] = [f"{name}_rounded" if name in paired else name for name in read]
        nodes.append(node)
        nodes += [made for name in node.output for made in rounding.get(name, ())]
    replace_nodes(graph, nodes)
    drop_unused(graph)
    return list(dict.fromkeys(treated.values()))


def dynamic_products(graph: GraphProto, chosen: Mapping[str, Rounded]) -> None:
    """Make products with a weight of ``chosen`` (``MatMul``, 2-D weights) multiply in int8, in place.

    The input's range is found at each call; ONNX Runtime fuses what stands around the product.
    """
    maker = _Maker(graph)
    nodes: list[NodeProto] = []
    rounded_values: set[str] = set()
    for node in graph.node:
        rounded = chosen.get(node.input[1]) if node.op_type == "MatMul" else None
        if rounded is None:
            nodes.append(node)
            continue
        value, name, output = node.input[0], node.input[1], node.output[0]
        parts = [f"{value}_{part}" for part in ("int8", "step", "zero")]
        if value not in rounded_values:
            rounded_values.add(value)
            nodes.append(helper.make_node("DynamicQuantizeLinear", [value], parts, name=f"{value}_round"))
        codes, scale, zero = maker.tensors(name, rounded)
        whole, real, both = f"{output}_whole", f"{output}_real", f"{output}_scale"
        nodes += [
            helper.make_node("MatMulInteger", [parts[0], codes, parts[2], zero], [whole], name=node.name),
            helper.make_node("Cast", [whole], [real], name=f"{node.name}_cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [parts[1], scale], [both], name=f"{node.name}_scales"),
            helper.make_node("Mul", [real, both], [output], name=f"{node.name}_scale"),
        ]
    replace_nodes(graph, nodes)
    drop_unused(graph)


def as_matrix_products(graph: GraphProto, names: Iterable[str]) -> set[str]:
    """Say each plain ``Gemm`` that reads one of the weights ``names`` as ``MatMul`` and ``Add``, in place.

    Kernels for whole numbers are those of ``MatMul``. A weight that was read transposed is stored so: returns those.
    """
    wanted, tensors = set(names), tensors_of(graph)
    turned: set[str] = set()
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type != "Gemm" or node.input[1] not in wanted:
            nodes.append(node)
            continue
        name, output = node.input[1], node.output[0]
        if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) and name not in turned:
            turned.add(name)
            array = np.ascontiguousarray(numpy_helper.to_array(tensors[name]).T)
            tensors[name].CopyFrom(numpy_helper.from_array(array, name))
        product = output if len(node.input) < 3 or not node.input[2] else f"{output}_product"
        nodes.append(helper.make_node("MatMul", node.input[:2], [product], name=node.name))
        if product != output:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [output], name=f"{node.name}_add"))
    replace_nodes(graph, nodes)
    return turned


class _Maker:
    """Adds what each value and weight needs once."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._tensors = tensors_of(graph)
        self._weights: set[str] = set()
        self._floats: set[str] = set()
        self._biases = 0
        self.scales: dict[str, np.float32] = {}

    def value(self, name: str, ends: Range, activations: str) -> list[NodeProto]:
        """What rounds the value ``name`` to ``{name}_rounded``."""
        low, high = min(ends[0], 0.0), max(ends[1], 0.0)
        scale = np.float32(max((high - low) / _STEPS, float(np.finfo(np.float32).tiny)))
        lowest = 0 if activations == "uint8" else -128
        zero = np.clip(np.rint(-low / scale), 0, _STEPS) + lowest
        self.scales[name] = scale
        given = [f"{name}_scale", f"{name}_zero_point"]
        self._add(given[0], np.asarray(scale, np.float32))
        self._add(given[1], np.asarray(zero).astype(np.dtype(activations)))
        whole = f"{name}_int8"
        return [
            helper.make_node("QuantizeLinear", [name, *given], [whole], name=f"{whole}_quantize"),
            helper.make_node("DequantizeLinear", [whole, *given], [f"{name}_rounded"], name=f"{whole}_dequantize"),
        ]

    def weight(self, name: str, rounded: Rounded) -> list[NodeProto]:
        """What makes ``{name}_float`` of the weight in whole numbers."""
        if name in self._floats:
            return []
        self._floats.add(name)
        given = self.tensors(name, rounded)
        along: dict[str, Any] = {} if rounded.axis is None else {"axis": rounded.axis}
        return [helper.make_node("DequantizeLinear", given, [f"{name}_float"], name=f"{name}_dequantize", **along)]

    def tensors(self, name: str, rounded: Rounded) -> list[str]:
        """The names of a weight's codes, scale and zero point."""
        names = [f"{name}{suffix}" for suffix in ("_quantized", "_scale", "_zero_point")]
        if name not in self._weights:
            self._weights.add(name)
            zero = rounded.zero_point
            self._add(names[0], rounded.codes)
            self._add(names[1], rounded.scale)
            self._add(names[2], np.zeros(rounded.scale.shape, np.int8) if zero is None else zero)
        return names

    def bias(self, name: str, step: np.float32, rounded: Rounded) -> tuple[str, list[NodeProto]]:
        """A bias in the steps of the product's sums; left in float where it is computed or its steps are too small."""
        if name not in self._tensors:
            return name, []
        array = numpy_helper.to_array(self._tensors[name]).astype(np.float64)
        scale = (rounded.scale * step).astype(np.float32)
        if scale.min() <= 0 or array.ndim != 1:
            return name, []
        sums = np.rint(array / scale)
        if np.abs(sums).max(initial=0) > np.iinfo(np.int32).max:
            return name, []
        self._biases += 1
        own = f"{name}_{self._biases}"
        self._add(f"{own}_quantized", sums.astype(np.int32))
        self._add(f"{own}_scale", scale)
        given = [f"{own}_quantized", f"{own}_scale"]
        along: dict[str, Any] = {} if rounded.axis is None else {"axis": 0}
        dequantize = helper.make_node("DequantizeLinear", given, [f"{own}_float"], name=f"{own}_dequantize", **along)
        return f"{own}_float", [dequantize]

    def _add(self, name: str, array: Array) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))


def _single_readers(graph: GraphProto) -> dict[str, NodeProto]:
    """By a value's name the node that alone reads it."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return {name: found[0] for name, found in readers.items() if len(found) == 1}


def _fits(node: NodeProto, chosen: Mapping[str, Rounded], ranges: Mapping[str, Range]) -> bool:
    known = node.op_type in ("Conv", "Gemm", "MatMul") and len(node.input) > 1
    return known and node.input[1] in chosen and node.input[0] in ranges
