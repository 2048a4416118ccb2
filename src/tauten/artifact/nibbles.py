"""Two 4-bit numbers a byte: how an int8 weight that needs only 16 values is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tauten.core.tensor import Array
from tauten.errors import ArtifactError, ConfigError


def fits_nibbles(array: Array) -> bool:
    """Whether ``array`` is a matrix, or more, of int8 numbers that all lie in -8 to 7."""
    return array.dtype == np.int8 and array.ndim > 1 and array.size > 1 and _in_range(array)


def pack_nibbles(array: Array) -> Array:
    """The int8 numbers of ``array``, each in -8 to 7, as ``(ceil(size / 2),)`` bytes: even places in the low half.

    Raises ``ConfigError`` for another dtype or a number outside.
    """
    if array.dtype != np.int8 or (array.size and not _in_range(array)):
        raise ConfigError(f"4-bit weights: expected int8 numbers from -8 to 7, got {array.dtype.name}{array.shape}")
    flat = array.reshape(-1).view(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    packed: Array = flat[0::2] | (flat[1::2] << 4)
    return packed


def unpack_nibbles(packed: Array, shape: Sequence[int]) -> Array:
    """The int8 numbers that ``pack_nibbles`` packed, in ``shape``.

    Raises ``ArtifactError`` where the bytes are not as many as the shape needs.
    """
    size = math.prod(shape)
    if packed.dtype != np.uint8 or packed.ndim != 1 or len(packed) != (size + 1) // 2:
        raise ArtifactError(
            f"4-bit weights: expected {(size + 1) // 2} bytes for shape {tuple(shape)}, "
            f"got {packed.dtype.name}{packed.shape}"
        )
    both = np.empty(2 * len(packed), np.uint8)
    halves: Any = packed
    both[0::2], both[1::2] = halves & 15, halves >> 4
    # Four bits in two's complement: 8 to 15 stand for -8 to -1.
    numbers: Array = ((both[:size] ^ 8).astype(np.int8) - 8).reshape(shape)
    return numbers


def _in_range(array: Array) -> bool:
    return -8 <= int(array.min()) <= int(array.max()) <= 7
