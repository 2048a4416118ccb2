"""An ONNX graph made fit to ship: without weights, without what only its maker needed, and with short names."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tauten.codecs.arithmetic import ARITHMETIC
from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import LoweringError
from tauten.make.lower._export import strip
from tauten.run.engines._onnx_wire import DTYPES, MARKER

SMALLEST: Final = 16
"""Tensors of fewer elements stay in the graph: shapes and constants, which a runtime folds while it loads."""

SMALLEST_VECTOR: Final = 256
"""Vectors of fewer elements (biases, scales) stay too, where apart they cost more to name than to hold."""

_APART_BYTES: Final = 72
"""About what a tensor apart takes beside its numbers: how the graph names it, and the manifest's line of its layer."""


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies of a node's branches and loops."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those inside branches and loops too."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def clean(model: ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Drop notes, inferred shapes and tensors that nothing reads or that are there twice; name the open dimensions.

    Works in place. What a reader of the graph still needs, names of values and nodes, stays.
    """
    model.ClearField("doc_string")
    del model.metadata_props[:]
    _drop_notes(model.graph)
    for function in model.functions:
        function.ClearField("doc_string")
        del function.metadata_props[:], function.value_info[:]
        for node in function.node:
            _drop_node_notes(node)
    del model.graph.value_info[:]
    _name_dimensions(model.graph, inputs, outputs)
    drop_unused(model.graph)
    _merge_equal(model.graph)


def unwrap(graph: GraphProto) -> None:
    """Name weights as the user's module names them, in place."""
    names = {tensor.name: strip(tensor.name) for tensor in graph.initializer}
    rename(graph, lambda name: names.get(name, name))


def detach(model: ModelProto) -> Arrays:
    """Take the weights out of the graph and return them by name.

    Works in place: each tensor of ``SMALLEST`` elements or more leaves its bytes to the artifact's weights (vectors of
    fewer than ``SMALLEST_VECTOR`` only where a codec finds few bits in them), the names of all other values become
    short, and attributes that say what holds anyway go. Tensors inside branches and loops stay.
    """
    weights: Arrays = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size < SMALLEST or (array.ndim < 2 and array.size < SMALLEST_VECTOR and not _spares_bytes(array)):
            _pack(tensor)
            continue
        if tensor.data_type not in DTYPES:
            kind = TensorProto.DataType.Name(tensor.data_type)
            raise LoweringError(f"{tensor.name}: weights cannot hold {kind}; convert the module with .float()")
        weights[tensor.name] = array.copy()
        bare = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        bare.data_location = TensorProto.EXTERNAL
        # The runtime's own checks ask for an offset and a length, though it never opens a file.
        entries = {"location": MARKER, "offset": "0", "length": str(array.nbytes)}
        for key, value in entries.items():
            bare.external_data.add(key=key, value=value)
        tensor.CopyFrom(bare)
    _shorten(model.graph, keep=set(weights))
    _drop_defaults(model)
    model.ClearField("producer_name")
    model.ClearField("producer_version")
    for opset in [opset for opset in model.opset_import if not _uses(model, opset.domain)]:
        model.opset_import.remove(opset)
    return weights


