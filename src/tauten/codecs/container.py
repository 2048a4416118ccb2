"""The one format of coded weights: a head, then each tensor with its numbers as one of the coders packed them.

The page ``docs/codec-format.md`` tells every byte, with an example. In short: magic number and version; what all
tensors hold together when decoded, so that a limit is held before anything is allocated; and the tensors, sorted by
name, each with its type, its shape, how its numbers follow from whole numbers (``_values.Kind``), those as packed, and
a checksum. Nothing points elsewhere, so that tensors are written and read one after the other.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from tauten.codecs._ahead import ahead
from tauten.codecs._entries import DTYPES, Head, has_room, read_head, squeezed, write_head
from tauten.codecs._packing import HUFFMAN, MIXING, PLANES, Plan, check_column, pack_all, unpack_one
from tauten.codecs._values import Kind
from tauten.codecs._wire import Reader, varint
from tauten.codecs.codec import default_limit
from tauten.core.environment import cores
from tauten.core.tensor import Array, Arrays
from tauten.errors import ArtifactError, ConfigError

__all__ = [
    "HUFFMAN", "MIXING", "PLANES", "SUFFIX", "Plan", "Stored", "coded_bytes", "decode", "encode", "entries",
    "iter_decode", "iter_encode",
]  # fmt: skip

MAGIC: Final = b"TTNW"
VERSION: Final = 1
SUFFIX: Final = ".coded"
_CHECK_BYTES: Final = 4
_ALONE_BYTES: Final = 4 * 2**20
"""Weights of fewer bytes are coded by one thread, which is done before others have begun."""


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in the file: its head, its bytes, its numbers, still packed, among them, and its checksum.

    ``coded_bytes`` is all it takes there. Where its numbers are the next tensor's last column they count there.
    """

    head: Head
    raw: memoryview
    payload: memoryview
    check: int | None
    coded_bytes: int


def encode(arrays: Mapping[str, Array], plan: Plan) -> bytes:
    """``arrays`` as bytes. Raises ``ConfigError`` for a name or an array that the format has no room for."""
    return b"".join(iter_encode(arrays, plan))


def decode(data: bytes | bytearray | memoryview, limit_bytes: int | None = None) -> Arrays:
    """The arrays again.

    Raises ``ArtifactError`` for other bytes, and before anything is allocated for arrays of more than ``limit_bytes``.
    """
    return dict(iter_decode(data, limit_bytes))


def iter_encode(arrays: Mapping[str, Array], plan: Plan) -> Iterator[bytes]:
    """The same bytes, a tensor at a time, to be written one after the other."""
    names = sorted(arrays)
    for name in names:
        squeezed(name)
        if arrays[name].dtype.name not in DTYPES or not has_room(arrays[name].shape):
            raise ConfigError(f"weights: {name!r}: the format has no room for {arrays[name].dtype}{arrays[name].shape}")
    total = sum(array.nbytes for array in arrays.values())
    yield MAGIC + bytes([VERSION]) + varint(total) + varint(len(names))
    previous, check = b"", 0
    pending: list[Array] = []
    threads = cores() if total > _ALONE_BYTES else 1
    for packed in pack_all(((name, _native(arrays[name])) for name in names), plan, threads):
        name = packed.head.name
        head = replace(packed.head, checked=packed.head.checked or name == names[-1])
        raw = write_head(head, previous)
        if packed.payload is not None:
            raw += varint(len(packed.payload))
        raw += packed.payload or b""
        previous, check = squeezed(name), zlib.crc32(raw, check)
        pending.append(packed.array)
        if head.checked:
            raw += _checksum(pending, check).to_bytes(_CHECK_BYTES, "little")
            pending, check = [], 0
        yield raw


