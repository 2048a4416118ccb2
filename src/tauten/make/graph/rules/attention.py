"""Products of two activations, and attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tauten.errors import PassError
from tauten.make.graph.rules._table import rule
from tauten.make.graph.value import Axis, Value

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace


def _batch(trace: Trace, call: Call, values: list[tuple[Axis, ...]]) -> list[Axis]:
    """Leading dimensions of the operands go together, aligned from the last one; one element may serve many.

    A removed index is zero in the product where it is in any operand that has it.
    """
    made: list[Axis] = []
    for back in range(max(len(axes) for axes in values), 0, -1):
        meeting = [axes[-back] for axes in values if len(axes) >= back]
        full = [axis for axis in meeting if axis.size != 1] or meeting
        for axis in meeting:
            if axis.size == 1 and full is not meeting:
                trace.freeze(axis, f"{call.where} spreads one channel over many")
        zero = any(axis.zero for axis in full)
        axis = full[0]
        for other in full[1:]:
            axis = trace.unify(axis, other)
        made.append(axis.with_zero(zero and axis.tracked))
    return made


@rule("matmul", "bmm", "mm")
def matmul(trace: Trace, call: Call) -> Value:
    """``(…, rows, inner) x (…, inner, columns) -> (…, rows, columns)``."""
    left, right = call.values()
    if len(left.axes) < 2 or len(right.axes) < 2:
        raise PassError("with a vector it has no pruning rule")
    trace.contract(left.axes[-1], right.axes[-2], f"{call.where} sums over channels that are not zero when removed")
    lead = _batch(trace, call, [left.axes[:-2], right.axes[:-2]]) if max(len(left.axes), len(right.axes)) > 2 else []
    return Value((*lead, left.axes[-2], trace.produce(right.axes[-1])))


@rule("addmm")
def addmm(trace: Trace, call: Call) -> Value:
    """``bias + (rows, inner) x (inner, columns)``."""
    bias, left, right = call["self"], call["mat1"], call["mat2"]
    if len(bias.axes) != 1 or call["beta"] != 1 or bias.axes[0].size != right.axes[1].size:
        raise PassError("in this form it has no pruning rule")
    trace.contract(left.axes[1], right.axes[0], f"{call.where} sums over channels that are not zero when removed")
    return Value((left.axes[0].with_zero(False), trace.unify(trace.produce(right.axes[1]), bias.axes[0])))


@rule("scaled_dot_product_attention")
def attention(trace: Trace, call: Call) -> Value:
    """Queries ``(…, heads, queries, width)``, keys and values ``(…, heads, keys, width)``.

    Heads go whole; where several heads of queries share one of keys and values (``enable_gqa``), with that one. The
    width of queries and keys stays where the scale follows from it.
    """
    query, key, value, mask = call["query"], call["key"], call["value"], call["attn_mask"]
    if not len(query.axes) == len(key.axes) == len(value.axes):
        raise PassError("with operands of different ranks it has no pruning rule")
    if call["scale"] is None:
        trace.freeze_all((query.axes[-1], key.axes[-1]), f"{call.where} scales by the width of a head")
    elif not (query.axes[-1].zero or key.axes[-1].zero):
        trace.freeze_all((query.axes[-1], key.axes[-1]), f"{call.where} sums over channels that are not zero")
    trace.unify(query.axes[-1], key.axes[-1])
    trace.freeze_all((query.axes[-2], key.axes[-2], value.axes[-2]), f"{call.where} takes shares over positions")
    operands = [query, key, value]
    if call["enable_gqa"]:
        operands = [query, _repeated(trace, key, query), _repeated(trace, value, query)]
    lead = _batch(trace, call, [operand.axes[:-2] for operand in operands])
    if mask is not None:
        trace.freeze_all(mask.axes[-2:], f"{call.where}: mask over positions")
        for own, of_mask in zip(reversed(lead), reversed(mask.axes[:-2]), strict=False):
            if of_mask.size != 1:
                trace.unify(own, of_mask)
            else:
                trace.freeze(of_mask, f"{call.where} spreads one mask over many heads")
    # A removed head answers with zeros where its values are zeros, whatever it attends to.
    zero = [axis.zero for axis in operands[-1].axes[:-2]]
    lead = [axis.with_zero(own and axis.tracked) for axis, own in zip(lead, zero, strict=True)]
    return Value((*lead, Axis(query.axes[-2].size, reason=f"{call.where}: positions"), value.axes[-1]))


def _repeated(trace: Trace, shared: Value, query: Value) -> Value:
    """Keys or values with each of their heads as often as there are heads of queries that share it."""
    if len(shared.axes) < 3 or query.axes[-3].size % shared.axes[-3].size:
        raise PassError("with these heads it has no pruning rule")
    own, heads = shared.axes[-3], query.axes[-3].size
    ids = None if own.ids is None else np.repeat(own.ids, heads // own.size)
    return Value((*shared.axes[:-3], Axis(heads, ids, own.zero, own.reason), *shared.axes[-2:]))
