"""Which way a tensor is coded: every finding and every coder that a codec allows, and the smallest of them.

Between ways of equal size the first is taken, so that equal arrays give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from tauten.codecs._ahead import ahead
from tauten.codecs._entries import Head, write_head
from tauten.codecs._huffman import decode_huffman, encode_huffman
from tauten.codecs._mixing import decode_matrix, encode_matrix
from tauten.codecs._planes import decode_levels, decode_planes, encode_levels, encode_planes
from tauten.codecs._values import SMALL, Kind, Levels, Values, analyse, matrix_shape, period, restore
from tauten.codecs._wire import Reader
from tauten.core.tensor import Array
from tauten.errors import ArtifactError

PLANES, HUFFMAN, MIXING = range(3)
"""The coders of whole numbers: byte planes and Zstandard, Huffman's codes, and context mixing."""

_SLACK: Final = 2**18
_MOST_RATIO: Final = 2**12
"""Numbers that a byte of ``HUFFMAN`` or ``MIXING`` may stand for, beyond ``_SLACK``: decoding takes no longer."""
_MOST_JOINED: Final = 2**20
_APART_BYTES: Final = 5
"""What a stream of its own takes beside the stream: its length and a checksum."""


@dataclass(frozen=True)
class Plan:
    """How a codec packs: by the first of ``coders`` that can, or, with ``every``, a small tensor by the best of them.

    ``joins``: a vector may become the last column of the matrix whose rows it belongs to, as a bias does.
    """

    coders: tuple[int, ...]
    every: bool = False
    joins: bool = False


@dataclass(frozen=True)
class Packed:
    """A tensor on its way out; there is no payload where its numbers need none, or are the next one's last column."""

    head: Head
    payload: bytes | None
    array: Array

    @property
    def levels(self) -> Levels | None:
        """Its whole numbers, where it has any."""
        return self.head.values.levels if self.head.values.kind not in (Kind.CONSTANT, Kind.RAW) else None


def pack_all(arrays: Iterable[tuple[str, Array]], plan: Plan, threads: int = 1) -> Iterator[Packed]:
    """The tensors in their order, packed, a vector together with the matrix after it where that is smaller."""
    waiting: Packed | None = None
    for packed in ahead(lambda pair: pack_one(*pair, plan), arrays, threads):
        if waiting is not None:
            column, packed = _join(waiting, packed)
            waiting = None
            yield column
        if plan.joins and packed.array.ndim == 1 and packed.levels is not None:
            waiting = packed
        else:
            yield packed
    if waiting is not None:
        yield waiting


def pack_one(name: str, array: Array, plan: Plan) -> Packed:
    """A tensor, C-contiguous and of the native byte order, in the smallest of the ways that ``plan`` allows."""
    ways = [
        Packed(Head(name, array.dtype, array.shape, values, coder, checked=payload is not None), payload, array)
        for values in analyse(array)
        for coder, payload in _codings(values, array, plan)
    ]
    return min(ways, key=lambda way: len(write_head(way.head, b"")) + len(way.payload or b""))


def unpack_one(head: Head, payload: bytes | memoryview, column: Head | None) -> tuple[Array, Array | None]:
    """The tensor, and the vector that is its matrix' last column, where ``column`` is the head of one.

    Raises ``ArtifactError`` for a payload that holds no such numbers.
    """
    values = head.values
    if values.kind is Kind.CONSTANT:
        return restore(values, head.dtype, head.shape), None
    if values.kind is Kind.RAW:
        reader = Reader(payload)
        array = decode_planes(reader, head.dtype, head.shape, _unmix)
        reader.end("planes")
        return array, None
    rows, columns = matrix_shape(head.shape, values.turned)
    levels = _levels(head, payload, rows, columns + (column is not None))
    if column is None:
        return restore(replace(values, levels=levels), head.dtype, head.shape), None
    last = np.ascontiguousarray(levels[:, -1]).reshape(1, -1)
    levels = np.ascontiguousarray(levels[:, :-1])
    return (
        restore(replace(values, levels=levels), head.dtype, head.shape),
        restore(replace(column.values, levels=last), column.dtype, column.shape),
    )


