"""Norms with a scale and shift a channel, and PReLU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

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


@rule("layer_norm", "rms_norm")
def layer_norm(trace: Trace, call: Call) -> Value:
    """Normalises the last dimensions. Over one dimension of channels it goes on over the kept ones.

    Only a module that does nothing else and has a weight is followed: the reference that the result is held against
    can be told which channels are left.
    """
    data, weight, bias = call["input"], call["weight"], call.arguments.get("bias")
    rank = len(call["normalized_shape"])
    lead = tuple(axis.with_zero(False) for axis in data.axes[:-rank])
    if rank == 1 and weight is not None and call.in_norm:
        channels = trace.unify(data.axes[-1], weight.axes[0])
        if bias is not None:
            channels = trace.unify(channels, bias.axes[0])
        zero = weight.axes[0].zero and (bias is None or bias.axes[0].zero)
        return Value((*lead, trace.layer(call, channels.with_zero(zero and channels.tracked))))
    reason = f"{call.where} averages over channels"
    for value in (weight, bias):
        if value is not None:
            trace.freeze_all(value.axes, reason)
    return Value((*lead, *(trace.block(axis, reason) for axis in data.axes[-rank:])))


@rule("instance_norm")
def instance_norm(trace: Trace, call: Call) -> Value:
    """``(batch, channels, …)``: each channel by itself, over its own space or with statistics that were kept."""
    data = call["input"]
    made = batch_norm(trace, call)
    channels = made.axes[1]
    # Without a scale and shift, channels of zeros are no further from their mean than nothing.
    zero = channels.zero if call["weight"] is not None else data.axes[1].zero and channels.tracked
    trace.freeze_all(data.axes[2:], f"{call.where} averages over it")
    space = tuple(Axis(axis.size, reason=f"{call.where}: space") for axis in data.axes[2:])
    return Value((made.axes[0], _of_layer(trace, call, channels.with_zero(zero)), *space))


@rule("group_norm")
def group_norm(trace: Trace, call: Call) -> Value:
    """``(batch, channels, …)``, normalised over each of ``num_groups`` runs of channels and over space.

    Whole groups go, which changes nothing for the others; or, where the groups are larger than they are many, the same
    positions of each, and the norm goes on over the kept ones. For either the layer has to be a plain
    ``nn.GroupNorm``, whose number of groups can be changed and whose reference can be told what is left.
    """
    data, groups, affine = call["input"], call["num_groups"], [call[name] for name in ("weight", "bias")]
    channels = data.axes[1]
    trace.freeze_all(data.axes[2:], f"{call.where} averages over it")
    space = tuple(Axis(axis.size, reason=f"{call.where}: space") for axis in data.axes[2:])
    lead = data.axes[0].with_zero(False)
    if type(call.owner) is not nn.GroupNorm:
        reason = f"{call.where} averages over channels"
        for value in affine:
            if value is not None:
                trace.freeze_all(value.axes, reason)
        return Value((lead, trace.block(channels, reason), *space))
    for value in affine:
        if value is not None:
            channels = trace.unify(channels, value.axes[0])
    if channels.ids is not None:
        rows = channels.ids.reshape(groups, -1)
        trace.ids.union(rows, rows[:, :1] if groups >= rows.shape[1] else rows[:1])
        zeros = [value.axes[0].zero for value in affine if value is not None]
        channels = channels.with_zero(all(zeros) if len(zeros) == 2 else data.axes[1].zero)
    return Value((lead, _of_layer(trace, call, channels), *space))


def _of_layer(trace: Trace, call: Call, channels: Axis) -> Axis:
    """The channels of a norm without tensors too; a function of a user's module keeps no size of them."""
    return trace.layer(call, channels) if isinstance(call.owner, nn.GroupNorm | _NormBase) else channels


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
