"""Signal to quantization noise: how far the answers are from the original's, in decibels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from tauten.core.tensor import Array
from tauten.run.measure.metrics._shapes import pairs
from tauten.run.measure.metrics.metric import Scores

__all__ = ["SQNR"]

_MOST_DB = 150.0


class Sqnr:
    """``10 log10(signal / noise)`` a sample in dB, over all outputs: signal is the original's energy.

    Bounded to -150 and 150 dB: equal answers are 150, which is more than float32 can tell apart. Answers that are not
    finite are -150.
    """

    unit = "dB"
    better: Literal["lower", "higher"] = "higher"
    reference = True

    def __call__(self, outputs: Mapping[str, Array], labels: Array | Mapping[str, Array]) -> Scores:
        both = list(pairs(outputs, labels, "sqnr"))
        with np.errstate(all="ignore"):  # infinite answers are told by the bounds
            signal = np.sum([(theirs**2).sum(axis=1) for _, theirs in both], axis=0)
            noise = np.sum([((ours - theirs) ** 2).sum(axis=1) for ours, theirs in both], axis=0)
            decibels = 10.0 * np.log10(signal / noise)
        decibels = np.where(noise == 0, _MOST_DB, np.where(np.isfinite(noise), decibels, -_MOST_DB))
        bounded = np.clip(np.nan_to_num(decibels, nan=-_MOST_DB), -_MOST_DB, _MOST_DB)
        return np.asarray(bounded, dtype=np.float64)


SQNR = Sqnr()
