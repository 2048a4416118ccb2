"""Drops sums with zeros from an exported program: what a removed residual branch leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

_MAKES_ZEROS: Final = frozenset({"zeros", "zeros_like", "new_zeros"})
_KEEPS_ZEROS: Final = frozenset(
    {
        "_to_copy", "_unsafe_view", "alias", "clone", "contiguous", "detach", "dropout", "expand", "expand_as",
        "flatten", "neg", "permute", "relu", "reshape", "roll", "select", "slice", "squeeze", "to", "transpose",
        "unflatten", "unsqueeze", "view",
    }
)  # fmt: skip
_ADDS: Final = frozenset({"add", "add_"})


def drop_zero_sums(program: ExportedProgram, constants: Sequence[torch.Tensor | None]) -> int:
    """Put ``x`` in the place of ``x + 0``, in place; returns how many sums went.

    A sum goes where the zeros are seen to be zeros (a constant, or made and only moved about) and the other operand has
    the sum's shape and type. ``constants`` are what stands behind the program's placeholders.
    """
    nodes = list(program.graph.nodes)
    zeros = _zeros(nodes, program, constants)
    overwrites = any(_is_mutable(node) for node in nodes)
    dropped = 0
    for node in nodes:
        if _name(node) not in _ADDS or len(node.args) < 2:
            continue
        for index, operand in enumerate(node.args[:2]):
            other = node.args[1 - index]
            if operand not in zeros or not isinstance(other, Node) or _looks(other) != _looks(node):
                continue
            if index == 0 and node.kwargs.get("alpha", 1) != 1:
                continue
            kept = other
            returned = any(user.op == "output" for user in node.users)
            in_its_place = index == 1 and _name(node) == "add_"
            if returned or other.op == "placeholder" or (overwrites and not in_its_place):
                # The sum was a tensor of its own, which may be overwritten later or returned.
                with program.graph.inserting_before(node):
                    kept = program.graph.call_function(torch.ops.aten.clone.default, (other,))
                kept.meta = dict(node.meta)
            node.replace_all_uses_with(kept)
            if returned:
                program.graph_signature.replace_all_uses(node.name, kept.name)
            program.graph.erase_node(node)
            dropped += 1
            break
    if dropped:
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()
    return dropped


def _zeros(nodes: Sequence[Node], program: ExportedProgram, constants: Sequence[torch.Tensor | None]) -> set[Node]:
    """Values that hold nothing but zeros wherever they are read."""
    found: set[Node] = set()
    placeholders = [node for node in nodes if node.op == "placeholder"]
    fixed = set()
    for node, spec, tensor in zip(placeholders, program.graph_signature.input_specs, constants, strict=True):
        if spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR) and tensor is not None:
            if tensor.numel() == 1 and not tensor.any():
                found.add(node)
        elif spec.kind is InputKind.PARAMETER:
            fixed.add(node)
    for node in nodes:
        name, given = _name(node), [argument for argument in node.args if isinstance(argument, Node)]
        moved = name in _KEEPS_ZEROS and bool(given) and given[0] in found
        # Of weights alone it is known that they are finite: zero times infinity is none.
        scaled = name == "mul" and any(one in found for one in given) and all(one in found | fixed for one in given)
        if name in _MAKES_ZEROS or moved or scaled:
            found.add(node)
    return found - _overwritten(nodes, found)


def _overwritten(nodes: Sequence[Node], zeros: set[Node]) -> set[Node]:
    """Zeros that an operation may write into, by their own name or by a view of them.

    A sum that overwrites zeros which nothing else reads is what is looked for.
    """
    bad: set[Node] = set()
    for node in nodes:
        written = node.args[0] if node.args and _is_mutable(node) else None
        if not isinstance(written, Node) or written not in zeros:
            continue
        chain = _chain(written, zeros)
        if _name(node) != "add_" or any(len(link.users) > 1 for link in chain):
            bad.update(chain)
    # What was made from zeros that are written into may be a view of them.
    for node in nodes:
        if node in zeros and any(given in bad for given in node.all_input_nodes):
            bad.add(node)
    return bad


def _chain(node: Node, zeros: set[Node]) -> list[Node]:
    """The value and those it was made from that are zeros."""
    found, open_ = [], [node]
    while open_:
        link = open_.pop()
        found.append(link)
        open_ += [given for given in link.all_input_nodes if given in zeros]
    return found


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return str(schema.name).removeprefix("aten::") if node.op == "call_function" and schema is not None else ""


def _is_mutable(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def _looks(node: Node) -> tuple[str, torch.dtype] | None:
    value = node.meta.get("val")
    return (str(tuple(value.shape)), value.dtype) if isinstance(value, torch.Tensor) else None
