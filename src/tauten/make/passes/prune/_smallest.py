"""Which numbers of many tensors score least: exact at any size, a tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

Scores = npt.NDArray[np.floating[Any]]
_DIGIT: Final = 16  # bits a round looks at
_PART: Final = 2**20  # numbers that are counted at once


def magnitude(weight: torch.Tensor) -> Scores:
    """The absolute value of each weight, flat, in float32."""
    return weight.detach().abs().float().cpu().reshape(-1).numpy()


def lamp(weight: torch.Tensor) -> Scores:
    """Each weight's square over the sum of its layer's squares that are at least as large, flat (Lee et al., 2021).

    The largest weight of a layer scores 1, so that no threshold below 1 empties a layer.
    """
    squares = magnitude(weight).astype(np.float64) ** 2
    order = np.argsort(squares, kind="stable")
    ascending = squares[order]
    rest = np.cumsum(ascending[::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = np.divide(ascending, rest, out=np.zeros_like(ascending), where=rest > 0)
    return scores


def zero_smallest(
    weights: Iterable[torch.Tensor], ratio: float, score: Callable[[torch.Tensor], Scores] = magnitude
) -> None:
    """Set exactly ``round(ratio * n)`` of the ``n`` numbers to zero, in place: those that score least.

    Ties are broken by position. Magnitudes are taken anew for each look at a tensor, so that never more than one
    tensor's are held; scores that cost more are kept.
    """
    listed = [weight for weight in weights if weight.numel()]
    count = round(ratio * sum(weight.numel() for weight in listed))
    if not count:
        return
    if score is magnitude:
        limit, ties = _smallest(lambda: map(magnitude, listed), count)
        scores: Iterable[Scores] = map(magnitude, listed)
    else:
        kept = [score(weight) for weight in listed]
        limit, ties = _smallest(lambda: iter(kept), count)
        scores = kept
    with torch.no_grad():
        for weight, of_weight in zip(listed, scores, strict=True):
            chosen = of_weight < limit
            tied = np.flatnonzero(of_weight == limit)[:ties] if ties else np.empty(0, np.int64)
            chosen[tied] = True
            ties -= len(tied)
            weight.masked_fill_(torch.from_numpy(chosen).reshape(weight.shape).to(weight.device), 0)


def _smallest(scores: Callable[[], Iterator[Scores]], count: int) -> tuple[float, int]:
    """The ``count``-th smallest of the scores (which are not negative), and how many that equal it are among the first.

    A radix selection: bits of floats that are not negative are in the order of the floats, and each round counts one
    digit of those that have the digits found so far. ``torch.quantile`` and a partition hold all numbers at once.
    """
    width = 8 * next(scores()).itemsize
    found, left = 0, count
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        histogram = np.zeros(2**_DIGIT, np.int64)
        for bits in _bits(scores(), width):
            if shift + _DIGIT < width:
                bits = bits[(bits >> (shift + _DIGIT)) == found]
            digits = (bits >> shift) & (2**_DIGIT - 1)
            histogram += np.bincount(digits.astype(np.int64), minlength=2**_DIGIT)
        upto = np.cumsum(histogram)
        digit = int(np.searchsorted(upto, left))
        left -= int(upto[digit - 1]) if digit else 0
        found = (found << _DIGIT) | digit
    limit = np.array(found, f"uint{width}").view(f"float{width}")
    return float(limit), left


def _bits(scores: Iterator[Scores], width: int) -> Iterator[npt.NDArray[np.unsignedinteger[Any]]]:
    for of_weight in scores:
        for start in range(0, len(of_weight), _PART):
            yield of_weight[start : start + _PART].view(f"uint{width}")
