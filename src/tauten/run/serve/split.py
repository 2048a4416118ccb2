"""A call with more rows than one batch takes, run in parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tauten.run.serve.call import Call
from tauten.run.serve.protocol.buffer import Buffer
from tauten.run.serve.protocol.elements import Packed, bounds


def split(call: Call, most: int) -> Sequence[Call]:
    """Calls of at most ``most`` rows each, with the rows of ``call`` in order; it is answered once all of them are.

    The first that fails answers for all, and the others leave.
    """
    parts: list[Call] = []
    left = math.ceil(call.rows / most)

    def answered(part: Call) -> None:
        nonlocal left
        left -= 1
        if call.fault is not None:
            return
        if call.cancelled or part.fault is not None:
            for other in parts:
                other.cancel()
            if part.fault is not None:
                call.refuse(part.fault)
            return
        if left:
            return
        results = [part.result or () for part in parts]
        call.result = [np.concatenate(outputs) for outputs in zip(*results, strict=True)]
        call.started_ns = min(part.started_ns for part in parts)
        call.ended_ns = max(part.ended_ns for part in parts)
        call.batch_rows = max(part.batch_rows for part in parts)
        call.padded = max(part.padded for part in parts)
        call.why = "split"
        call.answered(call)

    flat = [(_flat(memoryview(buffer)), _begins(buffer, call.rows)) for buffer in call.buffers]
    for begin in range(0, call.rows, most):
        rows = min(most, call.rows - begin)
        buffers: list[Buffer] = [data[begins[begin] : begins[begin + rows]] for data, begins in flat]
        part = Call(buffers, [(rows, *shape[1:]) for shape in call.shapes], rows, call.group, answered, call.context)
        part.priority, part.deadline_ns, part.arrived_ns = call.priority, call.deadline_ns, call.arrived_ns
        part.length = call.length
        parts.append(part)
    call.parts = parts
    return parts


def _begins(buffer: Buffer, rows: int) -> Sequence[int]:
    """Where each row begins, and where the last one ends."""
    if isinstance(buffer, Packed):
        return bounds(buffer, rows)
    size = memoryview(buffer).nbytes // rows
    return range(0, size * rows + 1, size) if size else [0] * (rows + 1)


def _flat(view: memoryview) -> memoryview:
    return view.cast("B") if view.nbytes else memoryview(b"")
