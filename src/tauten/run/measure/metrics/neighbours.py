"""Rank agreement of neighbours: whether embeddings put the other samples in the original's order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from tauten.core.tensor import Array
from tauten.run.measure.metrics._shapes import Floats, pairs
from tauten.run.measure.metrics.metric import Scores

__all__ = ["NEIGHBOURS"]


class Neighbours:
    """100 times the rank correlation (Spearman, 1904) of a sample's likeness to the others of its batch.

    Likeness is the cosine of flattened outputs; the score is the mean over outputs. What a search or a clustering
    reads off embeddings is this order. A sample that is alone in its batch scores 100, and one whose answers hold
    numbers that are not finite -100.
    """

    unit = "%"
    better: Literal["lower", "higher"] = "higher"
    reference = True
    together = True

    def __call__(self, outputs: Mapping[str, Array], labels: Array | Mapping[str, Array]) -> Scores:
        each = [_agreement(ours, theirs) for ours, theirs in pairs(outputs, labels, "neighbours")]
        return np.asarray(np.mean(each, axis=0) * 100.0, dtype=np.float64)


def _agreement(ours: Floats, theirs: Floats) -> Scores:
    count = len(ours)
    lost = ~np.isfinite(ours).all(axis=1)
    scores = np.ones(count)
    if count > 1:
        first, second = (_ranks(_likeness(np.nan_to_num(rows))) for rows in (ours, theirs))
        first, second = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (first, second))
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        dots = np.einsum("ij,ij->i", first, second)
        # Two samples alone, or all alike: there is one order.
        scores = np.divide(dots, norms, out=np.ones(count), where=norms != 0)
    return np.where(lost, -1.0, np.clip(scores, -1.0, 1.0))


def _likeness(rows: Floats) -> Floats:
    """Cosines ``(samples, others)``, each row without the sample itself."""
    peak = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    scaled = rows / np.where(peak == 0, 1.0, peak)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit = scaled / np.where(norms == 0, 1.0, norms)
    whole = unit @ unit.T
    return whole[~np.eye(len(rows), dtype=bool)].reshape(len(rows), -1)


def _ranks(values: Floats) -> Floats:
    """Ranks along the last axis; equal values share the mean of theirs."""
    below = (values[:, None, :] < values[:, :, None]).sum(axis=2)
    equal = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    ranks: Floats = below + (equal - 1) / 2
    return ranks


NEIGHBOURS = Neighbours()
