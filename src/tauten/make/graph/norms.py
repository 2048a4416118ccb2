"""Finds the modules that do nothing but normalise channels, fused (``aten.layer_norm``) or written out.

An average over channels changes when some of them go, so that an operation which takes one is refused, unless it
belongs to a norm: a norm over the kept channels is what the smaller module is meant to compute, and the reference that
it is held against can be told to do so where the whole norm is one module (see ``slim.mask``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

_FUSED = frozenset({"layer_norm", "rms_norm"})
_MEANS = frozenset({"mean", "var"})
_ELEMENTS = frozenset(
    {"add", "alias", "clone", "contiguous", "div", "mul", "neg", "pow", "reciprocal", "rsqrt", "rsub", "sqrt", "square"}
    | {"sub", "to", "type_as", "_to_copy", "permute", "transpose", "unsqueeze"}
)
_CASTS = frozenset({"to", "_to_copy", "type_as"})
_CHECKS = frozenset({"sym_size", "_assert_tensor_metadata"})


@dataclass(frozen=True)
class Norm:
    """One call of the module at ``path``, which normalises ``data`` and answers ``result``; ``scales`` are its own."""

    path: str
    data: Node
    result: Node
    scales: tuple[Node, ...]


def find_norms(program: ExportedProgram) -> dict[Node, Norm]:
    """For each operation that averages over channels inside of a norm, the norm."""
    targets = {
        spec.arg.name: str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    }
    # Each call of a module has a key of its own: its path, and a number after the first.
    calls: dict[tuple[str, str], list[Node]] = {}
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if node.op == "call_function" and stack:
            key, (path, _) = list(stack.items())[-1]
            calls.setdefault((key, path.split("@", 1)[0]), []).append(node)
    found: dict[Node, Norm] = {}
    for (_, path), nodes in calls.items():
        averages = [node for node in nodes if operation(node) in _FUSED | _MEANS]
        norm = _norm(path, nodes, averages, targets) if averages else None
        if norm is not None:
            found |= dict.fromkeys(averages, norm)
    return found


def operation(node: Node) -> str:
    """The ATen name of what a node calls, overload left out."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).removeprefix("aten::")


def _norm(path: str, nodes: list[Node], averages: list[Node], targets: Mapping[str, str]) -> Norm | None:
    inside = set(nodes)
    if any(operation(node) not in _FUSED | _MEANS | _ELEMENTS | _CHECKS for node in nodes):
        return None
    outside = {operand for node in nodes for operand in node.all_input_nodes if operand not in inside}
    scales = [node for node in outside if node.name in targets]
    data = [node for node in outside if node.name not in targets]
    # What only casts the data may be the data itself, which others read under that name.
    casts = [node for node in nodes if operation(node) in _CASTS and node.all_input_nodes == data]
    results = [node for node in nodes if node not in casts and any(user not in inside for user in node.users)]
    own = all(targets[node.name].rpartition(".")[0] == path and node.meta["val"].dim() == 1 for node in scales)
    if not scales or not own or len(data) != 1 or len(results) != 1:
        return None
    if not all(operation(node) in _FUSED or _normalises(node) for node in averages):
        return None
    return Norm(path, data[0], results[0], tuple(scales))


def _normalises(mean: Node) -> bool:
    """An average over one dimension that is taken off the numbers, or whose root divides them."""
    dims = mean.args[1] if len(mean.args) > 1 else mean.kwargs.get("dim")
    shape, before = (node.meta["val"].shape for node in (mean, mean.all_input_nodes[0]))
    if not isinstance(dims, list | tuple) or len(dims) != 1 or len(shape) != len(before):
        return False
    centres = operation(mean) == "mean" and all(operation(user) == "sub" for user in mean.users)
    squares = operation(mean) == "var" or _is_square(mean.all_input_nodes[0])
    return centres or (squares and all(_leads_to_root(user) for user in mean.users))


def _is_square(node: Node) -> bool:
    op = operation(node)
    if op == "pow":
        return bool(node.args[1] == 2)
    return op == "square" or (op == "mul" and node.args[0] is node.args[1])


def _leads_to_root(node: Node) -> bool:
    """``1 / sqrt(variance + epsilon)``, as a factor or a divisor."""
    op = operation(node)
    if op == "add" or op in _CASTS:
        return len(node.all_input_nodes) == 1 and all(_leads_to_root(user) for user in node.users)
    if op == "rsqrt" or (op == "pow" and node.args[1] == -0.5):
        return all(operation(user) == "mul" for user in node.users)
    if op == "sqrt" or (op == "pow" and node.args[1] == 0.5):
        return all(operation(user) == "div" and user.args[1] is node for user in node.users)
    return False
