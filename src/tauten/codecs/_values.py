"""What an array of weights really holds: whole numbers, multiples of a step, a few shared values, or just bits.

A pass that compresses leaves ordinary arrays, whose values lie on a grid or in a palette. Here that is found again
without being told, and without losing a bit: a finding counts only where restoring it gives every bit of the array.

An array is seen as a matrix: axis 0 are the rows, the rest is flattened; ``turned``, its last axis are the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tauten.core.tensor import Array
from tauten.errors import ArtifactError

Levels = npt.NDArray[np.int32]
Steps = npt.NDArray[np.float64]

MOST_LEVEL: Final = 2**15 - 1
"""The largest whole number, in size, that a matrix coder is given."""
MOST_VALUES: Final = 4096
"""The largest palette."""
SMALL: Final = 2**16
"""Arrays of at most so many elements are looked at in every way; larger ones in the first that fits."""
_CHUNK: Final = 2**20
_FIRST: Final = 2**12
_FEW: Final = 255
_NARROWEST: Final = 8  # columns that a row must have for a step of its own to be worth its bytes
_MOST_SPAN: Final = 62  # bits between the largest value and the finest unit that int64 holds


class Kind(IntEnum):
    """How an array follows from its levels ``q``, a matrix of whole numbers."""

    CONSTANT = 0  # one value, parameters[0]; no levels; an empty array has none
    INTEGERS = 1  # q + offset
    GRID = 2  # q * parameters[0]
    ROWS = 3  # q * parameters[row]
    PALETTE = 4  # parameters[q + offset]
    RAW = 5  # the bits as they are; no levels


@dataclass(frozen=True)
class Values:
    """One finding. ``levels`` is ``(rows, columns)``; ``parameters`` are of the array's dtype."""

    kind: Kind
    levels: Levels
    parameters: Array
    offset: int = 0
    turned: bool = False


def analyse(array: Array) -> list[Values]:
    """Ways to tell ``array`` (native byte order), the most promising first; the last is always possible."""
    nothing = np.zeros((0, 0), np.int32)
    flat = array.reshape(-1)
    if _is_constant(flat):
        return [Values(Kind.CONSTANT, nothing, flat[:1].copy())]
    found = list(_findings(array))
    if not found or array.size <= SMALL:
        found.append(Values(Kind.RAW, nothing, flat[:0]))
    return found


