"""A graph of PyTorch's operations as a JSON document: needs neither pickle nor the user's code.

The graph is a JSON document::

    {"format": 1,
     "arguments": [{"input": "image"}, {"weight": "conv.weight", "memory_format": "channels_last"}, …],
     "nodes":     [{"target": "aten.conv2d.default", "args": [{"node": 0}, {"node": 1}, …], "kwargs": {…}}, …],
     "outputs":   [{"node": 7}]}

Values are numbered through arguments and nodes, and a node reads only what stands before it. A value in ``args`` is
``null``, a boolean, an integer, a string, a list, or an object with one key: ``node``, ``float`` (as text), ``dtype``,
``device``, ``layout`` or ``memory_format``.

The operations are those of ATen, and the pairs that mark what is quantized (``quantized_decomposed``).
"""

from __future__ import annotations

import importlib
import json
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import fx, nn

from tauten.core.tensor import Array, Arrays
from tauten.errors import ArtifactError

FORMAT: Final = 1

FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in (
            "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "eq", "ne", "lt", "le", "gt",
            "ge", "and_", "or_",
        )
    },
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sum")
    },
    "math.trunc": math.trunc, "math.ceil": math.ceil, "math.floor": math.floor,
}  # fmt: skip
"""What a node may call beside ATen: indexing, and arithmetic on sizes."""

_REFUSED_OPERATIONS: Final = frozenset({"from_file", "set_data", "resize_", "resize_as_", "resize", "as_strided_"})
"""ATen operations that reach outside the graph: they open files, or show memory that nobody wrote."""

_QUANTIZED_OPERATIONS: Final = frozenset(
    {
        "choose_qparams.tensor",
        "quantize_per_tensor.default", "quantize_per_tensor.tensor", "quantize_per_channel.default",
        "dequantize_per_tensor.default", "dequantize_per_tensor.tensor", "dequantize_per_channel.default",
    }
)  # fmt: skip
"""What may be called in ``quantized_decomposed``."""

_REFUSED_TYPES: Final = ("Storage", "Stream", "Generator")


