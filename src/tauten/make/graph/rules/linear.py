"""Layers that sum over channels: linear, convolution, embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tauten.make.graph.rules._table import rule
from tauten.make.graph.value import Axis, Value, opaque

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace


def _with_bias(trace: Trace, out: Axis, bias: Value | None) -> Axis:
    if bias is None:
        return out
    return trace.unify(out, bias.axes[0])


@rule("linear")
def linear(trace: Trace, call: Call) -> Value:
    """``(…, in) x (out, in) -> (…, out)``."""
    data, weight, bias = call["input"], call["weight"], call["bias"]
    trace.contract(data.axes[-1], weight.axes[-1], f"{call.where} sums over channels that are not zero when removed")
    lead = tuple(axis.with_zero(axis.zero and bias is None) for axis in data.axes[:-1])
    if len(weight.axes) == 1:
        return Value(lead)
    return Value((*lead, _with_bias(trace, trace.produce(weight.axes[0]), bias)))


@rule("conv1d", "conv2d", "conv3d")
def convolution(trace: Trace, call: Call) -> Value:
    """``(batch, in, *space) x (out, in / groups, *kernel) -> (batch, out, *space)``; the batch may be missing."""
    data, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"]
    rank = len(weight.axes) - 2
    *lead, channels = data.axes[: len(data.axes) - rank]
    trace.freeze_all(weight.axes[2:], f"{call.where}: kernel")
    trace.freeze_all(data.axes[len(data.axes) - rank :], f"{call.where} slides over it")
    trace.freeze_all(lead, f"{call.where}: batch")
    if groups == 1:
        reason = f"{call.where} sums over channels that are not zero when removed"
        trace.contract(channels, weight.axes[1], reason)
    elif groups == channels.size:
        _depthwise(trace, call, channels, weight)
    else:
        _grouped(trace, call, channels, weight)
    out = _with_bias(trace, trace.produce(weight.axes[0]), bias)
    shape = call.shapes[0]
    space = tuple(Axis(size, reason=f"{call.where}: space") for size in shape[len(shape) - rank :])
    return Value((*(Axis(axis.size, reason="batch") for axis in lead), out, *space))


def _depthwise(trace: Trace, call: Call, channels: Axis, weight: Value) -> None:
    """Each input channel gives ``out / in`` output channels of its own, and goes with them."""
    out = trace.tracked(weight.axes[0])
    trace.ids.union(out.reshape(channels.size, -1), trace.tracked(channels)[:, None])
    trace.freeze(weight.axes[1], f"{call.where}: depthwise")
    if not weight.axes[0].zero:
        trace.freeze(weight.axes[0], f"{call.where} has a computed weight")


def _grouped(trace: Trace, call: Call, channels: Axis, weight: Value) -> None:
    """The same position of every group goes at once, so that the groups stay equal in size.

    The positions of inputs and of outputs are apart: ``weight`` is ``(groups * outs, ins, *kernel)``.
    """
    groups = call["groups"]
    ins = trace.tracked(channels).reshape(groups, -1)
    trace.ids.union(ins, trace.tracked(weight.axes[1])[None, :])
    trace.consume(weight.axes[1])
    outs = trace.tracked(weight.axes[0]).reshape(groups, -1)
    trace.ids.union(outs, outs[:1])
    if not (channels.zero or weight.axes[1].zero):
        trace.freeze(channels, f"{call.where} sums over channels that are not zero when removed")


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(trace: Trace, call: Call) -> Value:
    """``(batch, in, *space) x (in, out / groups, *kernel) -> (batch, out, *space)``."""
    data, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"]
    rank = len(weight.axes) - 2
    *lead, channels = data.axes[: len(data.axes) - rank]
    trace.freeze_all(weight.axes[2:], f"{call.where}: kernel")
    trace.freeze_all(data.axes[len(data.axes) - rank :], f"{call.where} slides over it")
    trace.freeze_all(lead, f"{call.where}: batch")
    trace.contract(channels, weight.axes[0], f"{call.where} sums over channels that are not zero when removed")
    made = trace.produce(weight.axes[1]) if groups == 1 else _groups_of_transposed(trace, call, weight)
    out = _with_bias(trace, made, bias)
    shape = call.shapes[0]
    space = tuple(Axis(size, reason=f"{call.where}: space") for size in shape[len(shape) - rank :])
    return Value((*(Axis(axis.size, reason="batch") for axis in lead), out, *space))


def _groups_of_transposed(trace: Trace, call: Call, weight: Value) -> Axis:
    """The output channels: those of one input channel each go with it, else the same position of every group goes."""
    groups, (ins, outs) = call["groups"], weight.axes[:2]
    if groups == ins.size:
        trace.freeze(outs, f"{call.where}: depthwise")
        made = trace.produce(Axis(groups * outs.size, np.repeat(trace.tracked(ins), outs.size), zero=ins.zero))
        return made if ins.zero else trace.block(made, f"{call.where} has a computed weight")
    rows = trace.tracked(ins).reshape(groups, -1)
    trace.ids.union(rows, rows[:1])
    return trace.produce(Axis(groups * outs.size, np.tile(trace.tracked(outs), groups), zero=outs.zero))


@rule("embedding")
def embedding(trace: Trace, call: Call) -> Value:
    """``(rows, width)`` looked up by indices ``(…) -> (…, width)``."""
    weight, indices = call["weight"], call["indices"]
    trace.consume(weight.axes[0])
    trace.freeze(weight.axes[0], f"{call.where}: rows are looked up by number")
    trace.freeze_all(indices.axes, f"{call.where}: numbers of rows")
    lead = tuple(Axis(axis.size, reason=f"{call.where}: positions") for axis in indices.axes)
    return Value((*lead, trace.produce(weight.axes[1])))


@rule("embedding_bag")
def embedding_bag(trace: Trace, call: Call) -> tuple[Value, ...]:
    """Rows ``(rows, width)`` added up, averaged or the largest taken: ``(bags, width)``, then numbers of rows."""
    weight = call["weight"]
    trace.consume(weight.axes[0])
    trace.freeze(weight.axes[0], f"{call.where}: rows are looked up by number")
    why = f"{call.where}: bags"
    for value in call.values():
        if value is not weight:
            trace.freeze_all(value.axes, why)
    made = Value((Axis(call.shapes[0][0], reason=why), trace.produce(weight.axes[1])))
    return made, *(opaque(shape, why) for shape in call.shapes[1:])
