"""The seam between named arrays and the bytes of a weights file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tauten.core.tensor import Array, Arrays


class Codec(Protocol):
    """Codes named arrays into one byte string.

    ``suffix`` ends the weights file's name. ``decode(encode(x))`` is ``x``, names, dtypes, shapes and bits alike,
    and the same arrays always give the same bytes.

    A codec may have one method more, ``coded_bytes(data, limit_bytes=None)``: what each array takes in ``data``, by
    name. Without it, reports leave that out.
    """

    suffix: str

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        """The arrays as bytes; ``ConfigError`` for an array that it cannot code. The arrays are left as they are."""
        ...

    def decode(self, data: bytes | bytearray, limit_bytes: int | None = None) -> Arrays:
        """The arrays again; ``ArtifactError`` for bytes that ``encode`` did not make, within bounded time and memory.

        ``limit_bytes`` is the most that the arrays may hold together; more is refused before it is allocated. Left out,
        it is ``default_limit(len(data))``. The arrays can be written to. A ``bytearray`` is given away: they may be
        views into it.
        """
        ...


def default_limit(coded_bytes: int) -> int:
    """What bytes of unknown origin may decode to: more than weights of a model ever shrink, and not without end."""
    return max(64 * 2**20, 4096 * coded_bytes)
