"""Finds residual blocks ``x + f(x)`` in a program, and the layers that would stand idle without ``f``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn
from torch.fx import Graph, Node

_ADDS: Final = ("aten.add.Tensor", "aten.add_.Tensor")
_SUBTRACTS: Final = ("aten.sub.Tensor", "aten.sub_.Tensor")


@dataclass(frozen=True)
class Cut:
    """A sum by the name of its node, and which of its two operands is taken away."""

    sum: str
    operand: int


@dataclass(frozen=True)
class Block:
    """A residual block: its sum, and the outermost layers (paths of modules) whose every operation serves it alone."""

    name: str
    cut: Cut
    layers: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Residuals:
    """What was found: blocks in the order of the program, and sums of another kind with the reason why they stay."""

    blocks: tuple[Block, ...]
    refused: dict[str, str]


class Branches:
    """A program's operations, those that serve a sum's operand alone among them."""

    def __init__(self, graph: Graph, module: nn.Module) -> None:
        self._nodes = [node for node in graph.nodes if node.op != "output" and _has_tensor(node)]
        self._place = {node: place for place, node in enumerate(self._nodes)}
        self._counted = {*self._nodes, *(node for node in graph.nodes if node.op == "output")}
        self._modules = dict(module.named_modules())
        self._module = module
        self._above = self._ancestors()
        self._operations: dict[str, set[Node]] = {}
        for node in self._nodes:
            for path in _paths(node):
                if path and path in self._modules:
                    self._operations.setdefault(path, set()).add(node)
        self._idle = self.idle(())

    def find(self) -> Residuals:
        """Every residual block."""
        blocks: list[Block] = []
        refused: dict[Node, str] = {}
        for node in self._nodes:
            cut = self._cut(node)
            if cut is None:
                if self._is_projected(node):
                    refused[node] = "both sides of its sum have layers, so that without one the shapes would not follow"
                continue
            layers = self.layers([cut])
            owned = {id(tensor) for path in layers for tensor in self._modules[path].parameters()}
            count = sum(tensor.numel() for tensor in self._module.parameters() if id(tensor) in owned)
            if count:
                blocks.append(Block(_common((*layers, _owner(node))), cut, layers, count))
            elif self._has_weights(self._between(node.args[1 - cut.operand], node.args[cut.operand])):
                refused[node] = "its layers serve other parts of the model too"
        inside = self.idle([block.cut for block in blocks])
        told = {_owner(node) or node.name: why for node, why in refused.items() if node not in inside}
        named = tuple(self._named(blocks))
        taken = {block.name for block in named}
        return Residuals(named, {name: why for name, why in told.items() if name not in taken})

    def idle(self, cuts: Collection[Cut]) -> set[Node]:
        """The operations and constants that serve nothing once these operands are gone."""
        operands = {cut.sum: cut.operand for cut in cuts}
        found: set[Node] = set()
        for node in reversed(self._nodes):
            if node.op != "placeholder" and all(
                user in found or self._is_cut(node, user, operands) for user in node.users if user in self._counted
            ):
                found.add(node)
        return found

    def layers(self, cuts: Collection[Cut]) -> tuple[str, ...]:
        """The outermost modules all of whose operations stand idle, whatever name or call they are reached by."""
        idle = self.idle(cuts)
        whole = {path for path, of_path in self._operations.items() if of_path <= idle and not of_path <= self._idle}
        return tuple(
            path for path in self._operations if path in whole and not any(above in whole for above in _parents(path))
        )

    def _is_cut(self, node: Node, user: Node, operands: dict[str, int]) -> bool:
        operand = operands.get(user.name)
        return operand is not None and user.args[operand] is node and user.args[1 - operand] is not node

    def _ancestors(self) -> list[int]:
        """For each operation the set of those it depends on, itself too, as bits."""
        above: list[int] = []
        for place, node in enumerate(self._nodes):
            bits = 1 << place
            for source in node.all_input_nodes:
                if source in self._place:
                    bits |= above[self._place[source]]
            above.append(bits)
        return above

    def _cut(self, node: Node) -> Cut | None:
        """The operand that may go: the other one has the sum's shape and is what this one was computed from."""
        if not _is_sum(node):
            return None
        for stays in (0, 1):
            skip, branch = node.args[stays], node.args[1 - stays]
            if not isinstance(skip, Node) or not isinstance(branch, Node) or skip is branch:
                continue
            if stays == 1 and (str(node.target) in _SUBTRACTS or node.kwargs.get("alpha", 1) != 1):
                continue
            if _looks(skip) == _looks(node) and self._depends(branch, skip) and skip.op != "get_attr":
                return Cut(node.name, 1 - stays)
        return None

    def _depends(self, node: Node, source: Node) -> bool:
        return bool(self._above[self._place[node]] >> self._place[source] & 1)

    def _between(self, start: Any, end: Any) -> Iterator[Node]:
        """Operations that ``end`` depends on and that depend on ``start``."""
        for place in range(self._place[start] + 1, self._place[end] + 1):
            node = self._nodes[place]
            if self._depends(end, node) and self._depends(node, start):
                yield node

    def _is_projected(self, node: Node) -> bool:
        if not _is_sum(node) or not all(isinstance(side, Node) and side in self._place for side in node.args[:2]):
            return False
        left, right = (self._above[self._place[side]] for side in node.args[:2] if isinstance(side, Node))
        shared = left & right
        sides = [
            [n for place, n in enumerate(self._nodes) if side >> place & 1]
            for side in (left & ~shared, right & ~shared)
        ]
        common = any(
            n.op == "call_function" and _is_float(n) for place, n in enumerate(self._nodes) if shared >> place & 1
        )
        return common and all(self._has_weights(side) for side in sides)

    def _has_weights(self, nodes: Iterable[Node]) -> bool:
        names = dict(self._module.named_parameters(remove_duplicate=False))
        return any(
            source.op == "get_attr" and str(source.target) in names for node in nodes for source in node.all_input_nodes
        )

    def _named(self, blocks: list[Block]) -> Iterator[Block]:
        """A block whose name holds another's, or is another's, is named after its largest layer."""
        seen: dict[str, int] = {}
        for block in blocks:
            others = [other.name for other in blocks if other is not block]
            name = block.name
            if not name or any(other == name or other.startswith(f"{name}.") for other in others):
                name = max(block.layers, key=lambda path: sum(p.numel() for p in self._modules[path].parameters()))
            seen[name] = seen.get(name, 0) + 1
            yield replace(block, name=name if seen[name] == 1 else f"{name}#{seen[name]}")


