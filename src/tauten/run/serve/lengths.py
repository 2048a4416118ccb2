"""Requests of different lengths in one batch, for a model that can do without columns which a mask closes.

::

    Call ── ByLength: its group is a bucket of lengths ── Worker ── Batch ── Padded: rows of one length

A request's length is that of what it has open: the columns that a mask closes at its end count nowhere. A bucket takes
lengths that are nearly the same, so that little is computed in vain. A batch is as long as its longest request has
open, and never longer than the longest that was sent: no engine sees a length that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tauten.core.tensor import BATCH, Array, TensorSpec
from tauten.run.engines._padding import Padding, check_borders
from tauten.run.serve.protocol.buffer import ALONE

if TYPE_CHECKING:
    from tauten.run.engines.engine import Engine
    from tauten.run.serve.call import Batch, Call
    from tauten.run.serve.statistics import Statistics
    from tauten.run.serve.worker import Worker


class Bucket(NamedTuple):
    """The group of calls that can be brought to one length: up to ``bound``, all other sizes being equal."""

    lengths: Lengths
    bound: int
    others: tuple[int, ...]


class Lengths:
    """Where the inputs of a model are as long as the mask of its ``padding``, and how long a call is.

    Raises ``ConfigError`` where the padding does not fit the model's inputs and outputs.
    """

    def __init__(self, padding: Padding, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        axes = check_borders(padding, inputs, outputs)
        self.names = tuple(axes)
        """The inputs that differ in length."""
        self.multiple = padding.multiple
        self.mask = next(index for index, spec in enumerate(inputs) if spec.name == padding.mask)
        """Which of the inputs is the mask."""
        self.axes = [axes.get(spec.name, ()) for spec in inputs]
        self.dtypes = [np.dtype(spec.dtype) for spec in inputs]
        own = (BATCH, inputs[self.mask].shape[1])
        found: dict[str, tuple[int, int]] = {}
        for index, spec in enumerate(inputs):
            for axis, dim in enumerate(spec.shape):
                if isinstance(dim, str) and dim not in own:
                    found.setdefault(dim, (index, axis))
        self._others = list(found.values())

    @classmethod
    def of(cls, engine: Engine) -> Self | None:
        """Those of the model in ``engine``; ``None`` where its answers may depend on padding, or it has no batch."""
        batched = all(spec.batch_axis == 0 for spec in (*engine.inputs, *engine.outputs))
        return cls(engine.padding, engine.inputs, engine.outputs) if engine.padding and batched else None

    def bucket(self, call: Call) -> Bucket | None:
        """Where ``call`` belongs, which is told its length; ``None`` where a sample has no open position at all.

        What a model makes of such a sample, each column may have a part in: it goes with calls that are as long.
        """
        shapes, place = call.shapes, self.mask
        mask = np.frombuffer(call.buffers[place], self.dtypes[place]).reshape(shapes[place])
        call.length = open_length(mask)
        if not call.length:
            return None
        bound = bound_of(call.length, self.multiple)
        return Bucket(self, bound, tuple([shapes[index][axis] for index, axis in self._others]))


class ByLength:
    """Stands before a worker and puts calls into buckets of lengths. ``statistics`` is told of their positions."""

    def __init__(self, inner: Worker, lengths: Lengths, statistics: Statistics) -> None:
        self._inner = inner
        self._lengths = lengths
        self._statistics = statistics

    def submit(self, call: Call) -> None:
        """Answer ``call``, now or later, as ``Worker.submit`` does."""
        if call.group is not ALONE:
            rows, length = call.shapes[self._lengths.mask]
            self._statistics.positions += rows * length
            call.group = self._lengths.bucket(call) or call.group
        self._inner.submit(call)


class Padded:
    """The inputs of a batch whose calls were sent with different lengths. ``shapes`` are those of all of them joined.

    What is added to a sample is its own first column, again and again, and nothing open in the mask: that answers stay
    the same with such columns was measured when the model was lowered, and every value of them is one that was sent.
    """

    def __init__(self, lengths: Lengths, batch: Batch, length: int) -> None:
        self.shapes = [
            tuple(length if axis in axes else size for axis, size in enumerate((batch.rows, *shape[1:])))
            for axes, shape in zip(lengths.axes, batch.calls[0].shapes, strict=True)
        ]
        self.dtypes = lengths.dtypes
        self._calls = batch.calls
        self._lengths = lengths
        self._length = length

    def write(self, index: int, into: Array) -> None:
        """Write the rows of one input ``into`` an array of its dtype and its shape in ``shapes``."""
        axes, dtype, is_mask = self._lengths.axes[index], self.dtypes[index], index == self._lengths.mask
        begin = 0
        for call in self._calls:
            rows = np.frombuffer(call.buffers[index], dtype).reshape(call.shapes[index])
            own = into[begin : begin + len(rows)]
            begin += len(rows)
            if axes:
                self._bring(rows, own, axes, is_mask=is_mask)
            else:
                own[...] = rows

    def _bring(self, rows: Array, own: Array, axes: tuple[int, ...], *, is_mask: bool) -> None:
        """Copy ``rows`` into ``own``, which is longer or shorter along ``axes``."""
        kept = min(rows.shape[axes[0]], self._length)
        inside: list[Any] = [slice(None)] * own.ndim
        for axis in axes:
            inside[axis] = slice(kept)
        own[tuple(inside)] = rows[tuple(inside)]
        if kept == self._length:
            return
        if is_mask:
            own[:, kept:] = 0
            return
        for axis in axes:
            # Where there is another axis yet, what lies behind its end is written when it is its turn.
            before = (slice(None),) * axis
            own[(*before, slice(kept, None))] = own[(*before, slice(1))]


def pad(batch: Batch) -> Padded | None:
    """How the calls of ``batch`` are brought to one length; ``None`` where they have one, or none of their own.

    They and the batch are told how many columns and positions are added.
    """
    calls = batch.calls
    bucket = calls[0].group
    if not isinstance(bucket, Bucket):
        return None
    lengths = bucket.lengths
    sent = [call.shapes[lengths.mask][1] for call in calls]
    longest = max(sent)
    if longest == min(sent):
        return None
    opened = max([call.length for call in calls])
    length = min(longest, round_up(opened, lengths.multiple))
    for call, own in zip(calls, sent, strict=True):
        if own < length:
            call.padded = length - own
            batch.padded += call.rows * call.padded
    return Padded(lengths, batch, length)


def open_length(mask: Array) -> int:
    """The columns of ``mask``, ``(rows, columns)``, up to the last that any row has open; 0 where a row has none.

    >>> open_length(np.array([[1, 1, 0, 0], [1, 0, 1, 0]]))
    3
    >>> open_length(np.array([[1, 1, 0, 0], [0, 0, 0, 0]]))
    0
    """
    length: int = mask.shape[1]
    if mask.size == 0:
        return 0
    if len(mask) == 1 and mask[0, -1]:  # the usual request, which is to cost least
        return length
    opened = mask.astype(bool)
    if not np.logical_or.reduce(opened, axis=1).all():
        return 0
    seen: npt.NDArray[np.bool_] = np.logical_or.reduce(opened, axis=0)
    return length - int(seen[::-1].argmax())


def bound_of(length: int, multiple: int) -> int:
    """The longest length of the bucket that takes ``length``.

    Bounds are multiples of ``multiple``, all of them up to eight times it, and from there four for each doubling, as
    size classes of memory allocators are (jemalloc, Evans, 2006): a bucket's shortest length is filled up with fewer
    columns than ``multiple``, or with less than a fifth of what it then has.

    >>> [bound_of(length, 8) for length in (1, 8, 9, 64, 65, 80, 81, 129, 512)]
    [8, 8, 16, 64, 80, 80, 96, 160, 512]
    """
    units = -(-length // multiple)
    step = 1 << max(0, (units - 1).bit_length() - 3)
    return round_up(units, step) * multiple


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is no less than ``number``."""
    return -(-number // multiple) * multiple
