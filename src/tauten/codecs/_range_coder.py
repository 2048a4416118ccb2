"""The range coder and the tables of ``_mixing.c`` in plain Python integers; see ``_mixing_twin.py``."""

from __future__ import annotations

from typing import Final

from tauten.codecs._native import damaged

REACH: Final = 2816
SHARE: Final = tuple(131072 // (2 * n + 3) for n in range(1024))


def _squash() -> list[int]:
    table, power = [0] * (2 * REACH + 1), 1 << 24
    for x in range(REACH + 1):
        above = min((power << 16) // (power + (1 << 24)), 65535)
        table[REACH + x], table[REACH - x] = above, 65536 - above
        power = (power * 8421440) >> 23
    return table


def _stretch() -> list[int]:
    table, x = [], -REACH
    for p in range(4096):
        while x < REACH and SQUASH[REACH + x] < p * 16 + 8:
            x += 1
        table.append(x)
    return table


def _logs() -> list[int]:
    table = [13 << 16]
    for p in range(1, 4097):
        y, log, part = p << 18, 0, 0
        while y < 1 << 30:
            y, log = y << 1, log + (1 << 16)
        for i in range(15, -1, -1):
            y = (y * y) >> 30
            if y >> 31:
                y, part = y >> 1, part | 1 << i
        table.append(log - part)
    return table


SQUASH: Final = _squash()
STRETCH: Final = _stretch()
LOGS: Final = _logs()


def bits_of(p: int) -> int:
    """What a bit of probability p (2^-16) takes, in 2^-16 bits."""
    return LOGS[p] + (4 << 16) if p < 4096 else LOGS[p >> 4]


class Encoder:
    """The range coder's writing half."""

    decodes = False

    def __init__(self) -> None:
        self.out = bytearray()
        self._low, self._range = 0, 0xFFFFFFFF

    def bit(self, p: int, bit: int) -> int:
        bound = (self._range * p) >> 16
        if bit:
            self._range = bound
        else:
            self._low += bound
            self._range -= bound
            if self._low >> 32:
                self._low &= 0xFFFFFFFF
                self._carry()
        while self._range < 1 << 24:
            self.out.append(self._low >> 24)
            self._low, self._range = (self._low << 8) & 0xFFFFFFFF, self._range << 8
        return bit

    def _carry(self) -> None:
        i = len(self.out) - 1
        while i >= 0 and self.out[i] == 255:
            self.out[i] = 0
            i -= 1
        if i >= 0:
            self.out[i] += 1

    def finish(self) -> bytes:
        self._low += 0xFFFFFF
        if self._low >> 32:
            self._carry()
        self.out.append((self._low >> 24) & 255)
        return bytes(self.out)


class Decoder:
    """The range coder's reading half."""

    decodes = True

    def __init__(self, data: bytes) -> None:
        self._data, self._place, self._range = data, 4, 0xFFFFFFFF
        self._code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def bit(self, p: int, _: int) -> int:
        bound = (self._range * p) >> 16
        bit = self._code < bound
        if bit:
            self._range = bound
        else:
            self._code -= bound
            self._range -= bound
        while self._range < 1 << 24:
            if self._place >= len(self._data) + 3:
                raise damaged()
            following = self._data[self._place] if self._place < len(self._data) else 0
            self._place += 1
            self._code, self._range = (self._code << 8 | following) & 0xFFFFFFFF, self._range << 8
        return int(bit)

    def finish(self) -> None:
        if self._place != len(self._data) + 3 or self._code >= 1 << 24:
            raise damaged()


class Meter:
    """Counts what an encoder would write, in 2^-16 bits."""

    decodes = False

    def __init__(self) -> None:
        self.bits = 0

    def bit(self, p: int, bit: int) -> int:
        self.bits += bits_of(p if bit else 65536 - p)
        return bit
