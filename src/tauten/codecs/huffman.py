"""Canonical Huffman codes, with runs of zeros in sparse layers: what Deep Compression ends in (Han, Mao, Dally, 2016).

Floats that are neither on a grid nor shared stay bits, in byte planes as the fast choice packs them.
"""

from __future__ import annotations

from collections.abc import Mapping

from tauten.codecs import container
from tauten.core.tensor import Array, Arrays

__all__ = ["HUFFMAN"]


class Huffman:
    """Huffman's codes in the container of coded weights."""

    suffix = container.SUFFIX

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        # Planes take what has more values than a table has room for.
        return container.encode(arrays, container.Plan((container.HUFFMAN, container.PLANES)))

    def decode(self, data: bytes | bytearray, limit_bytes: int | None = None) -> Arrays:
        return container.decode(data, limit_bytes)

    def coded_bytes(self, data: bytes | bytearray, limit_bytes: int | None = None) -> dict[str, int]:
        """What each tensor takes in the file."""
        return container.coded_bytes(data, limit_bytes)


HUFFMAN = Huffman()