def restore(values: Values, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """The array again; ``ArtifactError`` where levels and parameters do not fit each other."""
    if values.kind is Kind.CONSTANT:
        return np.full(shape, values.parameters[0] if math.prod(shape) else 0, dtype)
    levels = values.levels
    out = np.empty(levels.shape, dtype)
    # Hostile steps may overflow, or be no numbers: what comes out is checked against its checksum.
    with np.errstate(all="ignore"):
        for place in _places(levels.shape):
            out[place] = _restore(values, levels[place], place[0], dtype)
    if values.turned:
        return np.ascontiguousarray(out.T).reshape(shape)
    return out.reshape(shape)


def matrix_shape(shape: tuple[int, ...], turned: bool) -> tuple[int, int]:
    """Rows and columns of an array's matrix; there must be elements."""
    size = math.prod(shape)
    if len(shape) < 2:
        return 1, size
    rows = shape[-1] if turned else shape[0]
    return rows, size // rows


def period(shape: tuple[int, ...], turned: bool) -> int:
    """After how many columns a convolution's matrix comes to the next input channel; 1 where there is no kernel."""
    return 1 if turned or len(shape) < 3 else math.prod(shape[2:])


def _restore(values: Values, levels: Any, rows: slice, dtype: np.dtype[Any]) -> Array:
    if values.kind is Kind.GRID or values.kind is Kind.ROWS:
        steps = values.parameters.astype(np.float64)
        step = steps[0] if values.kind is Kind.GRID else steps[rows, None]
        # In double precision, so that every machine rounds once, and alike.
        product: Array = (levels * step).astype(dtype)
        return product
    whole = levels.astype(np.int64) + values.offset
    least, most = int(whole.min()), int(whole.max())
    if values.kind is Kind.PALETTE:
        if least < 0 or most >= len(values.parameters):
            raise ArtifactError(
                f"weights: expected places in a palette of {len(values.parameters)}, got {least}, {most}"
            )
        shared: Array = values.parameters[whole]
        return shared
    lowest, highest = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    if least < lowest or most > highest:
        raise ArtifactError(f"weights: expected numbers that {dtype.name} holds, got {least} to {most}")
    exact: Array = whole.astype(dtype)
    return exact


def _places(shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """The matrix in parts of about ``_CHUNK`` elements, so that what is computed on the way stays small."""
    rows, columns = shape
    width = min(columns, _CHUNK)
    height = max(1, _CHUNK // width)
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, top + height), slice(left, left + width)


def _findings(array: Array) -> Iterator[Values]:
    every = array.size <= SMALL
    if array.dtype.kind in "biu":
        found = _integers(array)
        if found is not None:
            yield found
        return
    matrix = array.reshape(matrix_shape(array.shape, False))
    with np.errstate(all="ignore"):  # patterns of NaN that are cast, and sizes beyond the range
        grids = list(_grids(array, matrix, every))
        if grids and not every:
            yield min(grids, key=_bits_about)
            return
        yield from grids
        palette = _palette(matrix)
    if palette is not None:
        yield palette


def _grids(array: Array, matrix: Array, every: bool) -> Iterator[Values]:
    """One step for all, or one a row, for each way to see rows."""
    fit = _one_grid(matrix)
    if fit is not None:
        yield Values(Kind.GRID, fit[0], fit[1].astype(array.dtype))
        # Steps of rows may have a common divisor, far below them.
        if not every and int(np.abs(fit[0]).max()) <= _FEW:
            return
    for turned in (False, True):
        if array.ndim > 1:
            fit = _row_grids(_matrix(array, turned))
            if fit is not None:
                yield Values(Kind.ROWS, fit[0], fit[1].astype(array.dtype), turned=turned)


def _bits_about(values: Values) -> float:
    """About how many bits levels and steps take."""
    return float(np.log2(1.0 + np.abs(values.levels)).sum()) + 16 * len(values.parameters)


def _matrix(array: Array, turned: bool) -> Array:
    if not turned:
        return array.reshape(matrix_shape(array.shape, False))
    return np.ascontiguousarray(array.reshape(-1, array.shape[-1]).T)


def _is_constant(flat: Array) -> bool:
    if flat.size < 2:
        return True
    bits = _bits(flat)
    return bool((bits[:_FIRST] == bits[0]).all() and (bits == bits[0]).all())


def _bits(array: Array) -> Array:
    bits: Array = array.view(np.dtype(f"u{array.dtype.itemsize}"))
    return bits


def _integers(array: Array) -> Values | None:
    flat = array.reshape(-1).view(np.uint8) if array.dtype.kind == "b" else array.reshape(-1)
    least, most = int(flat.min()), int(flat.max())
    if most - least > MOST_LEVEL or max(-least, most) >= 2**62:
        return None
    counts = np.bincount((flat.astype(np.int64) - least).astype(np.intp))
    zeros = int(counts[-least]) if least <= 0 <= most else 0
    # Coders expect most numbers around zero; what is there most often takes its place, where that is another.
    common = int(counts.argmax())
    offset = common + least if int(counts[common]) > 2 * zeros else 0
    if max(most - offset, offset - least) > MOST_LEVEL:
        return None
    levels = (flat.astype(np.int64) - offset).astype(np.int32).reshape(matrix_shape(array.shape, False))
    return Values(Kind.INTEGERS, levels, array.reshape(-1)[:0], offset)


def _one_grid(matrix: Array) -> tuple[Levels, Steps] | None:
    """Levels and the one step that all of ``matrix`` are multiples of."""
    sizes = np.abs(matrix.reshape(-1))
    most = float(sizes.max())
    if not (math.isfinite(most) and most > 0):
        return None
    least = float(sizes.min(initial=most, where=sizes > 0))
    if most > least * MOST_LEVEL:
        return None
    levels = _levels(matrix, least)
    step: float | None = least
    if levels is None:
        # The step is no value of its own: it is the greatest common divisor, of some values first.
        some = sizes[:: max(1, sizes.size // _FIRST)].astype(np.float64)
        step = _divisor(np.append(some[some > 0], least))
        while step is not None and most <= step * MOST_LEVEL and levels is None:
            levels = _levels(matrix, step)
            if levels is None:
                off = _off(matrix.reshape(-1), step)
                if off is None:
                    return None
                step = _divisor(np.append(off, step))
    if levels is None or step is None:
        return None
    return levels, np.array([step])


def _levels(matrix: Array, step: float) -> Levels | None:
    """``matrix / step`` as whole numbers, where they give back every bit."""
    flat = matrix.reshape(-1)
    levels = np.empty(flat.size, np.int32)
    start = 0
    while start < flat.size:
        stop = start + (_CHUNK if start else _FIRST)
        part = flat[start:stop]
        # A zero's sign is no whole number's: with it, the array is on no grid.
        whole = np.rint(part.astype(np.float64) / step) + 0.0
        if not _alike((whole * step).astype(flat.dtype), part):
            return None
        levels[start:stop] = whole
        start = stop
    return levels.reshape(matrix.shape)


def _off(flat: Array, step: float) -> Steps | None:
    """Some sizes that are no multiples of ``step``; ``None`` where it is a sign on a zero that does not come back."""
    for start in range(0, flat.size, _CHUNK):
        part = np.abs(flat[start : start + _CHUNK].astype(np.float64))
        off = part[np.rint(part / step) * step != part]
        if off.size:
            some: Steps = off[:_FIRST]
            return some
    return None


def _divisor(sizes: Steps) -> float | None:
    """The greatest common divisor of positive numbers, seen as whole numbers of the finest unit among them."""
    whole, unit, fits = _whole(sizes.reshape(1, -1))
    return float(np.ldexp(float(np.gcd.reduce(whole[0])), int(unit[0]))) if fits else None


def _whole(sizes: Steps) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]:
    """Each row as whole numbers of its finest unit ``2**unit``, and whether int64 holds them all."""
    fraction, exponent = np.frexp(sizes)
    bits = np.ldexp(fraction, 53).astype(np.int64)
    lowest = np.frexp((bits & -bits).astype(np.float64))[1] - 1
    finest = np.where(sizes > 0, exponent.astype(np.int64) - 53 + lowest, 2**20)
    unit = finest.min(axis=1)
    top = np.where(sizes > 0, exponent, -(2**20)).max(axis=1)
    unit = np.where(unit == 2**20, 0, unit)
    if (top - unit > _MOST_SPAN).any():
        return np.zeros_like(bits), unit, False
    return np.ldexp(sizes, -unit[:, None]).astype(np.int64), unit, True


def _row_grids(matrix: Array) -> tuple[Levels, Steps] | None:
    """Levels and a step for each row, which all of the row are multiples of."""
    rows, columns = matrix.shape
    if rows < 2 or columns < _NARROWEST:
        return None
    levels, steps = np.empty(matrix.shape, np.int32), np.zeros(rows)
    height = max(1, _CHUNK // columns)
    start = 0
    while start < rows:
        # Few rows first: weights that lie on no grid show it there.
        stop = start + (height if start else max(1, _FIRST // columns))
        part = matrix[start:stop]
        with np.errstate(all="ignore"):
            found = _row_steps(part)
            if found is None:
                return None
            steps[start:stop] = found
            whole = _divide(part, found)
            if not _alike((whole * found[:, None]).astype(part.dtype), part):
                return None
        levels[start:stop] = whole
        start = stop
    return levels, steps


def _row_steps(part: Array) -> Steps | None:
    sizes = np.abs(part.astype(np.float64))
    most = sizes.max(axis=1)
    if not np.isfinite(most).all():
        return None
    steps: Steps = np.where(sizes > 0, sizes, np.inf).min(axis=1)
    steps[most == 0] = 0
    if (most > steps * MOST_LEVEL).any():
        return None
    whole = _divide(part, steps)
    off = ((whole * steps[:, None]).astype(part.dtype) != part).any(axis=1)
    if off.any():
        numbers, unit, fits = _whole(sizes[off])
        if not fits:
            return None
        steps[off] = np.ldexp(np.gcd.reduce(numbers, axis=1).astype(np.float64), unit)
        if (most > steps * MOST_LEVEL).any():
            return None
    return steps


def _divide(part: Array, steps: Steps) -> Steps:
    """Whole numbers of steps; zero in a row whose step is zero."""
    divided: Steps = np.rint(part.astype(np.float64) / np.where(steps > 0, steps, 1)[:, None]) + 0.0
    return divided


def _alike(first: Array, second: Array) -> bool:
    return bool((_bits(first) == _bits(second)).all())


def _palette(matrix: Array) -> Values | None:
    """The distinct values in order, and which of them each element is."""
    bits = _bits(matrix.reshape(-1))
    some = bits[:: max(1, bits.size // (4 * MOST_VALUES))]
    if len(np.unique(some)) > MOST_VALUES:
        return None
    shared: Array = np.unique(bits)
    if len(shared) > MOST_VALUES:
        return None
    places = np.searchsorted(shared, bits)
    order = np.argsort(shared.view(matrix.dtype), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    values: Array = shared[order].view(matrix.dtype)
    counts = np.bincount(places, minlength=len(order))[order]
    offset = _middle(values, counts)
    levels = (rank - offset).astype(np.int32)[places].reshape(matrix.shape)
    return Values(Kind.PALETTE, levels, values, offset)


def _middle(values: Array, counts: npt.NDArray[np.intp]) -> int:
    """Which value a palette is counted from: the most common where it stands out, else the one nearest to zero."""
    common = int(counts.argmax())
    if 4 * int(counts[common]) > int(counts.sum()):
        return common
    sizes = np.abs(values.astype(np.float64))
    return int(np.where(np.isnan(sizes), np.inf, sizes).argmin())
