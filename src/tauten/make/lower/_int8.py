"""What of a quantized ONNX graph computes in int8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from onnx import GraphProto, NodeProto

from tauten.make.lower._graph import drop_unused, rename
from tauten.make.model.model import QuantizationPlan

_PRODUCTS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MATRIX: Final = ("Gemm", "MatMul")
_MADE: Final = "_quantized"


def float_matrix_outputs(graph: GraphProto, answers: Sequence[str] = ()) -> None:
    """Hand out the sums of a last linear layer in float, in place: rounding them to 8 bits would gain nothing.

    Turns ``Gemm -> QuantizeLinear -> DequantizeLinear -> output`` into ``Gemm -> output``. A convolution keeps the
    pair: it has no 8-bit kernel with a float result. ``answers`` are values that an output is chosen from: they may be
    read by what chooses, too.
    """
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for output in [*(value.name for value in graph.output), *answers]:
        chain = _chain(output, producers)
        if chain is None or any(readers.get(name) != 1 for name in (chain[0].output[0], chain[1].output[0])):
            continue
        if readers.get(output) and output not in answers:
            continue
        product, quantizes, dequantizes = chain
        product.output[0] = output
        graph.node.remove(quantizes)
        graph.node.remove(dequantizes)
    drop_unused(graph)


def computed_products(graph: GraphProto) -> list[str]:
    """The names of the matrix products that read no weight, such as attention's."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type in _MATRIX and not weights & set(node.input[:2])]


def keep_names(graph: GraphProto) -> None:
    """Let a quantized weight bear its parameter's name, in place: the quantizer appends to it how it was made."""
    held = {tensor.name for tensor in graph.initializer}
    taken = held | {name for node in graph.node for name in node.output}
    names = {name: _parameter(name) for name in held if name.endswith(_MADE)}
    unique = Counter(names.values())
    names = {name: short for name, short in names.items() if short not in taken and unique[short] == 1}
    rename(graph, lambda name: names.get(name, name))


def report(graph: GraphProto, plan: QuantizationPlan) -> dict[str, Any]:
    """``{"int8": [names], "float": {name: reason}}`` of the operations that multiply, by the weight that they read."""
    producers = {name: node for node in graph.node for name in node.output}
    int8: list[str] = []
    kept: dict[str, str] = {}
    for node in graph.node:
        if node.op_type not in _PRODUCTS and node.op_type != "MatMulInteger":
            continue
        name = _weight_name(node, producers)
        if node.op_type == "MatMulInteger" or all(_dequantized(source, producers) for source in node.input[:2]):
            int8.append(name)
        else:
            kept[name] = _reason(node, producers, plan)
    return {"int8": int8, "float": kept}


def _chain(output: str, producers: Mapping[str, NodeProto]) -> tuple[NodeProto, NodeProto, NodeProto] | None:
    last = producers.get(output)
    middle = producers.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
    first = producers.get(middle.input[0]) if middle is not None and middle.op_type == "QuantizeLinear" else None
    if last is None or middle is None or first is None or first.op_type not in _MATRIX:
        return None
    return first, middle, last


def _dequantized(name: str, producers: Mapping[str, NodeProto]) -> bool:
    return name in producers and producers[name].op_type == "DequantizeLinear"


def _weight_name(node: NodeProto, producers: Mapping[str, NodeProto]) -> str:
    """The weight's name without what the quantizer added; the node's name where it reads no weight."""
    name = node.input[1]
    if _dequantized(name, producers):
        name = producers[name].input[0]
    return _parameter(name) if name not in producers else node.name or node.output[0]


def _parameter(name: str) -> str:
    return name.removesuffix(_MADE).removesuffix("_Transposed")


def _reason(node: NodeProto, producers: Mapping[str, NodeProto], plan: QuantizationPlan) -> str:
    if plan.method == "dynamic":
        if node.op_type not in _MATRIX:
            return f"dynamic int8 is for linear layers; {node.op_type} is faster in float"
        return "both sides are computed: only products with a weight are made dynamic int8"
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return f"ONNX Runtime has no 8-bit kernel for {node.op_type} on a CPU"
    if node.input[1] in producers:
        return "both sides are computed: beside layer normalization only products with a weight are made int8"
    return "its weight or its input was left in float by ONNX Runtime's quantizer"
