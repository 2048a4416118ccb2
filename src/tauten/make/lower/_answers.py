"""Holds a lowered graph against the module that it was made from, whatever runs the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tauten.core.rows import count_rows, take_rows
from tauten.core.tensor import Array, Arrays
from tauten.errors import MismatchError
from tauten.make.lower._compare import TOLERANCE, difference
from tauten.make.model.model import Model
from tauten.make.model.run import forward

_FEWER: Final = (1, 3)  # batch sizes beside the full one; none is the size that was exported


def hold_answers(run: Callable[[Arrays], Sequence[Array]], model: Model, inputs: Arrays, what: str) -> float:
    """Compare what ``run`` answers, in the outputs' order, on ``inputs`` and on their first sample and first three.

    Returns the largest difference, as a share of the largest number. Raises ``MismatchError`` where it is more than
    another order of additions explains.
    """
    size = count_rows(model.inputs, inputs)
    fewer = [rows for rows in _FEWER if rows < size] if any(s.batch_axis is not None for s in model.inputs) else []
    largest = 0.0
    for batch in (inputs, *(take_rows(model.inputs, inputs, range(rows)) for rows in fewer)):
        expected = forward(model.module, model.inputs, model.outputs, batch)
        for (name, wanted), came in zip(expected.items(), run(batch), strict=True):
            off = difference(wanted, came)
            largest = max(largest, off)
            if off > TOLERANCE:
                raise MismatchError(
                    f"{name}: {what} differs from the module by {off:.3g} of its largest value "
                    f"(batch {count_rows(model.inputs, batch)}, at most {TOLERANCE:g} is allowed)"
                )
    return largest
