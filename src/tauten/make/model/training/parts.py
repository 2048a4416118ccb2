"""Batches in parts, so that a step needs no more memory than there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tauten.core.rows import count_rows, has_batch, take_rows
from tauten.core.tensor import TensorSpec
from tauten.errors import PassError
from tauten.make.model.task import Batch
from tauten.make.model.training.memory import PeakMemory, trim
from tauten.run.measure.rows import largest_rows as rows_within


@dataclass
class Parts:
    """Divides batches into parts of at most ``rows`` samples; ``None`` leaves them whole.

    With ``memory``, a step whose peak is above ``limit_mib`` makes the parts of the next ones half as large: data may
    grow, and memory falls apart, after the size was chosen.
    """

    inputs: Sequence[TensorSpec] = ()
    rows: int | None = None
    limit_mib: float | None = None
    memory: PeakMemory | None = None

    def of(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The parts of the batches, in order."""
        for inputs, labels in batches:
            count = count_rows(self.inputs, inputs)
            if self.rows is None or count <= self.rows:
                yield inputs, labels
                continue
            if labels is not None and len(labels) != count:
                raise PassError(
                    f"training: max_memory_mib divides batches, but one has {count} samples and {len(labels)} labels"
                )
            # Parts that are as even as can be: a last one of a single sample would be none to normalize over.
            number = math.ceil(count / self.rows)
            ends = [count * part // number for part in range(number + 1)]
            for start, end in itertools.pairwise(ends):
                yield take_rows(self.inputs, inputs, range(start, end)), None if labels is None else labels[start:end]

    def hold(self) -> None:
        """Look at the step that was taken."""
        if self.memory is None or self.limit_mib is None or self.rows is None:
            return
        peak = self.memory.lately_mib()
        if peak is None or peak <= self.limit_mib or self.rows == 1:
            return
        trim()
        held = self.memory.held_mib()
        # Where what is held between steps is too much by itself, smaller parts would only be slower.
        if held is not None and held <= self.limit_mib:
            self.rows = math.ceil(self.rows / 2)
        self.memory.restart()


def largest_rows(
    count: int, needed: Callable[[int], float | None], limit_mib: float, what: str
) -> tuple[int | None, dict[int, float]]:
    """The most rows in which even parts of ``count`` need no more than the limit, and what was measured.

    ``None`` where the system tells nothing. Raises ``PassError`` with the figures where one row needs more.
    """
    figures: dict[int, float] = {}

    def even(rows: int) -> int:
        return math.ceil(count / math.ceil(count / rows))

    def known(rows: int) -> float:
        size = even(rows)
        if size not in figures:
            found = needed(size)
            if found is None:
                raise _Unknown
            figures[size] = found
        return figures[size]

    try:
        rows, _ = rows_within(count, known, limit_mib)
    except _Unknown:
        return None, {}
    if not rows:
        need = f"{figures[1]:.1f} MiB" if math.isfinite(figures[1]) else "more than the machine has"
        raise PassError(f"{what}: one sample at a time needs {need}, and max_memory_mib allows {limit_mib:g} MiB")
    return even(rows), figures


def check_divisible(specs: Sequence[TensorSpec], what: str) -> None:
    """Raises ``PassError`` where samples are not counted along a dimension of every input."""
    if not has_batch(specs):
        missing = [spec.name for spec in specs if spec.batch_axis is None]
        raise PassError(f'{what}: divides batches, and {", ".join(missing)} has no dimension named "batch"')


class _Unknown(Exception):
    """The system does not tell how much memory is in use."""
