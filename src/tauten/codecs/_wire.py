"""Bytes that are read without trust and written without waste: whole numbers in as few bytes as they need."""

from __future__ import annotations

from typing import Final

from tauten.errors import ArtifactError

_MOST_BITS: Final = 63


class Reader:
    """Takes bytes from the front of ``data``; ``ArtifactError`` for what is not there."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.view = memoryview(data).cast("B")
        self.place = 0

    @property
    def left(self) -> int:
        """How many bytes are still to come."""
        return len(self.view) - self.place

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes."""
        if count > self.left:
            raise ArtifactError(f"weights: expected {count} more bytes at {self.place}, found {self.left}")
        self.place += count
        return self.view[self.place - count : self.place]

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """The next whole number: seven bits a byte, the lowest first, the high bit on all bytes but the last."""
        start, value, shift = self.place, 0, 0
        while True:
            part = self.byte()
            value |= (part & 127) << shift
            shift += 7
            if part < 128:
                # One number is one sequence of bytes: no zeros at the end, nothing beyond 63 bits.
                if (part == 0 and shift > 7) or value >> _MOST_BITS:
                    raise ArtifactError(f"weights: expected a whole number at {start}, found no such bytes")
                return value
            if shift > _MOST_BITS:
                raise ArtifactError(f"weights: expected a whole number at {start}, found no such bytes")

    def signed(self) -> int:
        """The next whole number with a sign."""
        value = self.varint()
        return -((value + 1) >> 1) if value & 1 else value >> 1

    def end(self, what: str) -> None:
        """``ArtifactError`` where bytes are left."""
        if self.left:
            raise ArtifactError(f"weights: {what}: {self.left} bytes stand after its end")


def varint(value: int) -> bytes:
    """A whole number from 0 on, as ``Reader.varint`` takes it.

    >>> varint(5), varint(300)
    (b'\\x05', b'\\xac\\x02')
    """
    found = bytearray()
    while value > 127:
        found.append((value & 127) | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def signed(value: int) -> bytes:
    """A whole number with a sign: 0, -1, 1, -2, 2, … become 0, 1, 2, 3, 4, …"""
    return varint(-2 * value - 1 if value < 0 else 2 * value)
