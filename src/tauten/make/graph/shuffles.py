"""Finds channel shuffles that are written out: split into groups, the two parts swapped, and folded again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.export import ExportedProgram
from torch.fx import Node

from tauten.make.graph.norms import operation

_FOLDS = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten"})
_COPIES = frozenset({"contiguous", "clone"})


def find_shuffles(program: ExportedProgram, sizes: Callable[[Sequence[Any]], tuple[int, ...]]) -> frozenset[Node]:
    """The operations that split channels into ``(groups, each)`` for a shuffle.

    Which part of a split is a channel from then on cannot be seen from the sizes: rows for heads of attention, for a
    shuffle the positions in each group, because the code asks for a number of groups that is fixed. ``sizes`` are a
    shape's plain numbers.
    """
    return frozenset(node for node in program.graph.nodes if _is_shuffle(node, sizes))


def _is_shuffle(node: Node, sizes: Callable[[Sequence[Any]], tuple[int, ...]]) -> bool:
    if node.op != "call_function" or operation(node) not in _FOLDS or not isinstance(node.args[0], Node):
        return False
    before, after = sizes(node.args[0].meta["val"].shape), sizes(node.meta["val"].shape)
    dim = next((at for at, (one, other) in enumerate(zip(before, after, strict=False)) if one != other), len(before))
    if after != (*before[:dim], *after[dim : dim + 2], *before[dim + 1 :]) or len(after) != len(before) + 1:
        return False
    swapped = _only_user(node)
    if swapped is None or not _swaps(swapped, dim, len(after)):
        return False
    folded = _only_user(swapped)
    while folded is not None and operation(folded) in _COPIES:
        folded = _only_user(folded)
    return folded is not None and operation(folded) in _FOLDS and sizes(folded.meta["val"].shape) == before


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _swaps(node: Node, dim: int, rank: int) -> bool:
    """Whether it swaps dimensions ``dim`` and ``dim + 1``, and nothing else."""
    order = list(range(rank))
    if operation(node) in {"transpose", "swapaxes", "swapdims"}:
        one, other = (int(str(at)) % rank for at in node.args[1:3])
        order[one], order[other] = order[other], order[one]
    elif operation(node) == "permute" and isinstance(node.args[1], list | tuple):
        order = [int(str(at)) % rank for at in node.args[1]]
    return order == [*range(dim), dim + 1, dim, *range(dim + 2, rank)]
