"""Rows that nothing reads are not computed.

A classifier over tokens reads the first one of the last block: of that block's queries, sums and products only that
row is needed, though keys and values are needed of every token. The choice of rows is moved up the graph, from where
it is made to where every row is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto

from tauten.make.lower._shapes import BROADCAST, NORMS, ONE, SAME, Shape, attribute, product
from tauten.make.lower._view import View, modern

_WORTH: Final = frozenset({"MatMul", "Gemm", "Softmax", "LayerNormalization"})
"""What a choice of rows is moved for; to move it past reshapes and sums alone would gain nothing."""

_END: Final = int(np.iinfo(np.int64).max)
_LONG: Final = int(np.iinfo(np.int32).max)  # a stop from here on means the end


@dataclass(frozen=True)
class Rows:
    """A choice of rows along ``axis``, from ``start`` to before ``stop`` as a slice says it; ``count`` where known."""

    axis: int
    start: int
    stop: int
    count: int | None

    @property
    def at_an_end(self) -> bool:
        """Whether it is the first row or the last: a choice that leaves an input of one row as it is."""
        return self.count == 1 and self.start in (0, -1)

    def along(self, axis: int) -> Rows:
        """The same rows along another axis."""
        return replace(self, axis=axis)


Asked = Rows | None
"""What a node needs of an input; ``None`` for everything."""

Wanted = dict[str, list[tuple[NodeProto, int, Asked]]]
"""By value: its readers, the number of the input that reads it, and what that needs."""


def needed_rows(model: ModelProto) -> int:
    """Compute in a graph, in place, only the rows that are read; returns how many nodes compute fewer."""
    if not modern(model):
        return 0
    view = View(model)
    choosers = {id(node): rows for node in view.nodes if (rows := _chosen(view, node)) is not None}
    wanted: Wanted = {}
    fewer: dict[int, Rows] = {}
    for node in reversed(view.nodes):
        inputs: list[Asked] = [None] * len(node.input)
        if id(node) in choosers:
            inputs[0] = choosers[id(node)]
        elif (rows := _of_all(view, node, wanted)) is not None and (moved := _past(view, node, rows)) is not None:
            fewer[id(node)], inputs = rows, moved
        for index, name in enumerate(node.input):
            wanted.setdefault(name, []).append((node, index, inputs[index]))
    if not any(id(node) in fewer and node.op_type in _WORTH for node in view.nodes):
        return 0
    _apply(view, wanted, fewer, choosers)
    view.settle()
    return len(fewer)


def _chosen(view: View, node: NodeProto) -> Rows | None:
    """The rows that a ``Gather`` or ``Slice`` takes of its input along one axis, if the graph says which."""
    if node.domain or node.op_type not in ("Gather", "Slice") or node.input[0] not in view.makers:
        return None
    shape = view.shape(node.input[0])
    if not shape:
        return None
    if node.op_type == "Gather":
        axis, indices = attribute(node, "axis", 0) % len(shape), view.constant(node.input[1])
        if indices is None or indices.ndim > 1 or indices.size != 1:
            return None
        start, stop = int(indices.item()), int(indices.item()) + 1 or _END
    else:
        given = [view.constant(name) for name in node.input[1:]]
        if len(given) < 3 or any(array is None or array.size != 1 for array in given):
            return None
        start, stop, axis, *step = (int(array.item()) for array in given if array is not None)
        axis %= len(shape)
        if step not in ([], [1]):
            return None
    single = stop - start == 1 or (start == -1 and stop >= _LONG)
    return _settled(Rows(axis, start, stop, 1 if single else None), shape)


def _settled(rows: Rows, shape: Shape) -> Rows | None:
    """Counted from the front, and with their number, where the size of the axis is known; ``None`` for all of it."""
    size = shape[rows.axis]
    if size[1]:
        return None if rows.start == 0 and rows.stop >= _LONG else rows
    start, stop, _ = slice(rows.start, rows.stop).indices(size[0])
    return Rows(rows.axis, start, stop, stop - start) if 0 < stop - start < size[0] else None


def _of_all(view: View, node: NodeProto, wanted: Wanted) -> Rows | None:
    """The rows that the readers of what a node makes ask for together; ``None`` where that is everything."""
    if node.domain or len([name for name in node.output if name]) != 1 or node.output[0] in view.outputs:
        return None
    readers = wanted.get(node.output[0], ())
    asked = [rows for _, _, rows in readers if rows is not None]
    from_within = {id(reader) for reader in view.readers(node.output[0])} - {id(reader) for reader, _, _ in readers}
    if not asked or len(asked) < len(readers) or from_within:
        return None
    first, shape = asked[0], view.shape(node.output[0])
    if all(rows == first for rows in asked):
        return first
    if shape is None or any(rows.axis != first.axis or rows.start < 0 or rows.count is None for rows in asked):
        return None
    start, stop = min(rows.start for rows in asked), max(rows.stop for rows in asked)
    return _settled(Rows(first.axis, start, stop, stop - start), shape)


def _apply(view: View, wanted: Wanted, fewer: Mapping[int, Rows], choosers: Mapping[int, Rows]) -> None:
    """Choose rows of what is needed whole elsewhere, and let what was chosen from come as it is."""
    nodes = list(view.nodes)
    short = {node.output[0]: fewer[id(node)] for node in nodes if id(node) in fewer}
    for name, readers in wanted.items():
        cut: dict[Rows, str] = {}
        for node, index, rows in readers:
            if rows is None or id(node) not in fewer or rows == short.get(name):
                continue
            if rows not in cut:
                cut[rows] = _cut(view, name, _within(rows, short.get(name)))
            view.set_input(node, index, cut[rows])
    for node in nodes:
        if id(node) in choosers and (there := short.get(node.input[0])) is not None:
            _choose(view, node, choosers[id(node)], there)
    for node in nodes:
        if id(node) in fewer:
            if node.op_type == "Reshape":
                _shorten(view, node, fewer[id(node)])
            view.rename_output(node, f"{node.output[0]}_rows")


def _cut(view: View, name: str, rows: Rows) -> str:
    bounds = (view.hold(f"{name}_{what}", np.array([at])) for what, at in (("start", rows.start), ("stop", rows.stop)))
    return view.add("Slice", [name, *bounds, view.hold(f"{name}_axis", np.array([rows.axis]))], f"{name}_cut", None)


def _within(rows: Rows, there: Rows | None) -> Rows:
    """The same rows, counted from the first of those that are there."""
    return rows if there is None else replace(rows, start=rows.start - there.start, stop=rows.stop - there.start)


def _choose(view: View, node: NodeProto, rows: Rows, there: Rows) -> None:
    """A choice from rows of which some were chosen before: from all of them, that a single row loses its axis."""
    loses = node.op_type == "Gather" and not view.shape(node.input[1])
    name = node.input[0] if rows == there else _cut(view, node.input[0], _within(rows, there))
    del node.attribute[:]
    del node.input[1:]
    node.op_type = "Squeeze" if loses else "Identity"
    view.set_input(node, 0, name)
    if loses:
        node.input.append(view.hold(f"{node.output[0]}_axis", np.array([rows.axis])))


def _shorten(view: View, node: NodeProto, rows: Rows) -> None:
    target = view.constant(node.input[1])
    if target is not None and (target[rows.axis] or attribute(node, "allowzero", 0)):
        shorter = target.copy()
        shorter[rows.axis] = np.int64(rows.count or 0)
        view.set_input(node, 1, view.hold(f"{node.output[0]}_shape", shorter))


def _past(view: View, node: NodeProto, rows: Rows) -> list[Asked] | None:
    """What a node needs of each input to make ``rows`` of its output; ``None`` where it needs all of them."""
    out = view.shape(node.output[0])
    shapes = [view.shape(name) for name in node.input]
    if out is None or rows.axis >= len(out):
        return None
    rest: list[Asked] = [None] * (len(node.input) - 1)
    if node.op_type in SAME:
        return [rows, *rest]
    if node.op_type in BROADCAST:
        return _stretched(shapes, out, rows)
    if node.op_type in NORMS:
        axis = attribute(node, "axis", -1) % len(out)
        free = rows.axis != axis if "Softmax" in node.op_type else rows.axis < axis
        return [rows, *rest] if free else None
    rule = _RULES.get(node.op_type)
    axis = None if rule is None or shapes[0] is None else rule(view, node, rows, out)
    if axis is None or shapes[0] is None:
        return None
    if node.op_type == "MatMul" and rows.axis < len(out) - 2:
        return _stretched(shapes, out, rows)
    if node.op_type == "Concat":
        return [rows, *(rows for _ in rest)]
    return [rows.along(axis), *rest]


def _stretched(shapes: list[Shape | None], out: Shape, rows: Rows) -> list[Asked] | None:
    """For inputs that are stretched to one shape: one without the axis, or of size 1 along it, is taken whole."""
    asked: list[Asked] = []
    for shape in shapes:
        if shape is None:
            return None
        axis = rows.axis - (len(out) - len(shape))
        if axis < 0 or shape[axis] == ONE:
            asked.append(None)
        elif shape[axis] == out[rows.axis] or rows.at_an_end:
            asked.append(rows.along(axis))
        else:
            return None
    return asked if any(asked) else None


Rule = Callable[[View, NodeProto, Rows, Shape], int | None]
"""From rows of a node's output to the axis of its first input that they come from; ``None`` where they are mixed."""


