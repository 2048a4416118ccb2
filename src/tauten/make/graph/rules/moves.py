"""Operations that lay channels out anew: shuffles between channels and space, repeats, windows, picks by number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tauten.errors import PassError
from tauten.make.graph.rules._table import rule
from tauten.make.graph.value import Axis, Value, opaque

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace


def _as_one(trace: Trace, axis: Axis, each: int) -> Axis:
    """Runs of ``each`` channels become one channel each, and go together."""
    if axis.ids is None:
        return Axis(axis.size // each, reason=axis.reason)
    rows = axis.ids.reshape(-1, each)
    trace.ids.union(rows, rows[:, :1])
    return Axis(len(rows), np.ascontiguousarray(rows[:, 0]), zero=axis.zero)


def _as_many(axis: Axis, each: int) -> Axis:
    """Each channel becomes a run of ``each``."""
    if axis.ids is None:
        return Axis(axis.size * each, reason=axis.reason)
    return Axis(axis.size * each, np.repeat(axis.ids, each), zero=axis.zero)


def _before_space(trace: Trace, call: Call, data: Value, at: int, channels: Axis) -> Value:
    """``data`` with other channels at dimension ``at``; what comes after it is space, laid out anew."""
    trace.freeze_all(data.axes[at + 1 :], f"{call.where} moves elements along it")
    space = (Axis(size, reason=f"{call.where}: space") for size in call.shapes[0][at + 1 :])
    return Value((*data.axes[:at], channels, *space))


@rule("pixel_shuffle")
def pixel_shuffle(trace: Trace, call: Call) -> Value:
    """``(…, channels * r * r, height, width) -> (…, channels, height * r, width * r)``."""
    data: Value = call["self"]
    at = len(data.axes) - 3
    return _before_space(trace, call, data, at, _as_one(trace, data.axes[at], call["upscale_factor"] ** 2))


@rule("pixel_unshuffle")
def pixel_unshuffle(trace: Trace, call: Call) -> Value:
    """``(…, channels, height * r, width * r) -> (…, channels * r * r, height, width)``."""
    data: Value = call["self"]
    at = len(data.axes) - 3
    return _before_space(trace, call, data, at, _as_many(data.axes[at], call["downscale_factor"] ** 2))


@rule("im2col")
def windows_to_columns(trace: Trace, call: Call) -> Value:
    """``(…, channels, height, width) -> (…, channels * kernel, places)``."""
    data: Value = call["self"]
    at = len(data.axes) - 3
    return _before_space(trace, call, data, at, _as_many(data.axes[at], math.prod(call["kernel_size"])))


@rule("col2im")
def columns_to_windows(trace: Trace, call: Call) -> Value:
    """``(…, channels * kernel, places) -> (…, channels, height, width)``, overlaps added up."""
    data: Value = call["self"]
    at = len(data.axes) - 2
    return _before_space(trace, call, data, at, _as_one(trace, data.axes[at], math.prod(call["kernel_size"])))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(trace: Trace, call: Call) -> Value:
    """``(batch, groups * each, …)``: the groups interleaved. The same position of every group goes at once."""
    data: Value = call["self"]
    channels = data.axes[1]
    if channels.ids is not None:
        rows = channels.ids.reshape(call["groups"], -1)
        trace.ids.union(rows, rows[:1])
        channels = Axis(channels.size, rows.T.ravel(), zero=channels.zero)
    return Value((data.axes[0], channels, *data.axes[2:]))


@rule("repeat", "tile")
def repeat(trace: Trace, call: Call) -> Value:
    """Whole copies one after the other along some dimensions; a channel goes from each copy."""
    data: Value = call["self"]
    times = list(call["repeats" if call.op == "repeat" else "dims"])
    times = [1] * (len(data.axes) - len(times)) + times
    why = f"{call.where} repeats it"
    new = len(times) - len(data.axes)
    axes = [Axis(size, reason=why, alike=True) for size in call.shapes[0][:new]]
    for axis, count, size in zip(data.axes, times[new:], call.shapes[0][new:], strict=True):
        if axis.size == size:
            axes.append(axis)
        elif axis.size == 1:
            trace.freeze(axis, why)
            axes.append(Axis(size, reason=why, alike=True))
        elif axis.ids is not None and isinstance(count, int):
            axes.append(Axis(size, np.tile(axis.ids, count), zero=axis.zero))
        else:
            trace.freeze(axis, why)
            axes.append(Axis(size, reason=why))
    return Value(tuple(axes))


@rule("repeat_interleave")
def repeat_each(trace: Trace, call: Call) -> Value:
    """Each element of one dimension several times."""
    data: Value = call["self"]
    if call["dim"] is None or not isinstance(call["repeats"], int):
        raise PassError("in this form it has no pruning rule")
    dim = call["dim"] % len(data.axes)
    return Value((*data.axes[:dim], _as_many(data.axes[dim], call["repeats"]), *data.axes[dim + 1 :]))


@rule("unfold")
def windows(trace: Trace, call: Call) -> Value:
    """Windows along one dimension, their elements along a new last one."""
    data: Value = call["self"]
    dim = call["dimension"] % len(data.axes)
    why = f"{call.where} takes windows of it"
    trace.freeze(data.axes[dim], why)
    *lead, last = call.shapes[0]
    return Value((*data.axes[:dim], Axis(lead[dim], reason=why), *data.axes[dim + 1 :], Axis(last, reason=why)))


@rule("glu")
def gated_halves(trace: Trace, call: Call) -> Value:
    """The first half along a dimension times the sigmoid of the second: the same position of both goes at once."""
    data: Value = call["self"]
    dim = call["dim"] % len(data.axes)
    axis = data.axes[dim]
    if axis.ids is None:
        half = Axis(axis.size // 2, reason=axis.reason)
    else:
        first, second = axis.ids.reshape(2, -1)
        trace.ids.union(first, second)
        half = Axis(len(first), first, zero=axis.zero)
    return Value((*data.axes[:dim], half, *data.axes[dim + 1 :]))


@rule("gather")
def gather(trace: Trace, call: Call) -> Value:
    """Elements picked by number along one dimension; the others pass where the index is as long as the data there."""
    data, index = call["self"], call["index"]
    dim = call["dim"] % len(data.axes)
    why = f"{call.where} picks elements by number"
    axes = []
    for at, (axis, picked) in enumerate(zip(data.axes, index.axes, strict=True)):
        if at != dim and axis.size == picked.size:
            axes.append(trace.unify(axis, picked).with_zero(axis.zero and (axis.tracked or axis.alike)))
        else:
            trace.freeze_all((axis, picked), why)
            axes.append(Axis(picked.size, reason=why))
    return Value(tuple(axes))


@rule("max_unpool2d", "max_unpool3d")
def unpool(trace: Trace, call: Call) -> Value:
    """Maxima back to where each was found, zeros elsewhere."""
    data, indices = call["self"], call["indices"]
    rank = int(call.op[-2])
    lead = [
        trace.unify(axis, other).with_zero(axis.zero and axis.tracked)
        for axis, other in zip(data.axes[:-rank], indices.axes[:-rank], strict=True)
    ]
    trace.freeze_all((*data.axes[-rank:], *indices.axes[-rank:]), f"{call.where} moves elements along it")
    return Value((*lead, *opaque(call.shapes[0][-rank:], f"{call.where}: space").axes))


@rule("grid_sampler")
def grid_sampler(trace: Trace, call: Call) -> Value:
    """``(batch, channels, *space)`` read at the places that a grid names."""
    data, grid = call["input"], call["grid"]
    trace.freeze_all((*data.axes[2:], *grid.axes), f"{call.where} reads places of it")
    space = opaque(call.shapes[0][2:], f"{call.where}: space").axes
    return Value((trace.block(data.axes[0], f"{call.where}: batch"), data.axes[1], *space))