def to_tensor(array: Array) -> torch.Tensor:
    """The array as a tensor; its memory is shared where PyTorch can."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def rebuild(graph: bytes, weights: Arrays, inputs: Sequence[str], outputs: int, device: str = "cpu") -> fx.GraphModule:
    """The module that a graph document describes, on ``device``; it takes the inputs in order and returns a tuple.

    Raises ``ArtifactError`` for a document that is malformed or calls what is not allowed.
    """
    try:
        document = json.loads(graph)
        return _Builder(document, weights, list(inputs), device).build(outputs)
    except RecursionError:
        raise ArtifactError("graph: values inside values are too deep") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as fault:
        raise ArtifactError(f"graph: not a graph of operations: {type(fault).__name__}: {fault}") from None


def resolve(target: str) -> Callable[..., Any]:
    """The function behind a name such as ``aten.conv2d.default``; ``ArtifactError`` for one that is not allowed."""
    if target in FUNCTIONS:
        return FUNCTIONS[target]
    parts = target.split(".")
    if parts[0] == "quantized_decomposed" and target.partition(".")[2] in _QUANTIZED_OPERATIONS:
        # Registers the operations, which stand in PyTorch itself.
        importlib.import_module("torch.ao.quantization.fx._decomposed")

        quantized: Callable[..., Any] = getattr(getattr(torch.ops.quantized_decomposed, parts[1]), parts[2])
        return quantized
    if len(parts) != 3 or parts[0] != "aten" or not all(part.isidentifier() for part in parts):
        raise ArtifactError(f"graph: operation {target!r} is not allowed")
    name, overload = parts[1:]
    packet = getattr(torch.ops.aten, name, None)
    found = getattr(packet, overload, None) if isinstance(packet, torch._ops.OpOverloadPacket) else None
    if not isinstance(found, torch._ops.OpOverload):
        raise ArtifactError(f"graph: PyTorch {torch.__version__} has no operation {target!r}")
    types = [str(argument.type) for argument in found._schema.arguments]
    if (
        name in _REFUSED_OPERATIONS
        or "unsafe" in name
        or any(kind in text for text in types for kind in _REFUSED_TYPES)
    ):
        raise ArtifactError(f"graph: operation {target!r} is not allowed")
    return found


class _Builder:
    """Reads one document. Names in it never become names in the code that ``torch.fx`` makes."""

    def __init__(self, document: dict[str, Any], weights: Arrays, inputs: list[str], device: str) -> None:
        if document["format"] != FORMAT:
            raise ArtifactError(f"graph: expected format {FORMAT}, got {document['format']!r}")
        self._document = document
        self._weights = weights
        self._inputs = inputs
        self._device = torch.device(device)
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._values: list[fx.Node] = []

    def build(self, outputs: int) -> fx.GraphModule:
        self._arguments()
        for node in self._document["nodes"]:
            self._node(node)
        returned = [self._decode(output) for output in self._document["outputs"]]
        if len(returned) != outputs or not all(isinstance(node, fx.Node) for node in returned):
            raise ArtifactError(f"graph: expected {outputs} outputs, got {len(returned)}")
        self._graph.output(tuple(returned))
        return fx.GraphModule(self._root, self._graph).eval()

    def _arguments(self) -> None:
        arguments = self._document["arguments"]
        given = [argument["input"] for argument in arguments if "input" in argument]
        named = [argument["weight"] for argument in arguments if "weight" in argument]
        if given != self._inputs:
            raise ArtifactError(f"graph: expected inputs {self._inputs}, got {given}")
        if len(set(named)) != len(named) or set(named) != set(self._weights):
            odd = sorted(set(named) ^ set(self._weights))
            raise ArtifactError(f"graph: graph and weights do not name the same tensors: {odd[:8]}")
        places = {name: self._graph.placeholder(f"input_{index}") for index, name in enumerate(given)}
        for index, argument in enumerate(arguments):
            if "input" in argument:
                self._values.append(places[argument["input"]])
                continue
            tensor = to_tensor(self._weights[argument["weight"]])
            layout = argument.get("memory_format")
            if layout is not None:
                tensor = tensor.contiguous(memory_format=_constant("memory_format", layout))
            self._root.register_buffer(f"weight_{index}", tensor.to(self._device))
            self._values.append(self._graph.get_attr(f"weight_{index}"))

    def _node(self, node: dict[str, Any]) -> None:
        function = resolve(node["target"])
        args = tuple(self._decode(value) for value in node["args"])
        kwargs = {name: self._decode(value) for name, value in node.get("kwargs", {}).items()}
        known = {a.name for a in function._schema.arguments} if isinstance(function, torch._ops.OpOverload) else set()
        if not set(kwargs) <= known:
            raise ArtifactError(f"graph: {node['target']} takes no {sorted(set(kwargs) - known)}")
        self._values.append(self._graph.call_function(function, args, kwargs))

    def _decode(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, list):
            return [self._decode(item) for item in value]
        if not isinstance(value, dict) or len(value) != 1:
            raise ArtifactError(f"graph: cannot read the value {str(value)[:80]}")
        kind, what = next(iter(value.items()))
        if kind == "node":
            if not isinstance(what, int) or not 0 <= what < len(self._values):
                raise ArtifactError(f"graph: a value reads {what!r}, which does not stand before it")
            return self._values[what]
        if kind == "float":
            return float(what)
        if kind == "device" and what == "cpu":
            return self._device
        return _constant(kind, what)


_CONSTANTS: Final[dict[str, type]] = {
    "dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format,
}  # fmt: skip


def _constant(kind: str, name: Any) -> Any:
    """``torch.float32`` of ``("dtype", "float32")`` and the like."""
    found = getattr(torch, str(name), None)
    if kind not in _CONSTANTS or not isinstance(found, _CONSTANTS[kind]):
        raise ArtifactError(f"graph: no {kind} {str(name)[:80]!r}")
    return found
