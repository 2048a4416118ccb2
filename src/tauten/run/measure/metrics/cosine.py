"""Cosine similarity with the original model's answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from tauten.core.tensor import Array
from tauten.run.measure.metrics._shapes import pairs
from tauten.run.measure.metrics.metric import Scores

__all__ = ["COSINE"]


class Cosine:
    """100 times the cosine between a sample's flattened output and the original's, the mean over outputs.

    Two outputs of zeros are alike (100); zeros against something else are not (0).
    """

    unit = "%"
    better: Literal["lower", "higher"] = "higher"
    reference = True

    def __call__(self, outputs: Mapping[str, Array], labels: Array | Mapping[str, Array]) -> Scores:
        each = [_cosine(ours, theirs) for ours, theirs in pairs(outputs, labels, "cosine")]
        return np.asarray(np.mean(each, axis=0) * 100.0, dtype=np.float64)


def _cosine(ours: Scores, theirs: Scores) -> Scores:
    # Scaled first, so that squares neither overflow nor vanish.
    ours, our_peak = _scaled(ours)
    theirs, their_peak = _scaled(theirs)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    dots = np.einsum("ij,ij->i", ours, theirs)
    both_zero = (our_peak == 0) & (their_peak == 0)
    found = np.divide(dots, norms, out=np.zeros_like(dots), where=norms != 0)
    return np.where(both_zero, 1.0, np.clip(found, -1.0, 1.0))


def _scaled(values: Scores) -> tuple[Scores, Scores]:
    peak = np.abs(values).max(axis=1, initial=0.0)
    return values / np.where(peak == 0, 1.0, peak)[:, None], peak


COSINE = Cosine()
