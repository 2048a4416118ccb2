"""An array's bits, a byte plane at a time, each packed by Zstandard (Collet and Kucherawy, 2016) where that helps.

Numbers side by side differ in their low bytes and share their high ones: apart, each plane has statistics of its own.
A float's bits are turned by one, so that its exponent fills the first plane, and its sign ends the last.

Bytes: for each plane, the highest first, a head (0: as it is; else the packed size, times two, and one more where
another coder packed it) and the plane.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import zstandard

from tauten.codecs._values import Levels
from tauten.codecs._wire import Reader, varint
from tauten.core.tensor import Array
from tauten.errors import ArtifactError

Encode = Callable[[Levels], bytes]
Decode = Callable[[memoryview, int, int], Levels]

_BEST: Final = 19
_LARGE: Final = 32 * 2**20
_QUICK: Final = 9
"""The level for planes above ``_LARGE`` bytes: minutes would buy a few parts in a hundred."""
_WINDOW_LOG: Final = 23
_DESCRIPTOR: Final = b"\0"
"""Begins each frame as ``_compressor`` writes it: no size, no checksum, no dictionary."""
_PROBE: Final = 2**16
_MOST_RATIO: Final = 2**15
"""No block of Zstandard tells more bytes with one of its own."""
_SLACK: Final = 2**17
_MIDDLE: Final = 128
_MOST_MODELLED: Final = 2**20


def encode_planes(array: Array, model: Encode | None = None) -> bytes:
    """``array``, native byte order and C order, as bytes. ``model`` codes a matrix of whole numbers, where given."""
    rows = array.reshape(array.shape[0] if array.ndim > 1 else 1, -1)
    return b"".join(_plane(plane, rows.shape, model if first else None) for first, plane in _planes(array))


def decode_planes(reader: Reader, dtype: np.dtype[Any], shape: tuple[int, ...], model: Decode | None = None) -> Array:
    """The array again. Raises ``ArtifactError`` for bytes that hold no such array."""
    size, width = math.prod(shape), dtype.itemsize
    heads = Reader(reader.view[reader.place :])
    if size > _SLACK + _MOST_RATIO * heads.left:
        raise ArtifactError(f"weights: {heads.left} bytes cannot hold {size} numbers")
    out = np.zeros((size, width), np.uint8)
    for place in reversed(range(width)):
        out[:, place] = _unplane(reader, size, shape[0] if len(shape) > 1 else 1, model)
    words = out.reshape(-1).view(f"<u{width}").astype(f"=u{width}", copy=False)
    if dtype.kind == "f":
        _turn_back(words, 8 * width)
    elif dtype.kind == "b" and size and words.max() > 1:
        raise ArtifactError("weights: expected booleans, found other bytes")
    found: Array = words.view(dtype).reshape(shape)
    return found


def encode_levels(levels: Levels) -> bytes:
    """Whole numbers in as many planes as the largest needs, signs folded in."""
    folded = _fold(levels)
    width = 1 if folded.max() < 2**8 else 2 if folded.max() < 2**16 else 4
    return bytes([width]) + encode_planes(folded.astype(f"u{width}"))


def decode_levels(data: bytes | memoryview, rows: int, columns: int) -> Levels:
    """The matrix that ``encode_levels`` got."""
    reader = Reader(data)
    width = reader.byte()
    if width not in (1, 2, 4):
        raise ArtifactError(f"weights: expected whole numbers of 1, 2 or 4 bytes, got {width}")
    folded: Any = decode_planes(reader, np.dtype(f"u{width}"), (rows, columns))
    reader.end("planes")
    # 0, 1, 2, 3, 4 stand for 0, -1, 1, -2, 2.
    levels: Levels = (folded >> 1).astype(np.int32)
    np.bitwise_xor(levels, -(folded & 1).astype(np.int32), out=levels)
    return levels


def pack(data: bytes | bytearray | memoryview, level: int) -> bytes:
    """Bytes in one frame of Zstandard, less what stands elsewhere: magic number, descriptor, size and checksum."""
    return _compressor(len(data), level).compress(data)[len(_DESCRIPTOR) :]


def unpack(data: bytes | memoryview, size: int) -> bytes:
    """The ``size`` bytes of a frame that ``pack`` made; ``ArtifactError`` where it holds no such bytes."""
    if size > _SLACK + _MOST_RATIO * len(data):
        raise ArtifactError(f"expected {size} bytes, which {len(data)} packed ones cannot hold")
    unpacker = zstandard.ZstdDecompressor(max_window_size=2**_WINDOW_LOG, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    try:
        # The descriptor says that the frame states no size of its own, which would be allocated unseen.
        found = unpacker.decompress(_DESCRIPTOR + data, max_output_size=max(size, 1), allow_extra_data=False)
    except zstandard.ZstdError as fault:
        raise ArtifactError(f"packed bytes are damaged: {fault}") from None
    if len(found) != size:
        raise ArtifactError(f"expected {size} bytes, got {len(found)}")
    return found


def _planes(array: Array) -> list[tuple[bool, Array]]:
    width = array.dtype.itemsize
    words: Any = array.reshape(-1).view(f"u{width}")
    if array.dtype.kind == "f":
        words = (words << 1) | (words >> (8 * width - 1))
    split = words.astype(f"<u{width}", copy=False).view(np.uint8).reshape(-1, width)
    return [(place == width - 1, np.ascontiguousarray(split[:, place])) for place in reversed(range(width))]


def _plane(plane: Array, shape: tuple[int, ...], model: Encode | None) -> bytes:
    best, head = plane.tobytes(), 0
    if _is_worth_packing(plane):
        packed = pack(best, _BEST if plane.size <= _LARGE else _QUICK)
        if len(packed) < len(best):
            best, head = packed, 2 * len(packed)
    if model is not None and plane.size <= _MOST_MODELLED:
        modelled = model((plane.astype(np.int32) - _MIDDLE).reshape(shape))
        if len(modelled) < len(best):
            best, head = modelled, 2 * len(modelled) + 1
    return varint(head) + best


def _unplane(reader: Reader, size: int, rows: int, model: Decode | None) -> Array:
    head = reader.varint()
    if head == 0:
        return np.frombuffer(reader.take(size), np.uint8)
    part = reader.take(head >> 1)
    if head & 1:
        if model is None or not size:
            raise ArtifactError("weights: expected a plane of Zstandard")
        levels = model(part, rows, size // rows)
        if levels.min() < -_MIDDLE or levels.max() >= _MIDDLE:
            raise ArtifactError("weights: expected bytes in a plane, found other numbers")
        modelled: Array = (levels.reshape(-1) + _MIDDLE).astype(np.uint8)
        return modelled
    return np.frombuffer(unpack(part, size), np.uint8)


def _is_worth_packing(plane: Array) -> bool:
    """Whether a sample of a large plane packs at all: the low bits of trained floats are noise."""
    if plane.size <= 4 * _PROBE:
        return True
    starts = (0, (plane.size - _PROBE) // 2, plane.size - _PROBE)
    return any(len(pack(plane[at : at + _PROBE].tobytes(), 1)) < 0.99 * _PROBE for at in starts)


def _compressor(size: int, level: int) -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=size,
        window_log=min(_WINDOW_LOG, max(10, size.bit_length())),
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=0,
        write_checksum=0,
        write_dict_id=0,
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def _fold(levels: Levels) -> Any:
    return ((levels << 1) ^ (levels >> 31)).view(np.uint32)


def _turn_back(words: Any, bits: int) -> None:
    """Turn the bits of each word right by one, in place, a part at a time."""
    for start in range(0, words.size, 2**20):
        part = words[start : start + 2**20]
        part[:] = (part >> 1) | (part << (bits - 1))
