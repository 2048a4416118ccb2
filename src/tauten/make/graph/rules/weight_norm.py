"""Weights given as a direction and a length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tauten.make.graph.rules._table import rule
from tauten.make.graph.value import Axis, Value

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """``v * (g / |v|)``, the length taken over all dimensions but ``dim`` (Salimans and Kingma, 2016).

    Zeros in ``v`` add nothing to its length. Along ``dim`` itself they would be divided by a length of zero.
    """
    direction, size, dim = call["v"], call["g"], call["dim"]
    reason = f"{call.where} would divide by a length of zero"
    axes = list(direction.axes)
    trace.freeze_all(size.axes, reason)
    axes[dim] = trace.block(axes[dim], reason)
    made = Value(tuple(axes))
    return made if len(call.shapes) == 1 else (made, Value(tuple(Axis(n, reason=reason) for n in call.shapes[1])))
