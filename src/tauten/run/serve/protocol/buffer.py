"""What tensors come as, and which requests fit together."""

from __future__ import annotations

from typing import Final

Buffer = bytes | bytearray | memoryview
"""Elements of a tensor, row by row, in this machine's byte order."""

ALONE: Final = object()
"""The group of a request that shares its batch with none."""
