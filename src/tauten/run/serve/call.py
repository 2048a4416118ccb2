"""One request for a model, from its arrival to its answer, and the batches that such requests make up.

::

    protocol ── Call ── Worker ── Scheduler ── Batch ── Instance ── Engine
       └────────── answered(call) ──────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import EngineError
from tauten.run.serve.lengths import pad
from tauten.run.serve.protocol.buffer import ALONE, Buffer
from tauten.run.serve.protocol.elements import BytesSpec, to_objects, unpack_elements


class Call:
    """One request for a model. Belongs to the event loop's thread.

    What came: ``buffers`` and ``shapes``, one for each of the model's inputs in the model's order. A buffer holds the
    elements row by row, in this machine's byte order. ``rows`` is the size of the batch dimension, 1 where the model
    has none. Calls of one ``group`` fit into one batch; ``ALONE`` fits with none. A lower ``priority`` goes first;
    ``deadline_ns`` is the time, by ``time.perf_counter_ns``, after which nobody wants the answer, 0 for none.

    What became of it: ``result`` (an array for each of the model's outputs, in the model's order, whose first dimension
    is that of the call) or ``fault``, and then ``answered`` is called with the call, once, in the event loop. After
    ``cancel`` it is not called any more; then ``left`` is, once, where there is one.

    When: ``arrived_ns``, ``started_ns`` and ``ended_ns`` are when it came, its batch began to run, and had run.
    ``batch_rows`` is how many rows ran with it, ``why`` the reason for which that batch left when it did.
    ``length`` is how many columns it has open, where it may run with calls of other lengths; ``padded`` is how many
    were added to what was sent, so that it could. ``parts`` are what it was split into, where it has more rows than one
    batch takes. ``cached`` is set where the answer was remembered, ``retried`` where its first batch failed.
    """

    __slots__ = (
        "answered",
        "arrived_ns",
        "batch_rows",
        "buffers",
        "cached",
        "cancelled",
        "context",
        "deadline_ns",
        "ended_ns",
        "fault",
        "group",
        "left",
        "length",
        "padded",
        "parts",
        "priority",
        "result",
        "retried",
        "rows",
        "shapes",
        "started_ns",
        "why",
    )

    def __init__(
        self,
        buffers: Sequence[Buffer],
        shapes: Sequence[tuple[int, ...]],
        rows: int,
        group: Hashable,
        answered: Callable[[Call], None],
        context: Any = None,
    ) -> None:
        self.buffers = buffers
        self.shapes = shapes
        self.rows = rows
        self.group = group
        self.answered = answered
        self.context = context  # whatever the one who asked needs again when it is answered
        self.priority = 0
        self.deadline_ns = 0
        self.arrived_ns = 0
        self.started_ns = 0
        self.ended_ns = 0
        self.batch_rows = 0
        self.length = 0
        self.padded = 0
        self.why = ""
        self.cached = False
        self.cancelled = False
        self.retried = False
        self.parts: Sequence[Call] = ()
        self.left: Callable[[Call], None] | None = None
        self.result: Sequence[Array] | None = None
        self.fault: Exception | None = None

    def cancel(self) -> None:
        """Nobody waits for the answer any more: it leaves before it is computed, where that has not begun."""
        if self.cancelled:
            return
        self.cancelled = True
        if self.left is not None:
            self.left(self)
        for part in self.parts:
            part.cancel()

    def refuse(self, fault: Exception) -> None:
        """Answer with ``fault``."""
        self.fault = fault
        if not self.cancelled:
            self.answered(self)


class Batch:
    """Calls of one group that run at once; ``why`` says why they left when they did.

    ``padded`` is how many positions (rows times columns) were added to bring them to one length.
    """

    __slots__ = ("calls", "padded", "rows", "why")

    def __init__(self, calls: Sequence[Call], rows: int, why: str) -> None:
        self.calls = calls
        self.rows = rows
        self.padded = 0
        self.why = why


def gather(batch: Batch, specs: Sequence[TensorSpec]) -> Arrays:
    """The inputs of the whole batch, by name: the rows of its calls, one after the other, brought to one length."""
    calls = batch.calls
    first = calls[0]
    arrays: Arrays = {}
    if len(calls) > 1 and (padded := pad(batch)) is not None:
        for index, spec in enumerate(specs):
            arrays[spec.name] = np.empty(padded.shapes[index], padded.dtypes[index])
            padded.write(index, arrays[spec.name])
        return arrays
    for index, spec in enumerate(specs):
        if len(calls) == 1:
            data, shape = first.buffers[index], first.shapes[index]
        else:
            data = b"".join([call.buffers[index] for call in calls])
            shape = (batch.rows, *first.shapes[index][1:])
        if isinstance(spec, BytesSpec):
            arrays[spec.name] = to_objects(unpack_elements(spec.name, shape, data), shape)
            continue
        array = np.frombuffer(data, spec.dtype)
        if not array.flags.aligned:
            # Through bytes, whose memory is aligned: NumPy's own copy would let other threads run first.
            array = np.frombuffer(bytes(data), spec.dtype)
        arrays[spec.name] = array.reshape(shape)
    return arrays


def divide(batch: Batch, outputs: Sequence[Array]) -> None:
    """Give each call of ``batch`` its rows of ``outputs``.

    Raises ``EngineError`` where an output does not have as many rows as the batch.
    """
    calls, rows = batch.calls, batch.rows
    if calls[0].group is not ALONE:
        for output in outputs:
            if not output.ndim or len(output) != rows:
                raise EngineError(f"expected {rows} rows in each output, got one of shape {output.shape}")
    if len(calls) == 1:
        calls[0].result = outputs
        return
    begin = 0
    only = outputs[0] if len(outputs) == 1 else None
    for call in calls:
        end = begin + call.rows
        call.result = [output[begin:end] for output in outputs] if only is None else (only[begin:end],)
        begin = end