def _matmul(view: View, node: NodeProto, rows: Rows, out: Shape) -> int | None:
    left, right = view.shape(node.input[0]), view.shape(node.input[1])
    if left is None or right is None or min(len(left), len(right)) < 2 or rows.axis == len(out) - 1:
        return None
    return len(left) - 2


def _gemm(view: View, node: NodeProto, rows: Rows, out: Shape) -> int | None:
    bias = view.shape(node.input[2]) if len(node.input) > 2 else ()
    if rows.axis or bias is None or (len(bias) > 1 and bias[0] != ONE):
        return None
    return 1 if attribute(node, "transA", 0) else 0


def _transpose(view: View, node: NodeProto, rows: Rows, out: Shape) -> int | None:
    perm = attribute(node, "perm")
    return None if perm is None else int(perm[rows.axis])


def _reshape(view: View, node: NodeProto, rows: Rows, out: Shape) -> int | None:
    given, target = view.shape(node.input[0]) or (), view.constant(node.input[1])
    before = product(out[: rows.axis])
    same = [axis for axis, size in enumerate(given) if size == out[rows.axis] and product(given[:axis]) == before]
    if target is None or not same:
        return None
    axis, copies = same[0], not attribute(node, "allowzero", 0)
    if copies and target[rows.axis] == 0:
        return axis if axis == rows.axis else None
    moved = copies and axis < len(target) and target[axis] == 0
    return None if rows.count is None or moved else axis


