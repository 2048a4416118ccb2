"""Batches of any size, answered by what was made for a few sizes alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tauten.core.rows import count_rows, join_rows, take_rows
from tauten.core.tensor import Array, Arrays, TensorSpec

_FULL: Final = 0.75
"""A part that fills this share of a size is filled up to it; smaller ones are cut further."""


def divide(rows: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """``(rows, size)`` of each part into which a batch of ``rows`` rows is cut, in order, for ``sizes`` that rise.

    The largest size comes as often as it is full. What is left fills the next larger size where it is nearly as much,
    or where there is no smaller one. No part has more rows than its size.
    """
    parts: list[tuple[int, int]] = []
    while rows:
        larger = next((size for size in sizes if size >= rows), None)
        smaller = max((size for size in sizes if size <= rows), default=0)
        if larger is not None and (not smaller or rows >= _FULL * larger):
            parts.append((rows, larger))
            break
        parts.append((smaller, smaller))
        rows -= smaller
    return parts


def run_fixed(
    run: Callable[[int, Arrays], Arrays],
    sizes: Sequence[int],
    inputs: tuple[Sequence[TensorSpec], Mapping[str, Array]],
    outputs: Sequence[TensorSpec],
) -> Arrays:
    """What ``run(size, arrays)`` answers for all rows of ``inputs``, which are specs and arrays; at least one row.

    A part that is smaller than its size is filled up with its own last row, and the answers to those are dropped. All
    ``outputs`` have to count rows.
    """
    specs, arrays = inputs
    parts = divide(count_rows(specs, arrays), sizes)
    ends = list(itertools.accumulate((rows for rows, _ in parts), initial=0))
    found = []
    for (rows, size), start in zip(parts, ends, strict=False):
        places = [min(start + place, start + rows - 1) for place in range(size)]
        whole = len(parts) == 1 and rows == size
        answers = run(size, dict(arrays) if whole else take_rows(specs, arrays, places))
        found.append(answers if rows == size else take_rows(outputs, answers, range(rows)))
    return join_rows(outputs, found)
