"""Finds out whether a model's answers depend on padding: on positions that a mask closes, behind the last open one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from tauten.core.rows import take_rows
from tauten.core.tensor import BATCH, Array, Arrays, TensorSpec
from tauten.errors import LoweringError
from tauten.make.lower._compare import IntArray, difference
from tauten.run.engines._padding import Padding, find_axes

Run = Callable[[Arrays], Arrays]
"""A float graph: outputs by name."""

_ROWS: Final = 4
_ALLOWED: Final = 1e-4
"""Of the largest number: ten times what another order of additions makes, far less than a token that is seen."""


def find_padding(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], sample: Arrays, run: Run
) -> tuple[Padding | None, str]:
    """The padding that calls can do without, and why a mask closes none: nothing where there is no mask.

    A mask is an input ``(batch, length)`` of zeros and ones that opens at least one position of each sample. The
    shortest samples are answered as they are, with more columns that the mask closes, and with other contents in these;
    every answer has to be the same. A model whose outputs are as long as its inputs is left alone.
    """
    reasons = []
    for spec in inputs:
        if not _is_mask(spec, sample):
            continue
        padding = Padding(mask=spec.name)
        long = [output.name for output in outputs if spec.shape[1] in output.shape]
        why = f"{', '.join(long)} is as long as the inputs" if long else _dependence(padding, inputs, sample, run)
        if not why:
            return padding, ""
        reasons.append(f"{spec.name}: {why}")
    return None, "; ".join(reasons)


def _is_mask(spec: TensorSpec, sample: Arrays) -> bool:
    if len(spec.shape) != 2 or spec.shape[0] != BATCH or not isinstance(spec.shape[1], str):
        return False
    mask = sample[spec.name]
    return bool(mask.size and np.isin(mask, (0, 1)).all() and mask.any(axis=1).all())


def _dependence(padding: Padding, inputs: Sequence[TensorSpec], sample: Arrays, run: Run) -> str:
    """Why answers depend on what is closed; nothing where they do not."""
    axes, multiple = find_axes(padding, inputs), padding.multiple
    odd = [spec.name for spec in inputs if spec.name in axes and spec.shape[0] != BATCH]
    if odd:
        return f"{', '.join(odd)} is as long as it, and does not count samples first"
    # The last open position of each sample, counted from one.
    ends = sample[padding.mask].shape[1] - (sample[padding.mask][:, ::-1] != 0).argmax(axis=1)
    rows = np.sort(np.argsort(ends, kind="stable")[:_ROWS])
    some = take_rows(inputs, sample, [int(row) for row in rows])
    short = -(-int(ends[rows].max()) // multiple) * multiple
    told = f"with {multiple} more columns that the mask closes"
    try:
        right = run(_filled(some, axes, padding.mask, ends[rows], short, first=True))
        for length, first in ((short, False), (short + multiple, True), (short + multiple, False)):
            came = run(_filled(some, axes, padding.mask, ends[rows], length, first=first))
            for name, wanted in right.items():
                off = difference(wanted, came[name])
                if off > _ALLOWED:
                    how = told if length > short else "with other contents where the mask is closed"
                    return f"{name} differs by {off:.3g} of its largest value {how}"
    except LoweringError as fault:
        return f"{told} it does not run: {str(fault)[:200]}"
    return ""


def _filled(
    arrays: Arrays, axes: dict[str, tuple[int, ...]], mask: str, ends: Array, length: int, *, first: bool
) -> Arrays:
    """``arrays`` of ``length`` columns, where what lies behind each sample's end is closed.

    It holds the sample's ``first`` column again, or the ones before the end from the last to the first.
    """
    found = dict(arrays)
    for name, along in axes.items():
        array = arrays[name]
        for axis in along:
            array = np.stack(
                [
                    np.take(row, _places(int(end), length, first=first), axis=axis - 1)
                    for row, end in zip(array, ends, strict=True)
                ]
            )
        found[name] = array
    closed = np.arange(length) >= ends.astype(np.int64)[:, np.newaxis]
    found[mask] = np.where(closed, np.zeros((), found[mask].dtype), found[mask])
    return found


def _places(end: int, length: int, *, first: bool) -> IntArray:
    """Of which columns ``length`` columns are made, for a sample that ends before ``end``."""
    own = np.arange(min(end, length))
    behind = np.arange(length - len(own))
    return np.concatenate([own, np.zeros_like(behind) if first else end - 1 - behind % end])