def iter_decode(data: bytes | bytearray | memoryview, limit_bytes: int | None = None) -> Iterator[tuple[str, Array]]:
    """Names and arrays, one after the other, each once its checksum was found right."""
    pending: Arrays = {}
    check = 0
    threads = cores() if len(data) > _ALONE_BYTES // 4 else 1
    for together, arrays in ahead(_unpacked, _with_columns(entries(data, limit_bytes)), threads):
        for stored in together:
            check = zlib.crc32(stored.raw, check)
        pending |= arrays
        last = together[-1]
        if last.check is not None:
            if _checksum(pending.values(), check) != last.check:
                raise ArtifactError(f"weights: {last.head.name!r}: its numbers are not those that were coded: damaged")
            yield from pending.items()
            pending, check = {}, 0


def entries(data: bytes | bytearray | memoryview, limit_bytes: int | None = None) -> Iterator[Stored]:
    """Each tensor as it lies in the file, its numbers still packed.

    Raises ``ArtifactError`` where the format is not held; checksums are left to ``iter_decode``.
    """
    reader = Reader(data)
    magic = bytes(reader.take(min(len(MAGIC), reader.left)))
    if magic != MAGIC:
        raise ArtifactError(f"weights: expected bytes that begin with {MAGIC!r}, got {magic!r}")
    version = reader.byte()
    if version != VERSION:
        raise ArtifactError(f"weights: expected format {VERSION}, got {version}: made by another version of Tauten")
    total, count = reader.varint(), reader.varint()
    limit = default_limit(len(reader.view)) if limit_bytes is None else limit_bytes
    if total > limit:
        raise ArtifactError(f"weights: expected arrays of at most {limit} bytes, got {total}")
    before: Head | None = None
    for place in range(count):
        start = reader.place
        head = read_head(reader, squeezed(before.name) if before else b"", total)
        if before is not None and head.name <= before.name:
            raise ArtifactError(f"weights: expected names in order, each once, got {before.name!r}, {head.name!r}")
        if before is not None and before.joined:
            check_column(before, head)
        if place + 1 == count and not head.checked:
            raise ArtifactError(f"weights: {head.name!r}: expected a checksum after the last tensor")
        total -= head.nbytes
        yield _stored(reader, start, head)
        before = head
    reader.end("the tensors")
    if total:
        raise ArtifactError(f"weights: expected {total} more bytes of numbers, got the end")


def coded_bytes(data: bytes | bytearray | memoryview, limit_bytes: int | None = None) -> dict[str, int]:
    """What each tensor takes in the file, by name. Raises ``ArtifactError`` where the format is not held."""
    return {stored.head.name: stored.coded_bytes for stored in entries(data, limit_bytes)}


def _with_columns(found: Iterable[Stored]) -> Iterator[tuple[Stored, ...]]:
    """Each tensor, a column together with its matrix."""
    before: tuple[Stored, ...] = ()
    for stored in found:
        if stored.head.joined:
            before = (stored,)
        else:
            yield (*before, stored)
            before = ()


def _unpacked(together: tuple[Stored, ...]) -> tuple[tuple[Stored, ...], Arrays]:
    """The same, and their arrays in order."""
    stored, column = together[-1], together[0].head if len(together) > 1 else None
    array, last = unpack_one(stored.head, stored.payload, column)
    if column is None or last is None:
        return together, {stored.head.name: array}
    return together, {column.name: last, stored.head.name: array}


def _stored(reader: Reader, start: int, head: Head) -> Stored:
    packed = head.values.kind is not Kind.CONSTANT and not head.joined
    length = reader.varint() if packed else 0
    payload = reader.take(length)
    raw = reader.view[start : reader.place]
    check = int.from_bytes(reader.take(_CHECK_BYTES), "little") if head.checked else None
    return Stored(head, raw, payload, check, reader.place - start)


def _native(array: Array) -> Array:
    # asarray, because ascontiguousarray makes a scalar a vector.
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _checksum(arrays: Iterable[Array], check: int) -> int:
    for array in arrays:
        flat = array.reshape(-1)
        check = zlib.crc32(flat.astype(flat.dtype.newbyteorder("<"), copy=False).view(np.uint8).data, check)
    return check
