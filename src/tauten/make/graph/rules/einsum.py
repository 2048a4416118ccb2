"""Sums over named dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tauten.errors import PassError
from tauten.make.graph.rules._table import rule
from tauten.make.graph.value import Axis, Value

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace


@rule("einsum")
def einsum(trace: Trace, call: Call) -> Value:
    """Each letter is one dimension, the same channels in every operand that has it.

    The product is zero where any operand is. A letter that the result lacks is summed over, which needs that zero.
    """
    left, arrow, right = call["equation"].replace(" ", "").partition("->")
    terms, operands = left.split(","), list(call["tensors"])
    if not arrow or "." in left or len(terms) != len(operands):
        raise PassError("in this form it has no pruning rule")
    axes: dict[str, Axis] = {}
    for place, (term, operand) in enumerate(zip(terms, operands, strict=True)):
        if len(set(term)) != len(term) or len(term) != len(operand.axes):
            raise PassError("in this form it has no pruning rule")
        for letter, axis in zip(term, operand.axes, strict=True):
            if letter not in right and place:
                trace.consume(axis)
            elif place and letter not in axes:
                trace.produce(axis)
            axes[letter] = _meet(trace, axes[letter], axis) if letter in axes else axis
    for letter, axis in axes.items():
        if letter not in right and not axis.zero:
            trace.freeze(axis, f"{call.where} sums over channels that are not zero when removed")
    return Value(tuple(axes[letter] for letter in right))


def _meet(trace: Trace, one: Axis, other: Axis) -> Axis:
    if one.size != other.size:
        raise PassError("with one channel spread over many it has no pruning rule")
    made = trace.unify(one, other)
    return made.with_zero((one.zero or other.zero) and made.tracked)


@rule("bilinear")
def bilinear(trace: Trace, call: Call) -> Value:
    """``(…, a) x (out, a, b) x (…, b) -> (…, out)``."""
    one, other, weight, bias = (call[name] for name in ("input1", "input2", "weight", "bias"))
    why = f"{call.where} sums over channels that are not zero when removed"
    trace.contract(one.axes[-1], weight.axes[1], why)
    trace.contract(other.axes[-1], weight.axes[2], why)
    lead = [
        _meet(trace, left, right).with_zero(False) for left, right in zip(one.axes[:-1], other.axes[:-1], strict=True)
    ]
    out = trace.produce(weight.axes[0])
    return Value((*lead, out if bias is None else trace.unify(out, bias.axes[0])))
