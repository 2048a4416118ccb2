"""Operations over space that treat each channel by itself, and reductions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tauten.errors import PassError
from tauten.make.graph.rules._table import rule
from tauten.make.graph.value import Axis, Value

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace


def _over_space(trace: Trace, call: Call, data: Value, rank: int, *, keeps: bool = True) -> Value:
    """The last ``rank`` dimensions are reckoned anew, the others pass."""
    trace.freeze_all(data.axes[len(data.axes) - rank :], f"{call.where} reckons with neighbours along it")
    shape = call.shapes[0]
    space = tuple(Axis(size, reason=f"{call.where}: space") for size in shape[len(shape) - rank :])
    lead = Value(data.axes[: len(data.axes) - rank]).with_zero(keeps)
    return Value((*lead.axes, *space))


@rule(
    *(f"{kind}_pool{rank}d" for kind in ("max", "avg", "adaptive_avg") for rank in (1, 2, 3)),
    *(f"_adaptive_avg_pool{rank}d" for rank in (2, 3)),
    *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "bilinear2d", "linear1d", "trilinear3d")),
    "upsample_bicubic2d",
)
def pool(trace: Trace, call: Call) -> Value:
    """Pooling and resizing: zeros stay zeros."""
    data: Value = next(iter(call.arguments.values()))
    rank = re.search(r"(\d)d", call.op)
    return _over_space(trace, call, data, int(rank[1]) if rank else len(data.axes))


@rule(
    *(f"adaptive_max_pool{rank}d" for rank in (1, 2, 3)),
    *(f"max_pool{rank}d_with_indices" for rank in (2, 3)),
    "max_pool1d_with_indices",
)
def pool_with_indices(trace: Trace, call: Call) -> tuple[Value, ...]:
    """The maxima, and where each was found."""
    pooled = pool(trace, call)
    return pooled, pooled.with_zero(False)


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def pad(trace: Trace, call: Call) -> Value:
    """Only dimensions that really grow or shrink are reckoned anew."""
    data: Value = call["self"]
    amounts = call["pad"] if "pad" in call.arguments else call["padding"]
    filled = call.arguments.get("value") or 0
    shape = call.shapes[0]
    axes = [axis.with_zero(axis.zero and filled == 0) for axis in data.axes]
    for back in range(1, len(amounts) // 2 + 1):
        if amounts[2 * back - 2] != 0 or amounts[2 * back - 1] != 0:
            trace.freeze(axes[-back], f"{call.where} pads it")
            axes[-back] = Axis(shape[-back], reason=f"{call.where} pads it")
    return Value(tuple(axes))


@rule("mean", "sum", "amax", "amin", "max", "min", "var", "std", "argmax", "argmin", "logsumexp", "prod")
def reduce(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """Dimensions that are reduced away.

    Over channels only a sum may go on, and only where removed channels add zero to it, or what a norm averages.
    """
    data: Value = call["self"]
    dims = call.arguments.get("dim")
    if isinstance(call.arguments.get("other"), Value):
        raise PassError("this form has no pruning rule")
    listed = [dims] if isinstance(dims, int) else list(dims or range(len(data.axes)))
    reduced = {dim % len(data.axes) for dim in listed} if data.axes else set()
    for index in reduced:
        if call.in_norm:
            trace.layer(call, data.axes[index])
        elif call.op != "sum" or not data.axes[index].zero:
            trace.freeze(data.axes[index], f"{call.where} reduces over channels")
    keeps = call.op in {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod"}
    axes = []
    for index, axis in enumerate(data.axes):
        if index not in reduced:
            axes.append(axis.with_zero(axis.zero and keeps))
        elif call.arguments.get("keepdim"):
            axes.append(Axis(1, reason=f"{call.where} reduced it"))
    made = Value(tuple(axes))
    return made if len(call.shapes) == 1 else (made, made.with_zero(False))


@rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def softmax(trace: Trace, call: Call) -> Value:
    """Shares along one dimension: none of it can be removed, each of the others is by itself."""
    data: Value = call["self"]
    dim = call["dim"] % len(data.axes)
    axes = [axis.with_zero(False) for axis in data.axes]
    axes[dim] = trace.block(axes[dim], f"{call.where} takes shares over it")
    return Value(tuple(axes))