def check_column(column: Head, matrix: Head) -> None:
    """``ArtifactError`` where ``column`` cannot be the last column of ``matrix``."""
    fits = matrix.coder == MIXING and len(matrix.shape) > 1 and matrix.values.kind not in (Kind.CONSTANT, Kind.RAW)
    if not fits or matrix_shape(matrix.shape, matrix.values.turned)[0] != column.size:
        raise ArtifactError(f"weights: {column.name!r}: {matrix.name!r} has no room for it as its last column")


def _codings(values: Values, array: Array, plan: Plan) -> Iterator[tuple[int, bytes | None]]:
    """A finding as packed by each of the plan's coders, or by the first that can."""
    if values.kind is Kind.CONSTANT:
        yield PLANES, None
    elif values.kind is Kind.RAW:
        yield PLANES, encode_planes(array, _mix if MIXING in plan.coders else None)
    else:
        for coder in plan.coders:
            payload = _code(coder, values.levels, period(array.shape, values.turned))
            if payload is not None:
                yield coder, payload
                if not (plan.every and array.size <= SMALL):
                    return


def _code(coder: int, levels: Levels, columns_alike: int) -> bytes | None:
    """Whole numbers as bytes; ``None`` where a coder does not take them, or a reader would not."""
    if coder == PLANES:
        return encode_levels(levels)
    coded = encode_huffman(levels) if coder == HUFFMAN else encode_matrix(levels, columns_alike)
    return None if coded is None or _is_too_dense(levels.size, len(coded)) else coded


def _levels(head: Head, payload: bytes | memoryview, rows: int, columns: int) -> Levels:
    if head.coder == PLANES:
        return decode_levels(payload, rows, columns)
    if _is_too_dense(rows * columns, len(payload)):
        raise ArtifactError(f"weights: {head.name!r}: {len(payload)} bytes cannot hold {rows * columns} numbers")
    if head.coder == HUFFMAN:
        return decode_huffman(payload, rows, columns)
    if head.coder == MIXING:
        return decode_matrix(bytes(payload), rows, columns, period(head.shape, head.values.turned))
    raise ArtifactError(f"weights: {head.name!r}: expected a coder from 0 to 2, got {head.coder}")


def _mix(levels: Levels) -> bytes:
    return encode_matrix(levels)


def _unmix(data: memoryview, rows: int, columns: int) -> Levels:
    if _is_too_dense(rows * columns, len(data)):
        raise ArtifactError(f"weights: {len(data)} bytes cannot hold {rows * columns} numbers")
    return decode_matrix(bytes(data), rows, columns)


def _is_too_dense(size: int, coded: int) -> bool:
    return size > _SLACK + _MOST_RATIO * coded


def _join(column: Packed, matrix: Packed) -> tuple[Packed, Packed]:
    """A vector as the last column of the matrix after it, where that can be and is smaller; else both as they are."""
    levels, last = matrix.levels, column.levels
    if levels is None or last is None or matrix.array.ndim < 2 or last.size != len(levels):
        return column, matrix
    if matrix.head.coder != MIXING or levels.size > _MOST_JOINED:
        return column, matrix
    both = np.concatenate([levels, last.reshape(-1, 1)], axis=1)
    payload = _code(MIXING, both, period(matrix.array.shape, matrix.head.values.turned))
    apart = len(matrix.payload or b"") + len(column.payload or b"") + _APART_BYTES
    if payload is None or len(payload) >= apart:
        return column, matrix
    head = replace(column.head, coder=0, joined=True, checked=False)
    return replace(column, head=head, payload=None), replace(matrix, payload=payload)
