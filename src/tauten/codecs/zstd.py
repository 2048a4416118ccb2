"""The fast choice: whole numbers where there are any, else the bits, in byte planes packed by Zstandard."""

from __future__ import annotations

from collections.abc import Mapping

from tauten.codecs import container
from tauten.core.tensor import Array, Arrays

__all__ = ["ZSTD"]


class Zstd:
    """Byte planes and Zstandard in the container of coded weights."""

    suffix = container.SUFFIX

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        return container.encode(arrays, container.Plan((container.PLANES,)))

    def decode(self, data: bytes | bytearray, limit_bytes: int | None = None) -> Arrays:
        return container.decode(data, limit_bytes)

    def coded_bytes(self, data: bytes | bytearray, limit_bytes: int | None = None) -> dict[str, int]:
        """What each tensor takes in the file."""
        return container.coded_bytes(data, limit_bytes)


ZSTD = Zstd()
