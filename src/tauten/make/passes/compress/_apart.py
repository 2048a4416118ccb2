"""Calibration data in two parts: most of it says how to round, some is kept apart to see what that does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tauten.core.rows import count_rows
from tauten.core.tensor import Arrays
from tauten.make.model.pass_ import Context
from tauten.make.passes.quantize._calibrate import Data

_HELD: Final = 64  # samples, and no more than a quarter


@dataclass(frozen=True)
class Apart:
    """``data`` without its first ``held`` samples, where those are whole batches."""

    data: Data
    held: int

    @property
    def context(self) -> Context:
        """What the data are of."""
        return self.data.context

    def batches(self) -> Iterator[Arrays]:
        """The batches of the larger part."""
        left = self.held
        for inputs in self.data.batches():
            rows = count_rows(self.data.model.inputs, inputs)
            left -= rows
            if left < 0:
                yield inputs

    def kept(self) -> Data:
        """What was kept apart; with few samples, the first that there are."""
        return Data(self.data.model, self.data.context, min(_HELD, self.data.samples))


def apart(data: Data) -> Apart:
    """``data`` in two parts."""
    return Apart(data, min(_HELD, data.count() // 4))
