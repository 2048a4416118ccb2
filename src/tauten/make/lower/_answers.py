"""Holds a lowered graph against the module that it was made from, whatever runs the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from tauten.core.rows import count_rows, join_rows, take_rows
from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import LoweringError, MismatchError
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


def hold_rows_apart(model: Model, outputs: Sequence[TensorSpec], inputs: Arrays) -> None:
    """``LoweringError`` where a row of ``inputs`` is answered otherwise alone than among the others.

    A batch of such a model can be neither cut nor filled up. ``outputs`` all count rows.
    """
    count = count_rows(model.inputs, inputs)
    if count == 1:
        # One row cannot show it; turned round, tokens and their masks and numbers of any kind are another one.
        turned = {name: np.flip(array, -1) if array.ndim > 1 else array for name, array in inputs.items()}
        inputs, count = join_rows(model.inputs, [inputs, turned]), 2
    whole = forward(model.module, model.inputs, model.outputs, inputs)
    each = [
        forward(model.module, model.inputs, model.outputs, take_rows(model.inputs, inputs, [row]))
        for row in range(count)
    ]
    for name, alone in join_rows(outputs, each).items():
        off = difference(whole[name], alone)
        if off > TOLERANCE:
            raise LoweringError(
                f"{name}: a row is answered otherwise alone than beside others, by {off:.3g} of the largest value, so "
                "that batches can be neither cut nor filled up"
            )
