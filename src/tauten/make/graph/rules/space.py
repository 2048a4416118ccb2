"""Operations over space that treat each channel by itself, and reductions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

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
    *(f"_upsample_nearest_exact{rank}d" for rank in (1, 2, 3)),
    "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
)  # fmt: skip
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


@rule(
    "pad", "constant_pad_nd", "_pad_circular",
    *(f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)),
)  # fmt: skip
def pad(trace: Trace, call: Call) -> Value:
    """Dimensions that grow or shrink are reckoned anew; channels go on between new ones of one number, which stay."""
    data: Value = call["self"]
    amounts = call["pad"] if "pad" in call.arguments else call["padding"]
    constant = call.op == "constant_pad_nd" or call.arguments.get("mode") == "constant"
    filled = (call.arguments.get("value") or 0) if constant else 0
    shape = call.shapes[0]
    why = f"{call.where} pads it"
    axes = [axis.with_zero(axis.zero and filled == 0) for axis in data.axes]
    for back in range(1, len(amounts) // 2 + 1):
        before, after = amounts[2 * back - 2 : 2 * back]
        axis = axes[-back]
        if before == after == 0:
            continue
        if axis.ids is not None and constant and isinstance(before, int) and min(before, after) >= 0:
            new = [trace.tracked(Axis(amount, reason=why)) for amount in (before, after)]
            axes[-back] = Axis(shape[-back], np.concatenate([new[0], axis.ids, new[1]]), zero=axis.zero)
            trace.shapes(axis, call.where)
        else:
            trace.freeze(axis, why)
            axes[-back] = Axis(shape[-back], reason=why)
    return Value(tuple(axes))


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "argmax", "argmin", "logsumexp",
    "prod", "linalg_vector_norm", "norm",
)  # fmt: skip
def reduce(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """Dimensions that are reduced away.

    Over channels only a sum may go on (or a vector's length, which is one), and only where removed channels add zero
    to it, or what a norm averages.
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
        elif not (_adds_up(call) and data.axes[index].zero):
            trace.freeze(data.axes[index], f"{call.where} reduces over channels")
    keeps = call.op not in {"argmax", "argmin", "logsumexp"}
    axes = []
    for index, axis in enumerate(data.axes):
        if index not in reduced:
            axes.append(axis.with_zero(axis.zero and keeps))
        elif call.arguments.get("keepdim"):
            axes.append(Axis(1, reason=f"{call.where} reduced it"))
    made = Value(tuple(axes))
    return made if len(call.shapes) == 1 else (made, made.with_zero(False))


def _adds_up(call: Call) -> bool:
    """Whether zeros change nothing: sums, and lengths of vectors of a positive order."""
    order = call.arguments.get("ord", call.arguments.get("p"))
    return call.op == "sum" or (call.op in {"linalg_vector_norm", "norm"} and (order is None or order > 0))


@rule("cosine_similarity")
def cosine_similarity(trace: Trace, call: Call) -> Value:
    """Three sums along one dimension of two tensors of one shape, to which zeros add nothing."""
    one, other = call["x1"], call["x2"]
    if one.shape != other.shape:
        raise PassError("with operands of different shapes it has no pruning rule")
    dim = call["dim"] % len(one.axes)
    axes = [trace.unify(left, right) for left, right in zip(one.axes, other.axes, strict=True)]
    if not axes[dim].zero:
        trace.freeze(axes[dim], f"{call.where} reduces over channels")
    return Value((*axes[:dim], *axes[dim + 1 :]))


@rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def softmax(trace: Trace, call: Call) -> Value:
    """Shares along one dimension: none of it can be removed, each of the others is by itself."""
    data: Value = call["self"]
    dim = call["dim"] % len(data.axes)
    axes = [axis.with_zero(False) for axis in data.axes]
    axes[dim] = trace.block(axes[dim], f"{call.where} takes shares over it")
    return Value(tuple(axes))