def _squeeze(view: View, node: NodeProto, rows: Rows, out: Shape) -> int | None:
    given = view.shape(node.input[0]) or ()
    axes = view.constant(node.input[1]) if len(node.input) > 1 else None
    return None if axes is None else _kept(len(given), axes, rows.axis)


def _unsqueeze(view: View, node: NodeProto, rows: Rows, out: Shape) -> int | None:
    axes = view.constant(node.input[1])
    added = None if axes is None else {int(axis) % len(out) for axis in axes.reshape(-1)}
    return None if added is None or rows.axis in added else rows.axis - sum(axis < rows.axis for axis in added)


def _reduce(view: View, node: NodeProto, rows: Rows, out: Shape) -> int | None:
    given = view.shape(node.input[0]) or ()
    axes = view.constant(node.input[1]) if len(node.input) > 1 else None
    if axes is None or not axes.size:
        return None
    if attribute(node, "keepdims", 1):
        return None if rows.axis in {int(axis) % len(given) for axis in axes} else rows.axis
    return _kept(len(given), axes, rows.axis)


def _kept(rank: int, axes: np.ndarray[tuple[int, ...], np.dtype[np.generic]], place: int) -> int:
    """Which axis of ``rank`` is the one at ``place`` once ``axes`` are gone."""
    gone = {int(axis) % rank for axis in axes.reshape(-1)}
    return [axis for axis in range(rank) if axis not in gone][place]


def _concat(view: View, node: NodeProto, rows: Rows, out: Shape) -> int | None:
    return None if attribute(node, "axis") % len(out) == rows.axis else rows.axis


_RULES: Final[Mapping[str, Rule]] = {
    "Concat": _concat,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
