"""Memory that two processes share: one writes, the other reads, and no byte is copied between them.

It has no name in any folder: the kernel frees it when the last of the two has ended, however that came about.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Final, NamedTuple, get_args

import numpy as np

from tauten.core.tensor import Array, DType, TensorSpec
from tauten.run.serve.protocol.elements import BytesSpec, to_objects, unpack_elements

ALIGNMENT: Final = 64
"""Where a tensor begins: a multiple of a cache line, which is aligned for every dtype."""
_SMALLEST_BYTES: Final = 1 << 16
_DTYPES: Final = {name: np.dtype(name) for name in get_args(DType)}  # to make one by its name takes a microsecond


class Place(NamedTuple):
    """Where a tensor lies in its region, in bytes, and its shape."""

    offset: int
    size: int
    shape: tuple[int, ...]


def make_region(size: int) -> tuple[mmap.mmap, int]:
    """Writable memory of at least ``size`` bytes, and the descriptor by which the other process maps it.

    The size is a power of two, so that growing tensors seldom need another. The descriptor is the caller's to close.
    Raises ``OSError`` where there is no more memory.
    """
    size = max(_SMALLEST_BYTES, 1 << (size - 1).bit_length())
    descriptor = os.memfd_create("tauten", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        # Memory that were cut while the other process reads it would end that process.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return mmap.mmap(descriptor, size), descriptor
    except BaseException:
        os.close(descriptor)
        raise


def map_region(descriptor: int) -> mmap.mmap:
    """What the other process made, to be read. Closes the descriptor."""
    try:
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)


def lay_out(sizes: Sequence[tuple[int, tuple[int, ...]]]) -> tuple[list[Place], int]:
    """Tensors of so many bytes and such shapes, one behind the other, and where the last one ends (1 at least)."""
    places, at = [], 0
    for size, shape in sizes:
        places.append(Place(at, size, shape))
        at += size + -size % ALIGNMENT
    return places, at or 1


def read_tensor(spec: TensorSpec, region: mmap.mmap | bytes | memoryview, place: Place) -> Array:
    """A tensor as it lies in shared memory: a view of it, or a copy where its elements are bytes."""
    if isinstance(spec, BytesSpec):
        data = memoryview(region)[place.offset : place.offset + place.size]
        return to_objects(unpack_elements(spec.name, place.shape, data), place.shape)
    dtype = _DTYPES[spec.dtype]
    return np.frombuffer(region, dtype, place.size // dtype.itemsize, place.offset).reshape(place.shape)
