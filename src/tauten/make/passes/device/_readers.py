"""Who reads a tensor: the exported program of a model, run once to see which of its values lie in the same memory."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node

from tauten.core.rows import resize_rows
from tauten.core.tensor import Array
from tauten.errors import PassError
from tauten.make.graph.export import export
from tauten.make.model.model import Model

_CALLED_AGAIN = re.compile(r"@\d+$")
"""How ``torch.export`` marks a module's second call and those after."""


class Readers:
    """The program of a model in evaluation mode, with the memory of each value.

    Which values share memory is seen, and not read off the operations: whether ``reshape`` copies depends on strides,
    and ``dropout`` in evaluation mode returns what it was given without declaring it. Raises ``PassError`` where
    ``torch.export`` cannot follow the model.
    """

    def __init__(self, model: Model, example: Mapping[str, Array]) -> None:
        program = export(model.module, model.inputs, example)
        self._nodes = list(program.graph.nodes)
        self._values = _run(program, model, example)
        self._sharing: dict[int, list[Node]] = defaultdict(list)
        for node, value in self._values.items():
            self._sharing[value.untyped_storage().data_ptr()].append(node)

    def calls(self, paths: set[str]) -> list[Node]:
        """The operations of the module that is known by these paths, in order."""
        return [node for node in self._nodes if node.op == "call_function" and _path(node) in paths]

    def why_not_in_place(self, node: Node) -> str | None:
        """Why the operation must not write into its first argument; ``None`` where nobody would see it."""
        given = node.args[0] if node.args else None
        if not isinstance(given, Node) or given not in self._values:
            return "it is not given a tensor"
        value = self._values[given]
        if any(size > 1 and stride == 0 for size, stride in zip(value.shape, value.stride(), strict=True)):
            return "what it is given is expanded: one element in memory stands for several"
        if not _is_dense(value):
            # What is written elsewhere lies without gaps, and so would be added up in another order after.
            return "what it is given lies in memory with gaps"
        shared = [other for other in self._sharing[value.untyped_storage().data_ptr()] if other is not node]
        for other in shared:
            if other.op == "placeholder":
                return f"what it is given lies in the memory of {_said(other)}, which must stay as it is"
        for other in shared:
            for reader in other.users:
                if reader is node or reader in shared or _reads_only_the_shape(reader):
                    continue
                if reader.op == "output":
                    return "what it is given is an output of the model"
                return f"what it is given is also read by {_said(reader)}"
        return None


def _run(program: ExportedProgram, model: Model, example: Mapping[str, Array]) -> dict[Node, torch.Tensor]:
    """Every tensor of the program by its node, all alive, for two samples."""
    arrays = resize_rows(model.inputs, example, 2)
    device = next((tensor.device for tensor in model.module.parameters()), torch.device("cpu"))
    users = iter([torch.as_tensor(arrays[spec.name]).to(device) for spec in model.inputs])
    given: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            given.append(next(users))
        elif spec.target in program.state_dict:
            given.append(program.state_dict[spec.target])
        elif spec.target in program.constants:
            given.append(program.constants[spec.target])
        else:
            raise PassError(f"torch.export: an input of kind {spec.kind.name} ({spec.target}) is not supported")
    watcher = _Watcher(program.graph_module)
    with torch.no_grad():
        watcher.run(*given)
    return watcher.seen


class _Watcher(Interpreter):
    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict[Node, torch.Tensor] = {}

    def run_node(self, n: Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, torch.Tensor):
            self.seen[n] = found
        return found


def _is_dense(value: torch.Tensor) -> bool:
    """Whether its elements lie side by side, in whatever order of dimensions."""
    room = 1
    for stride, size in sorted((stride, size) for size, stride in zip(value.shape, value.stride(), strict=True)):
        if size != 1 and stride != room:
            return False
        room *= size
    return True


def _path(node: Node) -> str | None:
    stack = node.meta.get("nn_module_stack") or {}
    return _CALLED_AGAIN.sub("", str(list(stack.values())[-1][0])) if stack else None


def _reads_only_the_shape(node: Node) -> bool:
    return str(node.target).startswith(("aten.sym_", "aten._assert"))


def _said(node: Node) -> str:
    """``conv2d at features.3``, ``the input image``, ``the parameter p_weight``."""
    if node.op != "placeholder":
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        return f"{name} at {_path(node) or 'the top of the model'}"
    return f"{'a weight' if node.name.startswith(('p_', 'b_', 'c_')) else 'an input'} ({node.name})"
