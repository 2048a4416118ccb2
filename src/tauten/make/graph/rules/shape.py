"""Operations that only move elements: index maps from the dimensions before to those after."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tauten.make.graph.ids import concatenate
from tauten.make.graph.rules._table import rule
from tauten.make.graph.value import Axis, Value

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace

# Elements of one folded dimension. What is beyond is a size that varies between calls, which stands as a large prime.
_LARGEST_MAP = 2**23


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as")
def reshape(trace: Trace, call: Call) -> Value:
    """Dimensions merged and split, in blocks of equal product.

    Merged with others, a channel's id repeats for each of its elements. A dimension of channels that is split goes
    on in the part whose elements it tells apart; where no part does so alone, each row of the first part becomes one
    channel (heads of attention, say).
    """
    data: Value = next(iter(call.arguments.values()))
    shape = call.shapes[0]
    axes: list[Axis] = []
    for before, after in _blocks(data.shape, shape):
        axes += _block(trace, call, [data.axes[index] for index in before], [shape[index] for index in after])
    return Value(tuple(axes))


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[range, range]]:
    """The smallest runs of dimensions, one after the other, that hold equally many elements."""
    if 0 in before:
        return [(range(len(before)), range(len(after)))]
    found = []
    left = right = 0
    while left < len(before) or right < len(after):
        left_end, right_end = min(left + 1, len(before)), min(right + 1, len(after))
        while (ours := math.prod(before[left:left_end])) != (theirs := math.prod(after[right:right_end])):
            if ours < theirs:
                left_end += 1
            else:
                right_end += 1
        found.append((range(left, left_end), range(right, right_end)))
        left, right = left_end, right_end
    return found


def _block(trace: Trace, call: Call, before: list[Axis], after: list[int]) -> list[Axis]:
    made = [Axis(size, reason=f"{call.where} splits it") for size in after]
    real = [axis for axis in before if axis.size != 1]
    if len(before) == len(after) == 1:
        _name_sizes(trace, call, before[0])
        return before
    for axis in before:
        if axis.size == 1:
            trace.freeze(axis, f"{call.where} folds it away")
    tracked = [axis for axis in real if axis.tracked]
    places = [index for index, size in enumerate(after) if size != 1]
    if len(tracked) != 1:
        reason = f"{call.where} folds two dimensions of channels into one"
        trace.freeze_all(tracked, reason)
        why = reason if tracked else next((axis.reason for axis in real), call.where)
        return [Axis(size, reason=why) for size in after]
    kept = tracked[0]
    _name_sizes(trace, call, kept)
    sizes = [axis.size for axis in real]
    if math.prod(sizes) > _LARGEST_MAP:
        reason = f"{call.where} folds channels with a dimension that varies"
        trace.freeze(kept, reason)
        return [Axis(size, reason=reason) for size in after]
    along = [size if axis is kept else 1 for axis, size in zip(real, sizes, strict=True)]
    grid = np.broadcast_to(trace.tracked(kept).reshape(along), sizes)
    target = grid.reshape([after[index] for index in places])
    if call.shuffles and len(places) == 2:
        # The same position of every group goes at once: the number of groups is what the code has fixed.
        trace.ids.union(target, target[:1])
        made[places[1]] = Axis(after[places[1]], np.ascontiguousarray(target[0]), zero=kept.zero)
        return made
    for position, index in enumerate(places):
        rows = np.moveaxis(target, position, 0).reshape(after[index], -1)
        roots = trace.ids.find(rows)
        if (roots == roots[:, :1]).all():
            made[index] = Axis(after[index], np.ascontiguousarray(rows[:, 0]), zero=kept.zero)
            return made
    rows = target.reshape(after[places[0]], -1)
    trace.ids.union(rows, rows[:, :1])
    made[places[0]] = Axis(after[places[0]], np.ascontiguousarray(rows[:, 0]), zero=kept.zero)
    return made


def _name_sizes(trace: Trace, call: Call, axis: Axis) -> None:
    if call.op not in {"flatten", "squeeze", "unsqueeze"}:
        trace.shapes(axis, call.where)


@rule("permute", "transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "movedim", "moveaxis")
def permute(trace: Trace, call: Call) -> Value:
    data: Value = call["self"]
    order = list(range(len(data.axes)))
    if call.op in {"movedim", "moveaxis"}:
        order = _moved(order, call["source"], call["destination"])
    elif call.op in {"swapaxes", "swapdims"}:
        one, other = list(call.arguments.values())[1:3]
        order[one], order[other] = order[other], order[one]
    elif call.op == "permute":
        order = [dim % len(order) for dim in call["dims"]]
    elif call.op == "transpose":
        one, other = call["dim0"] % len(order), call["dim1"] % len(order)
        order[one], order[other] = order[other], order[one]
    elif call.op == "mT":
        order[-2], order[-1] = order[-1], order[-2]
    else:
        order.reverse()
    return Value(tuple(data.axes[dim] for dim in order))


def _moved(order: list[int], source: Any, destination: Any) -> list[int]:
    """As ``movedim`` does: each source to its destination, the others keep their order."""
    sources, targets = (
        [dim % len(order) for dim in ([dims] if isinstance(dims, int) else dims)] for dims in (source, destination)
    )
    rest = iter([dim for dim in order if dim not in sources])
    at = dict(zip(targets, sources, strict=True))
    return [at[place] if place in at else next(rest) for place in order]


@rule("cat", "concat")
def cat(trace: Trace, call: Call) -> Value:
    """Channels one after the other; the other dimensions go together."""
    values = [value for value in call["tensors"] if value.axes and value.shape != (0,)]
    dim = call["dim"] % len(values[0].axes)
    axes = list(values[0].axes)
    for index in range(len(axes)):
        if index == dim:
            continue
        for value in values[1:]:
            axes[index] = trace.unify(axes[index], value.axes[index])
    joined = [value.axes[dim] for value in values]
    size = call.shapes[0][dim]
    if any(axis.tracked for axis in joined):
        ids = concatenate(trace.tracked(axis) for axis in joined)
        axes[dim] = Axis(size, ids, zero=all(axis.zero or not axis.tracked for axis in joined))
    else:
        axes[dim] = Axis(size, reason=joined[0].reason)
    return Value(tuple(axes))


@rule("stack")
def stack(trace: Trace, call: Call) -> Value:
    """Tensors side by side along a new dimension."""
    values = call["tensors"]
    axes = list(values[0].axes)
    for value in values[1:]:
        axes = [trace.unify(axis, other) for axis, other in zip(axes, value.axes, strict=True)]
    axes.insert(call["dim"] % (len(axes) + 1), Axis(len(values), reason=f"{call.where} counts tensors along it"))
    return Value(tuple(axes))


@rule("unbind")
def unbind(trace: Trace, call: Call) -> tuple[Value, ...]:
    """One tensor for each element of a dimension."""
    data: Value = call["self"]
    dim = call["dim"] % len(data.axes)
    trace.freeze(data.axes[dim], f"{call.where} takes channels by position")
    return tuple(Value((*data.axes[:dim], *data.axes[dim + 1 :])) for _ in call.shapes)


@rule("flip", "roll", "cumsum", "sort", "topk")
def along(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """Elements moved or mixed along some dimensions; the others pass."""
    data: Value = call["self"]
    dims = call["dims"] if "dims" in call.arguments else (call["dim"],)
    moved = {dim % len(data.axes) for dim in dims} if dims else set(range(len(data.axes)))
    reason = f"{call.where} moves elements along it"
    shape = call.shapes[0]
    axes = []
    for index, axis in enumerate(data.axes):
        axes.append(axis if index not in moved else Axis(shape[index], reason=reason))
        if index in moved:
            trace.freeze(axis, reason)
    made = Value(tuple(axes))
    return made if len(call.shapes) == 1 else (made, made.with_zero(False))


@rule("chunk", "split", "split_with_sizes", "tensor_split")
def split(trace: Trace, call: Call) -> tuple[Value, ...]:
    """Equal parts lose the same positions, so that they stay equal; unequal parts cannot lose any."""
    data: Value = call["self"]
    dim = (call["dim"] or 0) % len(data.axes)
    axis = data.axes[dim]
    sizes = [shape[dim] for shape in call.shapes]
    if axis.ids is None:
        parts = [Axis(size, reason=axis.reason) for size in sizes]
    elif len(set(sizes)) > 1:
        trace.freeze(axis, f"{call.where} cuts channels into unequal parts")
        parts = [Axis(size, reason=f"{call.where} cuts channels into unequal parts") for size in sizes]
    else:
        trace.shapes(axis, call.where)
        rows = axis.ids.reshape(len(sizes), -1)
        trace.ids.union(rows, rows[:1])
        parts = [Axis(rows.shape[1], row, zero=axis.zero) for row in rows]
    return tuple(Value((*data.axes[:dim], part, *data.axes[dim + 1 :])) for part in parts)


@rule("slice", "select", "narrow", "index_select")
def slice_(trace: Trace, call: Call) -> Value:
    """A part by position: along channels only the whole may be taken, for a position means another channel later."""
    data: Value = call["self"]
    dim = (call["dim"] or 0) % len(data.axes)
    if call.op == "slice" and call.shapes[0] == data.shape and call["step"] == 1:
        return data
    reason = f"{call.where} takes channels by position"
    trace.freeze(data.axes[dim], reason)
    rest = [*data.axes[:dim], *data.axes[dim + 1 :]]
    if call.op != "select":
        rest.insert(dim, Axis(call.shapes[0][dim], reason=reason))
    return Value(tuple(rest))


@rule("expand", "expand_as")
def expand(trace: Trace, call: Call) -> Value:
    """Dimensions that grow from one are copies; the others pass."""
    data: Value = call["self"]
    shape = call.shapes[0]
    why = f"{call.where} repeats it"
    new = tuple(Axis(size, reason=why, alike=True) for size in shape[: len(shape) - len(data.axes)])
    passed = []
    for axis, size in zip(data.axes, shape[len(new) :], strict=True):
        if axis.size == size:
            passed.append(axis)
            trace.shapes(axis, call.where)
        else:
            passed.append(Axis(size, reason=why, alike=True))
            trace.freeze(axis, why)
    return Value((*new, *passed))
