"""The compiled coder where there is one, and its Python twin where there is none; both give the same bits.

The library is compiled when Tauten is installed (``hatch_build.py``) and lies beside this file. ``TAUTEN_NATIVE=0``
forces the twin, which is some hundred times slower.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from tauten.errors import ArtifactError, TautenError

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Settings = tuple[int, ...]

SETTINGS: Final = 10
"""Numbers that a stream's header holds; ``_mixing.py`` names them."""

FORMAT: Final = 1
"""What ``_mixing.c`` calls its format: a library that was compiled from an older file must not be used."""

_SUFFIX: Final = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_NO_MEMORY: Final = -2


class Coder(Protocol):
    """What both give. ``q`` lies as the settings say: transposed already where they say so."""

    def encode(self, q: Int32, shape: tuple[int, int], period: int, settings: Settings) -> bytes:
        """The coded bytes of a matrix whose own shape is ``shape`` = (rows, columns)."""
        ...

    def decode(self, data: bytes, shape: tuple[int, int], period: int) -> tuple[Int32, Settings]:
        """The matrix, flat and in the order it was scanned, and the settings; ``ArtifactError`` for other bytes."""
        ...

    def measure(self, q: Int32, shape: tuple[int, int], period: int, settings: Settings, costs: Float32 | None) -> int:
        """What ``encode`` would take in all, in 2^-16 bits.

        ``costs`` (elements, 1) takes each element's bits, ``costs`` (elements, 3) those of its alternatives.
        """
        ...


@cache
def coder() -> Coder:
    """The compiled coder, or the twin."""
    if os.environ.get("TAUTEN_NATIVE") != "0":
        path = Path(__file__).with_name(f"_mixing_native{_SUFFIX}")
        try:
            return Native(ctypes.CDLL(str(path)))
        except (OSError, AttributeError):
            pass  # not compiled here, or for another machine, or of another version
    from tauten.codecs._mixing_twin import TWIN

    return TWIN


class Native:
    """The library, called without a copy of the matrix; it holds no lock, so threads may decode side by side."""

    def __init__(self, library: ctypes.CDLL) -> None:
        size, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64
        library.tauten_mixing_prepare.argtypes = []
        self._encode = library.tauten_mixing_encode
        self._encode.argtypes = [pointer, size, size, size, pointer, pointer, size]
        self._decode = library.tauten_mixing_decode
        self._decode.argtypes = [ctypes.c_char_p, size, size, size, size, pointer, pointer]
        self._measure = library.tauten_mixing_measure
        self._measure.argtypes = [pointer, size, size, size, pointer, pointer, size]
        for function in (self._encode, self._decode, self._measure, library.tauten_mixing_prepare):
            function.restype = number
        if library.tauten_mixing_prepare() != FORMAT:
            raise OSError("the library is of another version")

    def encode(self, q: Int32, shape: tuple[int, int], period: int, settings: Settings) -> bytes:
        held = np.array(settings, np.int32)
        room = 64 + q.size // 2
        while True:
            out = np.empty(room, np.uint8)
            made = self._encode(q.ctypes.data, *shape, period, held.ctypes.data, out.ctypes.data, room)
            if made >= 0:
                return out[:made].tobytes()
            if made == _NO_MEMORY:
                raise MemoryError
            room = 64 + 10 * q.size if room < 64 + 10 * q.size else 2 * room

    def decode(self, data: bytes, shape: tuple[int, int], period: int) -> tuple[Int32, Settings]:
        held = np.zeros(SETTINGS, np.int32)
        q = np.empty(shape[0] * shape[1], np.int32)
        fault = self._decode(data, len(data), *shape, period, held.ctypes.data, q.ctypes.data)
        if fault == _NO_MEMORY:
            raise MemoryError
        if fault < 0:
            raise damaged()
        return q, tuple(held.tolist())

    def measure(self, q: Int32, shape: tuple[int, int], period: int, settings: Settings, costs: Float32 | None) -> int:
        held = np.array(settings, np.int32)
        pointer, width = (None, 0) if costs is None else (costs.ctypes.data, costs.shape[-1])
        bits: int = self._measure(q.ctypes.data, *shape, period, held.ctypes.data, pointer, width)
        if bits == _NO_MEMORY:
            raise MemoryError
        if bits < 0:
            raise TautenError(f"the arithmetic coder ended with {bits}; please report this")
        return bits


def damaged() -> ArtifactError:
    """What bytes raise that the encoder did not make for a matrix of that shape."""
    return ArtifactError(
        "weights: expected the arithmetic code of a matrix, got bytes that end too early or too late or say too much"
    )
