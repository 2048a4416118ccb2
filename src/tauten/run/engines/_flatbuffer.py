"""Reads FlatBuffers by hand, every offset held against the end: for files from outside that are looked at, not run."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tauten.errors import ArtifactError

_LONGEST: Final = 1 << 20  # entries of one vector: far more than a real file has, and soon over for one that lies


@dataclass(frozen=True)
class Table:
    """A table of a FlatBuffer: its fields are asked for by their place in the schema, from 0.

    Raises ``ArtifactError`` where an offset leads outside the bytes.
    """

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> Table:
        return cls(data, _number(data, 0, "<I"))

    def _field(self, index: int) -> int | None:
        """Where a field stands; ``None`` where it has its default."""
        there = self.at - _number(self.data, self.at, "<i")
        if 4 + 2 * index >= _number(self.data, there, "<H"):
            return None
        offset = _number(self.data, there + 4 + 2 * index, "<H")
        return self.at + offset if offset else None

    def number(self, index: int, kind: str = "<I") -> int:
        """An integer, of a ``struct`` format; 0 where it is left out."""
        at = self._field(index)
        return 0 if at is None else _number(self.data, at, kind)

    def table(self, index: int) -> Table | None:
        at = self._field(index)
        return None if at is None else Table(self.data, at + _number(self.data, at, "<I"))

    def bytes(self, index: int) -> bytes:
        """The bytes of a vector of them; none where it is left out."""
        at = self._field(index)
        if at is None:
            return b""
        at += _number(self.data, at, "<I")
        size = _number(self.data, at, "<I")
        if size > len(self.data) - at - 4:
            raise ArtifactError("a FlatBuffer's vector leads outside of it")
        return self.data[at + 4 : at + 4 + size]

    def text(self, index: int) -> str:
        """A text; an empty one where it is left out."""
        return self.bytes(index).decode("utf-8", "replace")

    def tables(self, index: int) -> Iterator[Table]:
        """The tables of a vector, in order."""
        at = self._field(index)
        if at is None:
            return
        at += _number(self.data, at, "<I")
        size = _number(self.data, at, "<I")
        if size > _LONGEST:
            raise ArtifactError(f"a FlatBuffer's vector says it has {size} entries")
        for place in range(at + 4, at + 4 + 4 * size, 4):
            yield Table(self.data, place + _number(self.data, place, "<I"))


def _number(data: bytes, at: int, kind: str) -> int:
    if not 0 <= at <= len(data) - struct.calcsize(kind):
        raise ArtifactError(f"a FlatBuffer of {len(data)} bytes leads to byte {at}, outside of it")
    return int(struct.unpack_from(kind, data, at)[0])
