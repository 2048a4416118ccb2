"""The datatype BYTES: elements of any length, such as texts and files.

In memory an array of ``bytes`` objects (dtype ``object``); as bytes each element is its length, in four bytes
little-endian, and the element itself, row by row. Models have no such tensors: what stands before and after a model
may.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from struct import Struct, error
from typing import Any, Final, Literal

import numpy as np

from tauten.core.tensor import Array, TensorSpec
from tauten.errors import InputError

BYTES: Final = "bytes"
_LENGTH: Final = Struct("<I")


class BytesSpec(TensorSpec):
    """Name and shape of an input or output whose elements are bytes.

    >>> BytesSpec(name="text", shape=("batch",)).dtype
    'bytes'
    """

    dtype: Literal["bytes"] = BYTES  # type: ignore[assignment]  # no engine takes it, so it is no type of the base


def pack_elements(elements: Iterable[bytes]) -> bytes:
    """Each element behind its length.

    >>> pack_elements([b"ab", b""]).hex()
    '02000000616200000000'
    """
    parts: list[bytes] = []
    for element in elements:
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def unpack_elements(name: str, shape: Sequence[int], data: bytes | bytearray | memoryview) -> list[bytes]:
    """The elements of a tensor of ``shape``, in order.

    Raises ``InputError`` where a length points beyond the end, or the elements are more or fewer than the shape says.

    >>> unpack_elements("text", (2,), bytes.fromhex("02000000616200000000"))
    [b'ab', b'']
    """
    view = memoryview(data)
    found: list[bytes] = []
    at, end, wanted = 0, len(view), math.prod(shape)
    while at < end:
        try:
            (length,) = _LENGTH.unpack_from(view, at)
        except error:
            raise InputError(f"{name}: expected 4 bytes of length at byte {at}, only {end - at} are left") from None
        at += _LENGTH.size + length
        if at > end:
            raise InputError(f"{name}: element {len(found)} should have {length} bytes, {at - end} of them are missing")
        if len(found) == wanted:
            raise InputError(f"{name}: expected {wanted} elements for shape {list(shape)}, got more")
        found.append(bytes(view[at - length : at]))
    if len(found) != wanted:
        raise InputError(f"{name}: expected {wanted} elements for shape {list(shape)}, got {len(found)}")
    return found


class Packed(bytes):
    """Elements as bytes that were checked: a call's buffer whose rows are not all of one length."""


def bounds(data: Packed, rows: int) -> list[int]:
    """Where each of ``rows`` rows begins, and where the last one ends. The rows have as many elements each.

    >>> bounds(Packed(pack_elements([b"ab", b"", b"c", b"d"])), 2)
    [0, 10, 20]
    """
    at, ends = 0, [0]
    while at < len(data):
        at += _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
        ends.append(at)
    each = (len(ends) - 1) // rows
    return ends[::each] if each else [0] * (rows + 1)


def to_objects(elements: Sequence[Any], shape: Sequence[int]) -> Array:
    """An array of ``shape`` with ``elements`` in it, in order, as they are."""
    array = np.empty(len(elements), object)
    for index, element in enumerate(elements):
        array[index] = element
    return array.reshape(tuple(shape))