def rename(graph: GraphProto, to: Callable[[str], str]) -> None:
    """Give every value another name, here and inside branches and loops."""
    for tensor in graph.initializer:
        tensor.name = to(tensor.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = to(value.name)
    for node in graph.node:
        node.input[:] = [to(name) if name else "" for name in node.input]
        node.output[:] = [to(name) if name else "" for name in node.output]
        for inner in subgraphs(node):
            rename(inner, to)


def drop_unused(graph: GraphProto) -> None:
    """Drop initializers that no node reads."""
    read = {name for node in all_nodes(graph) for name in node.input} | {value.name for value in graph.output}
    unused = [tensor for tensor in graph.initializer if tensor.name not in read]
    for tensor in unused:
        graph.initializer.remove(tensor)


def owners(weights: Mapping[str, object], modules: Sequence[str]) -> dict[str, str]:
    """Which module each weight belongs to: the longest module path that its name begins with."""
    known = sorted((path for path in modules if path), key=len, reverse=True)
    found = {}
    for name in weights:
        owner = next((path for path in known if name.startswith((f"{path}.", f"{path}_"))), None)
        if owner is not None:
            found[name] = owner
    return found


def _drop_notes(graph: GraphProto) -> None:
    graph.ClearField("doc_string")
    del graph.metadata_props[:], graph.quantization_annotation[:]
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.ClearField("doc_string")
        del tensor.metadata_props[:]
    for node in graph.node:
        _drop_node_notes(node)


def _drop_node_notes(node: NodeProto) -> None:
    node.ClearField("doc_string")
    del node.metadata_props[:]
    for inner in subgraphs(node):
        _drop_notes(inner)
        del inner.value_info[:]


def _name_dimensions(graph: GraphProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    for values, specs in ((graph.input, inputs), (graph.output, outputs)):
        if [value.name for value in values] != [spec.name for spec in specs]:
            found = [value.name for value in values]
            raise LoweringError(f"the exporter named {found} what was to be {[spec.name for spec in specs]}")
        for value, spec in zip(values, specs, strict=True):
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
            value.CopyFrom(helper.make_tensor_value_info(spec.name, kind, list(spec.shape)))


def _merge_equal(graph: GraphProto) -> None:
    """Keep one of the tensors that are equal to the byte (tied weights), and let every reader read that one."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    outputs = {value.name for value in graph.output}
    for tensor in graph.initializer:
        data = numpy_helper.to_array(tensor).tobytes()
        key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(data).digest())
        kept = first.setdefault(key, tensor.name)
        if kept != tensor.name and tensor.name not in outputs:
            same[tensor.name] = kept
    for tensor in [tensor for tensor in graph.initializer if tensor.name in same]:
        graph.initializer.remove(tensor)
    rename(graph, lambda name: same.get(name, name))


def _shorten(graph: GraphProto, keep: set[str]) -> None:
    """Rename every value that is neither a weight nor at the border; drop the nodes' own names.

    In a small model the names would weigh more than the weights.
    """
    keep = {"", *keep, *(value.name for value in (*graph.input, *graph.output))}
    graph.name = "g"
    free = (name for name in map(_letters, itertools.count()) if name not in keep)
    short: dict[str, str] = {}

    def to(name: str) -> str:
        if name not in keep and name not in short:
            short[name] = next(free)
        return short.get(name, name)

    rename(graph, to)
    for node in all_nodes(graph):
        node.name = ""


def _drop_defaults(model: ModelProto) -> None:
    """Drop attributes that equal the default of their operation's definition."""
    versions = {opset.domain: opset.version for opset in model.opset_import}
    for node in all_nodes(model.graph):
        if not onnx.defs.has(node.op_type, node.domain):
            continue
        known = onnx.defs.get_schema(node.op_type, versions[node.domain], node.domain).attributes
        said = [
            attribute
            for attribute in node.attribute
            if attribute.name in known
            and known[attribute.name].default_value.type != AttributeProto.UNDEFINED
            and helper.get_attribute_value(attribute) == helper.get_attribute_value(known[attribute.name].default_value)
        ]
        for attribute in said:
            node.attribute.remove(attribute)


def _letters(number: int) -> str:
    """``a`` … ``z``, ``ba``, …: a number in letters."""
    text = ""
    while True:
        number, digit = divmod(number, 26)
        text = chr(ord("a") + digit) + text
        if not number:
            return text


def _spares_bytes(vector: Array) -> bool:
    """Whether a vector of floats, such as a bias on a grid, takes less apart than in the graph, which no codec sees."""
    if vector.nbytes <= _APART_BYTES or vector.dtype.name not in ("float16", "float32"):
        return False
    return _APART_BYTES + len(ARITHMETIC.encode({"": vector})) < vector.nbytes


def _pack(tensor: TensorProto) -> None:
    """Hold a small tensor's numbers as raw bytes, which is the shortest form."""
    if tensor.data_type != TensorProto.STRING and not tensor.HasField("raw_data"):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))


def _uses(model: ModelProto, domain: str) -> bool:
    functions = (node for function in model.functions for node in function.node)
    return any((node.domain or "") == (domain or "") for node in (*all_nodes(model.graph), *functions))
