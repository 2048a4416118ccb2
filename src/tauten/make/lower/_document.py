"""Writes an exported program as a document of operations, which ``run.engines._operations`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram

from tauten.core.tensor import Array, Arrays
from tauten.errors import ArtifactError, LoweringError
from tauten.make.lower._export import lifted, module_path, strip
from tauten.run.engines._operations import FORMAT, FUNCTIONS, resolve

_NAMES: Final = {function: name for name, function in FUNCTIONS.items()}
# Checks of what export took for granted; they compute nothing that is read, and the module itself has none.
_CHECKS: Final = ("aten._assert_", "aten.sym_constrain_range", "aten._assert_tensor_metadata")
_NEVER_INLINED: Final = "it changes how the operations inside compute"


class Writer:
    """Writes one exported program, with sub-graphs that only set a mode written in line.

    ``names`` are what weights shall be called, by the names that they have in the program, where the two differ.
    """

    def __init__(self, program: ExportedProgram, inputs: list[str], names: Mapping[str, str] | None = None) -> None:
        self._program = program
        self._called = names or {}
        self._inputs = inputs
        self._arguments: list[dict[str, Any]] = []
        self._nodes: list[dict[str, Any]] = []
        self._weights: dict[str, Array] = {}
        self._held: dict[tuple[Any, ...], int] = {}

    def write(self) -> tuple[dict[str, Any], Arrays]:
        module = self._program.graph_module
        references: dict[fx.Node, Any] = {}
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        inputs = iter(self._inputs)
        names = [spec.target or spec.arg.name for spec in self._program.graph_signature.input_specs]
        for node, tensor, name in zip(placeholders, lifted(self._program), names, strict=True):
            if tensor is None:
                references[node] = self._argument({"input": next(inputs)})
            elif node.users:
                references[node] = self._weight(self._called.get(name, strip(name)), tensor)
        returned = self._walk(module, references)
        flat = [returned] if not isinstance(returned, list) else returned
        return {"format": FORMAT, "arguments": self._arguments, "nodes": self._nodes, "outputs": flat}, self._weights

    def _argument(self, argument: dict[str, Any]) -> dict[str, int]:
        self._arguments.append(argument)
        return {"node": len(self._arguments) - 1}

    def _weight(self, name: str, tensor: torch.Tensor) -> dict[str, int]:
        """A weight as an argument; tensors that share memory (tied weights) are one."""
        if tensor.dtype not in _NUMPY:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise LoweringError(f"operations: {name} is {kind}, which NumPy lacks; convert the module with .float()")
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in self._held:
            return {"node": self._held[key]}
        argument: dict[str, Any] = {"weight": name}
        if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
            argument["memory_format"] = "channels_last"
        self._weights[name] = np.ascontiguousarray(tensor.detach().cpu().numpy())
        reference = self._argument(argument)
        self._held[key] = reference["node"]
        return reference

    def _walk(self, module: fx.GraphModule, references: dict[fx.Node, Any]) -> Any:
        """Write the operations of ``module``; returns what it returns, encoded."""
        for node in module.graph.nodes:
            if node.op == "output":
                return _Encoder(references, node).encode(node.args[0])
            if node.op == "call_function":
                self._call(module, node, references)
        raise LoweringError("operations: the exported graph returns nothing")

    def _call(self, module: fx.GraphModule, node: fx.Node, references: dict[fx.Node, Any]) -> None:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            references[node] = self._inline(module, node, references)
            return
        target = _target_name(node)
        if target.startswith(_CHECKS) and not node.users:
            return
        _keep_arguments(node, target)
        encoder = _Encoder(references, node)
        if target == "operator.getitem" and isinstance(node.args[0], fx.Node):
            source = references[node.args[0]]
            if isinstance(source, list):  # what an inlined sub-graph returned
                references[node] = source[int(str(node.args[1]))]
                return
        written: dict[str, Any] = {"target": target, "args": [encoder.encode(value) for value in node.args]}
        if node.kwargs:
            written["kwargs"] = {name: encoder.encode(value) for name, value in node.kwargs.items()}
        self._nodes.append(written)
        # Nodes are numbered after all arguments; both lists are whole only at the end, but weights come first.
        references[node] = {"node": len(self._arguments) + len(self._nodes) - 1}

    def _inline(self, module: fx.GraphModule, node: fx.Node, references: dict[fx.Node, Any]) -> Any:
        """The operations inside a ``no_grad`` or a disabled ``autocast``, which inference does not tell apart."""
        name = str(node.target)
        if name == "wrap_with_set_grad_enabled":
            inner, given = node.args[1], node.args[2:]
        elif name == "wrap_with_autocast" and node.args[2] is False:
            inner, given = node.args[4], node.args[5:]
        else:
            raise LoweringError(f"operations: operation {name} cannot be written as plain operations: {_NEVER_INLINED}")
        sub = getattr(module, str(inner.target)) if isinstance(inner, fx.Node) else None
        if not isinstance(sub, fx.GraphModule):
            raise LoweringError(f"operations: operation {name} holds no graph")
        places = [place for place in sub.graph.nodes if place.op == "placeholder"]
        encoder = _Encoder(references, node)
        inside = {place: encoder.encode(value) for place, value in zip(places, given, strict=True)}
        return self._walk(sub, inside)


class _Encoder:
    """Values of one node's arguments as JSON."""

    def __init__(self, references: Mapping[fx.Node, Any], node: fx.Node) -> None:
        self._references = references
        self._node = node

    def encode(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self._references[value]
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return {"float": repr(value)}
        if isinstance(value, list | tuple):
            return [self.encode(item) for item in value]
        for kind, of in _KINDS.items():
            if isinstance(value, of):
                return {kind: str(value).removeprefix("torch.")}
        where = module_path(self._node)
        raise LoweringError(
            f"operations: {self._node.target}{f' in module {where}' if where else ''} has an argument of type "
            f"{type(value).__name__}, which the graph file cannot hold"
        )


_KINDS: Final[dict[str, type]] = {
    "dtype": torch.dtype, "device": torch.device, "layout": torch.layout, "memory_format": torch.memory_format,
}  # fmt: skip
_NUMPY: Final = frozenset(
    {
        torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
        torch.int64, torch.float16, torch.float32, torch.float64,
    }
)  # fmt: skip


def _target_name(node: fx.Node) -> str:
    name = _NAMES.get(node.target) if callable(node.target) else None
    if name is None:
        name = str(node.target)
        try:
            resolve(name)
        except ArtifactError:
            where = module_path(node)
            raise LoweringError(
                f"operations: operation {name}{f' in module {where}' if where else ''} is not one of PyTorch's own"
            ) from None
    return name


def _keep_arguments(node: fx.Node, target: str) -> None:
    """Refuse an operation that writes into an input or a weight: a second call would answer otherwise."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes and isinstance(value, fx.Node) and value.op == "placeholder":
            raise LoweringError(f"operations: operation {target} writes into {value.name}, an input or a weight")
