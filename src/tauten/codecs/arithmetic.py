"""The smallest files: an adaptive arithmetic coder that mixes many contexts, for whole numbers of any kind.

Small tensors are tried in every way there is, and a bias as one more column of its layer's matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tauten.codecs import container
from tauten.core.tensor import Array, Arrays

__all__ = ["ARITHMETIC"]

_PLAN: Final = container.Plan((container.MIXING, container.HUFFMAN, container.PLANES), every=True, joins=True)


class Arithmetic:
    """Context mixing in the container of coded weights."""

    suffix = container.SUFFIX

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        return container.encode(arrays, _PLAN)

    def decode(self, data: bytes | bytearray, limit_bytes: int | None = None) -> Arrays:
        return container.decode(data, limit_bytes)

    def coded_bytes(self, data: bytes | bytearray, limit_bytes: int | None = None) -> dict[str, int]:
        """What each tensor takes in the file."""
        return container.coded_bytes(data, limit_bytes)


ARITHMETIC = Arithmetic()
