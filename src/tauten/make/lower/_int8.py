"""What of a quantized ONNX graph computes in int8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from onnx import GraphProto, NodeProto

from tauten.make.lower._graph import drop_unused, rename
from tauten.make.lower._quantize_plan import Choice
from tauten.make.lower._quantize_weights import Weight

_MATRIX: Final = ("Gemm", "MatMul")
_MADE: Final = "_quantized"
_PRODUCTS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")


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


def untreated(graph: GraphProto, weights: Collection[Weight]) -> dict[str, str]:
    """Why products of a float graph are none of those that ``weights`` take part in, by weight or by node."""
    computed = set(computed_products(graph))
    treated = {id(node) for weight in weights for node in weight.readers}
    tensors = {tensor.name for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type not in _PRODUCTS or id(node) in treated:
            continue
        if node.name in computed:
            found[node.name] = "both sides are computed: only products with a weight are made int8"
        else:
            name = node.input[1] if node.input[1] in tensors else node.name
            found[name] = "its weight is not a matrix on the right that products alone read"
    return found


def keep_names(graph: GraphProto) -> None:
    """Let a quantized weight bear its parameter's name, in place: the quantizer appends to it how it was made."""
    held = {tensor.name for tensor in graph.initializer}
    taken = held | {name for node in graph.node for name in node.output}
    names = {name: name.removesuffix(_MADE) for name in held if name.endswith(_MADE)}
    unique = Counter(names.values())
    names = {name: short for name, short in names.items() if short not in taken and unique[short] == 1}
    rename(graph, lambda name: names.get(name, name))


def left_in_float(graph: GraphProto, choices: Collection[Choice]) -> set[str]:
    """The weights that were to multiply in int8 with fixed ranges, and do not."""
    producers = {name: node for node in graph.node for name in node.output}
    by_name = {node.name: node for node in graph.node}
    left = set()
    for choice in choices:
        nodes = [by_name.get(node.name) for node in choice.weight.readers]
        if choice.way == "static" and not all(node is not None and _in_int8(node, producers) for node in nodes):
            left.add(choice.weight.name)
    return left


def report(
    graph: GraphProto,
    choices: Collection[Choice],
    ways: Mapping[str, str],
    reasons: Mapping[str, str],
    others: Mapping[str, str],
) -> dict[str, Any]:
    """What computes in which precision, by the weight that is read, and why.

    ``{"int8": [names], "float": {name: reason}}`` of the operations that multiply; ``embeddings``: tables in whole
    numbers; ``layers``: by weight, in which precision it is stored and computed with. ``ways`` say how weights that are
    stored in whole numbers are computed with, ``reasons`` why some stayed in float32 after all, and ``others`` why the
    remaining products were not treated.
    """
    producers = {name: node for node in graph.node for name in node.output}
    int8: list[str] = []
    kept: dict[str, str] = {}
    tables: list[str] = []
    layers: dict[str, dict[str, str]] = {}
    for choice in choices:
        name, why = choice.weight.name, reasons.get(choice.weight.name, choice.why)
        stored = "float32" if name in reasons else choice.precision
        multiplies = choice.way in ("static", "dynamic") and name not in reasons
        if choice.weight.kind == "table":
            tables += [name] if choice.way == "stored" else []
        elif multiplies:
            int8.append(name)
        else:
            kept[name] = why
        computed = "int8" if multiplies else ways.get(name, "float32")
        layers[name] = {"stored": stored, "computed": computed, **({"why": why} if why else {})}
    by_name = {node.name: node for node in graph.node if node.op_type in _PRODUCTS}
    for name, why in others.items():
        if name in by_name and _in_int8(by_name[name], producers):
            int8.append(name)
        else:
            kept[name] = why
    return {"int8": int8, "float": kept, "embeddings": tables, "layers": layers}


def _chain(output: str, producers: Mapping[str, NodeProto]) -> tuple[NodeProto, NodeProto, NodeProto] | None:
    last = producers.get(output)
    middle = producers.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
    first = producers.get(middle.input[0]) if middle is not None and middle.op_type == "QuantizeLinear" else None
    if last is None or middle is None or first is None or first.op_type not in _MATRIX:
        return None
    return first, middle, last


def _in_int8(node: NodeProto, producers: Mapping[str, NodeProto]) -> bool:
    return all(name in producers and producers[name].op_type == "DequantizeLinear" for name in node.input[:2])
