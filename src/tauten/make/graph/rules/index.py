"""Elements looked up by tensors of numbers, as tables of relative positions are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tauten.make.graph.rules._table import rule
from tauten.make.graph.value import Axis, Value

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace


@rule("index")
def index(trace: Trace, call: Call) -> Value:
    """``table[numbers]``: the dimensions that are looked up in stay, the others pass.

    What is found takes the place of the first of them; where they are apart, it comes first of all (as in NumPy).
    """
    data, indices = call["self"], call["indices"]
    looked_up = [dim for dim, numbers in enumerate(indices) if isinstance(numbers, Value)]
    reason = f"{call.where} looks channels up by number"
    for dim in looked_up:
        trace.freeze(data.axes[dim], reason)
        trace.freeze_all(indices[dim].axes, reason)
    rest = [axis for dim, axis in enumerate(data.axes) if dim not in looked_up]
    together = looked_up == list(range(looked_up[0], looked_up[-1] + 1))
    place = looked_up[0] if together else 0
    shape = call.shapes[0]
    found = [Axis(size, reason=reason) for size in shape[place : place + len(shape) - len(rest)]]
    return Value((*rest[:place], *found, *rest[place:]))
