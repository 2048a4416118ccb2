"""Tensors that the code makes of one number: as long as what they meet, so that they hold no channel back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tauten.make.graph.rules._table import rule
from tauten.make.graph.value import Axis, Value

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace


_LONGEST = 2**20
"""Longer ones vary between calls (see ``trace``)."""


@rule("zeros", "new_zeros", "ones", "new_ones", "full", "new_full", "scalar_tensor")
def constant(trace: Trace, call: Call) -> Value:
    """One number all over. Where the code writes its length down instead of asking for it, the run will show."""
    zero = call.op.endswith("zeros") or call.arguments.get("fill_value") == 0
    why = f"{call.where} has a size of its own"
    axes = []
    for size in call.shapes[0]:
        # What meets one and the same tensor has to stay as long as it: ids tell. One that varies is no dimension of
        # channels.
        ids = trace.ids.fresh(size) if 1 < size <= _LONGEST else None
        axes.append(Axis(size, ids, zero=zero, reason=why, alike=ids is None))
        trace.shapes(axes[-1], why)
    return Value(tuple(axes))
