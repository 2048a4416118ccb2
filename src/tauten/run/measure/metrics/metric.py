"""The seam of quality: one sample at a time, so that spread and paired differences come for free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from tauten.core.tensor import Array

Scores = npt.NDArray[np.float64]


class Metric(Protocol):
    """A score a sample; the quality is their mean.

    ``unit`` is what a point is, ``better`` which way is better, ``reference`` says that it compares with the original
    model's outputs instead of labels. A metric whose scores depend on the other samples of the batch says so by a true
    attribute ``together``: intervals then draw batches, not samples.
    """

    # Properties, so that a frozen value is a metric too.
    @property
    def unit(self) -> str: ...

    @property
    def better(self) -> Literal["lower", "higher"]: ...

    @property
    def reference(self) -> bool: ...

    def __call__(self, outputs: Mapping[str, Array], labels: Array | Mapping[str, Array]) -> Scores:
        """Scores of shape ``(samples,)`` for one batch.

        ``labels`` is the batch's labels, or for a fidelity metric the original's outputs by name.
        Raises ``TaskError`` where shapes do not fit.
        """
        ...