def _is_sum(node: Node) -> bool:
    return node.op == "call_function" and str(node.target) in (*_ADDS, *_SUBTRACTS) and _is_float(node)


def _has_tensor(node: Node) -> bool:
    """Whether it gives a tensor: sizes and checks of sizes are read anew when the module runs."""
    found = node.meta.get("val")
    if node.op == "get_attr":
        return True
    return isinstance(found, torch.Tensor) or (
        isinstance(found, tuple | list) and any(isinstance(item, torch.Tensor) for item in found)
    )


def _is_float(node: Node) -> bool:
    found = node.meta.get("val")
    return isinstance(found, torch.Tensor) and found.is_floating_point()


def _looks(node: Node) -> tuple[str, torch.dtype] | None:
    found = node.meta.get("val")
    return (str(tuple(found.shape)), found.dtype) if isinstance(found, torch.Tensor) else None


def _paths(node: Node) -> Iterator[str]:
    """The modules that an operation ran in, from the outermost; ``@1`` marks a module's second call."""
    for entry in (node.meta.get("nn_module_stack") or {}).values():
        yield str(entry[0]).split("@", 1)[0]


def _owner(node: Node) -> str:
    return next(reversed(list(_paths(node))), "")


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition(".")[0]:
        yield path


def _common(paths: Iterable[str]) -> str:
    shared: list[str] = []
    for parts in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
