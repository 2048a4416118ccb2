"""Norms with a scale and shift a channel, and PReLU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from tauten.make.graph.rules._table import rule
from tauten.make.graph.value import Axis, Value

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace


@rule("batch_norm")
def batch_norm(trace: Trace, call: Call) -> Value:
    """``(batch, channels, …)``: each channel by itself."""
    data = call["input"]
    channels = data.axes[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call[name] is not None:
            channels = trace.unify(channels, call[name].axes[0])
    affine = [call[name].axes[0] for name in ("weight", "bias") if call[name] is not None]
    # With a scale and shift, what comes in does not matter: zero times anything, plus zero.
    zero = all(axis.zero for axis in affine) if len(affine) == 2 else data.axes[1].zero
    others = [axis.with_zero(False) for axis in data.axes]
    return Value((others[0], channels.with_zero(zero and channels.tracked), *others[2:]))


@rule("layer_norm")
def layer_norm(trace: Trace, call: Call) -> Value:
    """Normalises the last dimensions. Over one dimension of channels it goes on over the kept ones.

    Only a plain ``nn.LayerNorm`` with a weight is followed: its size can be changed, and the reference that the result
    is held against can be told which channels are left.
    """
    data, weight, bias = call["input"], call["weight"], call["bias"]
    rank = len(call["normalized_shape"])
    lead = tuple(axis.with_zero(False) for axis in data.axes[:-rank])
    if rank == 1 and weight is not None and type(call.owner) is nn.LayerNorm:
        channels = trace.unify(data.axes[-1], weight.axes[0])
        if bias is not None:
            channels = trace.unify(channels, bias.axes[0])
        zero = weight.axes[0].zero and (bias is None or bias.axes[0].zero)
        return Value((*lead, channels.with_zero(zero and channels.tracked)))
    reason = f"{call.where} averages over channels"
    for value in (weight, bias):
        if value is not None:
            trace.freeze_all(value.axes, reason)
    return Value((*lead, *(trace.block(axis, reason) for axis in data.axes[-rank:])))


@rule("prelu")
def prelu(trace: Trace, call: Call) -> Value:
    """A slope a channel, or one for all."""
    data, weight = call["self"], call["weight"]
    if weight.axes[0].size == 1 or len(data.axes) < 2:
        trace.freeze_all(weight.axes, f"{call.where} has one slope for all channels")
        return Value(data.axes)
    channels = trace.unify(data.axes[1], weight.axes[0])
    return Value((data.axes[0], _keep(channels, data.axes[1]), *data.axes[2:]))


def _keep(channels: Axis, data: Axis) -> Axis:
    return channels.with_zero(data.zero and channels.tracked)
