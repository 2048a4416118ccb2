"""Integer matrices to bytes by context mixing: many adaptive models of each bit, mixed online, coded arithmetically.

The family is that of PAQ and lpaq (Mahoney 2005, 2007): probabilities in the logistic domain, a mixer that learns by
gradient descent, a secondary estimate after it (APM). The binarization is that of coders for significance maps: live
rows and columns, zero flag, sign, magnitude in unary above a Golomb-like split. What is new here: every context starts
at the order-0 estimate and is mixed as its deviation from it, so that contexts seen seldom say nothing, and a matrix
of a few thousand weights is learnt from the first row on. All arithmetic is in integers, so every machine decodes the
same values; ``_mixing.c`` does the work, ``_mixing_twin.py`` says it again in Python.

Large matrices are coded in blocks of rows that stand alone: threads decode them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import numpy as np

from tauten.codecs._mixing_settings import arranged, chosen, is_transposed
from tauten.codecs._native import Float32, Int32, coder, damaged
from tauten.core.environment import cores
from tauten.errors import ArtifactError, ConfigError

T = TypeVar("T")
R = TypeVar("R")

BLOCK: Final = 2**21
"""Weights of a block at most, but at least one row: 8 MiB of float32."""


def encode_matrix(q: Int32, period: int = 1) -> bytes:
    """The bytes of ``q``, int32 (rows, columns), any values. ``ConfigError`` for another array.

    ``period`` is the distance at which columns are alike: the elements of a convolution's kernel, else 1.
    The same matrix always gives the same bytes.
    """
    q = _checked(q, period)
    if not q.size:
        return b""
    blocks = list(_blocks(*q.shape))
    settings = chosen(q[blocks[0]], period)

    def coded(rows: slice) -> bytes:
        part = q[rows]
        return coder().encode(arranged(part, settings), part.shape, period, settings)

    parts = _each(coded, blocks)
    return b"".join([*(_varint(len(part)) + part for part in parts[:-1]), parts[-1]])


def decode_matrix(data: bytes, rows: int, columns: int, period: int = 1) -> Int32:
    """The matrix again, int32 (rows, columns).

    ``ArtifactError`` for bytes that ``encode_matrix`` did not make for such a matrix and period: too short, too long,
    or of values beyond int32. The matrix must be one that the caller can hold; time and memory follow its size.
    """
    if rows < 0 or columns < 0 or not 1 <= period < 2**31:
        raise ArtifactError(f"weights: expected a matrix's shape and period, got {rows} x {columns}, period {period}")
    q = np.empty((rows, columns), np.int32)
    if not q.size:
        if data:
            raise damaged()
        return q
    blocks = list(_blocks(rows, columns))
    parts: list[memoryview] = []
    rest = memoryview(data)
    for _ in blocks[:-1]:
        length, rest = _read_varint(rest)
        if length > len(rest):
            raise damaged()
        parts.append(rest[:length])
        rest = rest[length:]
    parts.append(rest)

    def decoded(job: tuple[slice, memoryview]) -> None:
        place, part = job
        shape = (place.stop - place.start, columns)
        flat, settings = coder().decode(bytes(part), shape, period)
        q[place] = flat.reshape(columns, -1).T if is_transposed(settings) else flat.reshape(shape)

    _each(decoded, list(zip(blocks, parts, strict=True)))
    return q


def costs(q: Int32, period: int = 1) -> Float32:
    """Bits that each element takes in this adaptive code, float32 (rows, columns); 0 in empty rows and columns."""
    return _measured(_checked(q, period), period, 1)[..., 0]


def alternatives(q: Int32, period: int = 1) -> Float32:
    """Bits of three values in each element's place, float32 (rows, columns, 3): 0, ``q`` one nearer to 0, ``q``.

    They hold at that point of the code of ``q``: what a change does to the elements after it is not in them.
    """
    return _measured(_checked(q, period), period, 3)


def _measured(q: Int32, period: int, width: int) -> Float32:
    rows, columns = q.shape
    found = np.zeros((rows, columns, width), np.float32)
    if not q.size:
        return found
    blocks = list(_blocks(rows, columns))
    settings = chosen(q[blocks[0]], period)

    def measured(place: slice) -> None:
        part = q[place]
        told = np.zeros((part.size, width), np.float32)
        coder().measure(arranged(part, settings), part.shape, period, settings, told)
        if is_transposed(settings):
            found[place] = told.reshape(columns, -1, width).transpose(1, 0, 2)
        else:
            found[place] = told.reshape(*part.shape, width)

    _each(measured, blocks)
    return found


def _checked(q: Int32, period: int) -> Int32:
    if q.ndim != 2 or q.dtype != np.int32:
        raise ConfigError(f"arithmetic code: expected an int32 matrix, got {q.dtype.name} of shape {q.shape}")
    if not 1 <= period < 2**31:
        raise ConfigError(f"arithmetic code: expected a period of at least 1, got {period}")
    return q


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK // columns)
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _each(work: Callable[[T], R], jobs: Sequence[T]) -> list[R]:
    """``work`` of each job, in order, on the processors there are."""
    threads = min(cores(), len(jobs))
    if threads < 2:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, jobs))


def _varint(value: int) -> bytes:
    """Seven bits a byte, low ones first; the top bit says that more follow (as LEB128)."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: memoryview) -> tuple[int, memoryview]:
    value = 0
    for place in range(min(len(data), 9)):
        value |= (data[place] & 127) << 7 * place
        if data[place] < 128:
            if place and not data[place]:
                break  # a longer way to say the same
            return value, data[place + 1 :]
    raise damaged()
