"""The coder of ``_mixing.c`` in plain Python integers, for machines on which nothing was compiled, and as its check.

Function for function and name for name the same as there; what differs is told there. A matrix of a hundred thousand
weights takes seconds here.
"""

from __future__ import annotations

from math import isqrt
from typing import Final

import numpy as np

from tauten.codecs._native import SETTINGS, Float32, Int32, Settings, damaged

_REACH: Final = 2816
_STEPS: Final = 16
_SIGN: Final = 15
_UNARY: Final = 13
_BUCKETS: Final = 23
_SIZES: Final = (0, 0, 64, 4096, 256, 256, 2048, 4096, 4096, 1024)
_HALF: Final = 1 << 31
_WIDTHS: Final = (1, 5, 16, 16, 1, 1, 1, 2, 2, 2)
_USUAL: Final = (0, 0, 0, 0, 0, 0, 1, 1, 1, 0)
_LIMITS: Final = (60, 255, 1000, 30)
_RATES: Final = (3, 6, 12, 24)
_FLOORS: Final = (1, 2, 4, 8)
_SHARE: Final = tuple(131072 // (2 * n + 3) for n in range(1024))


def _squash() -> list[int]:
    table, power = [0] * (2 * _REACH + 1), 1 << 24
    for x in range(_REACH + 1):
        above = min((power << 16) // (power + (1 << 24)), 65535)
        table[_REACH + x], table[_REACH - x] = above, 65536 - above
        power = (power * 8421440) >> 23
    return table


def _stretch() -> list[int]:
    table, x = [], -_REACH
    for p in range(4096):
        while x < _REACH and _SQUASH[_REACH + x] < p * 16 + 8:
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


_SQUASH: Final = _squash()
_STRETCH: Final = _stretch()
_LOGS: Final = _logs()


def _bits_of(p: int) -> int:
    return _LOGS[p] + (4 << 16) if p < 4096 else _LOGS[p >> 4]


class _Encoder:
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


class _Decoder:
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


class _Meter:
    """Counts what an encoder would write, in 2^-16 bits."""

    decodes = False

    def __init__(self) -> None:
        self.bits = 0

    def bit(self, p: int, bit: int) -> int:
        self.bits += _bits_of(p if bit else 65536 - p)
        return bit


class _Model:
    """All that is learnt while one matrix is coded, and the matrix itself (flat, as it is scanned)."""

    def __init__(self, coder: _Encoder | _Decoder | _Meter, q: list[int], shape: tuple[int, int], period: int) -> None:
        self.coder, self.q, self.period = coder, q, period
        self.rows, self.columns = shape
        self.settings: list[int] = []

    def header(self, settings: list[int]) -> None:
        """Each setting: whether it is the usual one, and if not, its bits."""
        self.settings = list(settings)
        for i, (width, usual) in enumerate(zip(_WIDTHS, _USUAL, strict=True)):
            value = settings[i]
            if self.coder.bit(8192, int(value != usual)):
                if self.coder.decodes:
                    value = 0
                    for _ in range(width):
                        value = value << 1 | self.coder.bit(32768, 0)
                else:
                    for j in range(width - 1, -1, -1):
                        self.coder.bit(32768, value >> j & 1)
            elif self.coder.decodes:
                value = usual
            self.settings[i] = value
        self._prepare()

    def _prepare(self) -> None:
        settings = self.settings
        transposed, self.shift, self.lag, rise = settings[:4]
        self.signs = settings[6]
        self.limit = _LIMITS[settings[7]]
        if transposed:
            self.rows, self.columns = self.columns, self.rows
        self.lag2, self.rise = 0, rise or 2
        if self.period > 1:
            if transposed:
                self.rise = rise or self.period
                self.period = 1
            elif not self.lag:
                self.lag = self.period
                width = isqrt(self.period)
                self.lag2 = width if width * width == self.period else 0
        places = min(self.columns, 65536)
        self.slots = [[0] * (size * _STEPS) for size in (places, 1, *_SIZES[2:], 256)]
        self.means, self.history = [0] * self.columns, [0] * self.columns
        self.row_mean = self.row_count = self.rows_seen = 0
        self.base = [_HALF] * _STEPS
        self.base[0] = 400 << 20
        self.flag_slots, self.low_slots, self.tail_slots = [_HALF] * 16, [_HALF] * 64, [_HALF] * 128
        inputs = len(_SIZES) + 2
        self.first = [[65536, 0, *[16000] * (inputs - 2)] for _ in range(5)]
        self.second = [[0] * inputs for _ in range(64)]
        self.seen = [0] * 5
        self.apm = [
            [[_SQUASH[min(i << 8, 2 * _REACH)] for i in range(_BUCKETS + 1)] for _ in range(_STEPS)] for _ in range(4)
        ]
        floor, rate = _FLOORS[settings[8]] * 40, _RATES[settings[8]] * 800
        self.rates = [floor + rate // (k + 4) for k in range(256)]
        self.live_rows, self.live_columns = [1] * self.rows, [1] * self.columns

    def plain_bit(self, slots: list[int], place: int, bit: int) -> int:
        """A bit by one adaptive probability."""
        bit = self.coder.bit(_clamp(slots[place] >> 16), bit)
        slots[place] = _moved(slots[place], bit, 254)
        return bit

    def predict(self, contexts: list[tuple[list[int], int]], step: int, a: int, b: int) -> int:
        """The probability that the next bit is 1, in 2^-16; what ``update`` needs stays behind."""
        origin = _STRETCH[self.base[step] >> 20]
        inputs = [origin, 256]
        for slots, place in contexts:
            slot = slots[place + step]
            inputs.append(_STRETCH[slot >> 20] - origin if slot else 0)
        weights, more = self.first[a], self.second[b]
        dot = sum((weights[i] + more[i]) * value for i, value in enumerate(inputs)) >> 16
        x = min(max(dot, 1 - _REACH), _REACH - 1) + _REACH
        stage = self.apm[self.apm_select][step]
        weight = x & 255
        self.mixed = _SQUASH[x]
        self.inputs, self.stage, self.near = inputs, stage, (x >> 8) + (weight > 127)
        p = (stage[x >> 8] * (256 - weight) + stage[(x >> 8) + 1] * weight) >> 8
        return _clamp((self.mixed * 12 + p * 4) >> 4)

    def mixed_bit(self, contexts: list[tuple[list[int], int]], step: int, a: int, b: int, bit: int) -> int:
        """A bit by all its contexts, which learn from it."""
        bit = self.coder.bit(self.predict(contexts, step, a, b), bit)
        n = self.seen[a]
        self.seen[a] = min(n + 1, 1023)
        error = ((bit << 16) - self.mixed) * self.rates[n >> 2]
        weights, more = self.first[a], self.second[b]
        for i, value in enumerate(self.inputs):
            change = (error * value + (1 << 23)) >> 24
            weights[i] = min(max(weights[i] + change, -(1 << 20)), 1 << 20)
            more[i] = min(max(more[i] + change, -(1 << 20)), 1 << 20)
        fresh = self.base[step] & ~1023 | 2
        for slots, place in contexts:
            slots[place + step] = _moved(slots[place + step] or fresh, bit, self.limit)
        self.base[step] = _moved(self.base[step], bit, self.limit)
        self.stage[self.near] += ((65535 if bit else 0) - self.stage[self.near]) >> 6
        return bit

    def _at(self, r: int, c: int, up: int, left: int) -> int:
        """The element so far up and left, 0 outside; a negative ``left`` is right."""
        if up > r or not 0 <= c - left < self.columns:
            return 0
        return self.q[(r - up) * self.columns + c - left]

    def scaled(self, v: int) -> int:
        """A magnitude in sixteenths of a step of the unary part, at least 1 where it is not 0."""
        return min(max((abs(v) << 4) >> self.shift, 1), 4095) if v else 0

    def look(self, r: int, c: int) -> None:
        """Find the contexts of the element at (r, c)."""
        at, scaled, lag, means, columns = self._at, self.scaled, self.lag, self.means, self.columns
        l1, l2, u1, ul, ur, uv = (
            at(r, c, 0, 1),
            at(r, c, 0, 2),
            at(r, c, 1, 0),
            at(r, c, 1, 1),
            at(r, c, 1, -1),
            at(r, c, self.rise, 0),
        )
        h0, hm, hp = (at(r, c, 0, lag), at(r, c, 0, lag + 1), at(r, c, 0, lag - 1)) if lag else (0, 0, 0)
        g0 = at(r, c, 0, self.lag2) if self.lag2 else 0
        a1, a2, b1, bl, br, bv = map(scaled, (l1, l2, u1, ul, ur, uv))
        e0, em, ep, f0 = map(scaled, (h0, hm, hp, g0))
        near = 2 * a1 + a2 + 2 * b1 + bl + br + bv
        row_near = 2 * a1 + a2 + 2 * e0 + em + ep + 2 * f0
        beside = (means[c - 1] if c else 0) + (means[c + 1] if c + 1 < columns else 0)
        if lag:
            beside += (means[c - lag] if c >= lag else 0) + (means[c + lag] if c + lag < columns else 0)
        else:
            beside *= 2
        column = _level(means[c], 1)
        marks = (
            _level(near, 2) & 63,
            column * 64 + _level(self.row_mean, 1),
            ((((_three(a1) * 2 + (a2 > 0)) * 3 + _three(b1)) * 2 + (bl > 0)) * 2 + (br > 0)) * 2 + (bv > 0),
            (((_three(e0) * 2 + (em > 0)) * 2 + (ep > 0)) * 3 + _three(a1)) * 3 + _three(f0),
            _level(beside >> 2, 1) * 32 + _level(row_near, 1),
            column * 64 + _level(near + row_near, 1),
            (c % self.period & 255) * 16 + _level(row_near + near, 0),
            (self.history[c] & 63) * 16 + min(_level(self.row_mean, 0), 15),
        )
        column_slots, row_slots, *others, sign_slots = self.slots
        self.contexts = [(column_slots, (c & 65535) * _STEPS), (row_slots, 0)]
        self.contexts += [(slots, mark * _STEPS) for slots, mark in zip(others, marks, strict=True)]
        of = _sign_of
        self.sign_contexts = [
            *self.contexts[:2],
            (sign_slots, ((of(l1) * 3 + of(u1)) * 3 + of(l2)) * _STEPS),
            (sign_slots, (32 + ((of(h0) * 3 + of(hm)) * 3 + of(hp)) * 3 + of(l1)) * _STEPS),
            (sign_slots, (128 + ((of(uv) * 3 + of(ul)) * 3 + of(ur)) * 3 + of(g0)) * _STEPS),
        ]
        self.select = self.apm_select = (a1 > 0) + (b1 > 0) + (e0 > 0)

    def element(self, v: int) -> int:
        """Code one element, whose contexts were looked for; what it is."""
        coder, shift, select = self.coder, self.shift, self.select
        if not self.mixed_bit(self.contexts, 0, 0, select, int(v != 0)):
            return 0
        if self.signs:
            negative = self.mixed_bit(self.sign_contexts, _SIGN, 1, 32, int(v < 0))
        else:
            negative = coder.bit(32768, int(v < 0))
        rest = abs(v) - 1
        high, j = rest >> shift, 1
        while j <= _UNARY and self.mixed_bit(self.contexts, j, *_sets(j, select), int(high >= j)):
            j += 1
        high = j - 1
        if j > _UNARY:
            high += self._escape((rest >> shift) - _UNARY + 1) - 1
        if coder.decodes and (high << shift) > 2**31 - 1:
            raise damaged()
        lows = 0
        for i in range(shift - 1, -1, -1):
            h = min(high, 3) * 8
            if i == shift - 1:
                slots, place = self.low_slots, h
            elif i == shift - 2:
                slots, place = self.low_slots, h + 1 + lows
            else:
                slots, place = self.tail_slots, 64 + i
            lows = lows << 1 | self.plain_bit(slots, place, rest >> i & 1)
        whole = (high << shift | lows) + 1
        if whole > 2**31 - 1 + negative:
            raise damaged()
        return -whole if negative else whole

    def _escape(self, e: int) -> int:
        """A number of at least 1 by its length and its bits (Elias 1975), the length adaptively."""
        n = 0
        while n < 31 and self.plain_bit(self.tail_slots, n, int(n < e.bit_length() - 1)):
            n += 1
        found = 1
        for k in range(n, 0, -1):
            bit = e >> (k - 1) & 1
            bit = self.plain_bit(self.tail_slots, 32 + k, bit) if k == n else self.coder.bit(32768, bit)
            found = found << 1 | bit
        return found

    def price(self, v: int) -> int:
        """What ``element`` would take, in 2^-16 bits, without learning from it."""

        def bit(contexts: list[tuple[list[int], int]], step: int, a: int, b: int, bit: int) -> int:
            p = self.predict(contexts, step, a, b)
            return _bits_of(p if bit else 65536 - p)

        select = self.select
        bits = bit(self.contexts, 0, 0, select, int(v != 0))
        if not v:
            return bits
        bits += bit(self.sign_contexts, _SIGN, 1, 32, int(v < 0)) if self.signs else 1 << 16
        high = (abs(v) - 1) >> self.shift
        for j in range(1, min(_UNARY, high + 1) + 1):
            bits += bit(self.contexts, j, *_sets(j, select), int(high >= j))
        if high >= _UNARY:
            bits += (2 * ((high - _UNARY + 1).bit_length() - 1) + 1) << 16
        return bits + (self.shift << 16)

    def flags(self, live: list[int], lag: int, first: int) -> None:
        """Which rows or columns hold anything, each by the two before it and the one that lies ``lag`` before."""
        for i in range(len(live)):
            mark = (
                (live[i - 1] if i else 1) * 4
                + (live[i - 2] if i > 1 else 1) * 2
                + (live[i - lag] if lag and i >= lag else 1)
            )
            live[i] = self.plain_bit(self.flag_slots, first + mark, live[i])

    def learn(self, c: int, v: int) -> None:
        """What column and row have come to hold."""
        u = self.scaled(v) << 8
        self.means[c] += ((u - self.means[c]) * _SHARE[min(self.rows_seen - 1, 255)]) >> 16
        self.row_mean += ((u - self.row_mean) * _SHARE[self.row_count]) >> 16
        self.row_count = min(self.row_count + 1, 255)
        self.history[c] = (self.history[c] << 1 | (v != 0)) & 255

    def run(self, settings: list[int], told: Float32 | None) -> None:
        """Code the whole matrix; ``told`` as ``Coder.measure`` has it."""
        self.header(settings)
        coder, q, columns = self.coder, self.q, self.columns
        if not coder.decodes:
            if self.settings[4]:
                self.live_rows = [int(any(q[r * columns : (r + 1) * columns])) for r in range(self.rows)]
            if self.settings[5]:
                self.live_columns = [int(any(q[c::columns])) for c in range(columns)]
        if self.settings[4]:
            self.flags(self.live_rows, self.rise if self.rise > 2 else 0, 0)
        if self.settings[5]:
            self.flags(self.live_columns, self.lag, 8)
        row_slots = self.slots[1]
        for r in (r for r, live in enumerate(self.live_rows) if live):
            self.rows_seen += 1
            self.row_count = min(self.row_count, 10)
            row_slots[:] = [slot - max((slot & 1023) - 10, 0) for slot in row_slots]
            for c in (c for c, live in enumerate(self.live_columns) if live):
                place = r * columns + c
                v = q[place]
                self.look(r, c)
                before = coder.bits if isinstance(coder, _Meter) else 0
                if told is not None and told.shape[-1] == 3:
                    nearer = v - (v > 0) + (v < 0)
                    told[place] = [np.float32(self.price(x)) / np.float32(65536) for x in (0, nearer, v)]
                v = q[place] = self.element(v)
                if told is not None and told.shape[-1] == 1 and isinstance(coder, _Meter):
                    told[place] = np.float32(coder.bits - before) / np.float32(65536)
                self.learn(c, v)


class Twin:
    """The coder, as ``_native.Coder`` has it."""

    def encode(self, q: Int32, shape: tuple[int, int], period: int, settings: Settings) -> bytes:
        coder = _Encoder()
        _Model(coder, q.ravel().tolist(), shape, period).run(list(settings), None)
        return coder.finish()

    def decode(self, data: bytes, shape: tuple[int, int], period: int) -> tuple[Int32, Settings]:
        coder = _Decoder(data)
        model = _Model(coder, [0] * (shape[0] * shape[1]), shape, period)
        model.run([0] * SETTINGS, None)
        coder.finish()
        return np.array(model.q, np.int32), tuple(model.settings)

    def measure(self, q: Int32, shape: tuple[int, int], period: int, settings: Settings, costs: Float32 | None) -> int:
        coder = _Meter()
        _Model(coder, q.ravel().tolist(), shape, period).run(list(settings), costs)
        return coder.bits


def _clamp(p: int) -> int:
    return min(max(p, 16), 65520)


def _moved(slot: int, bit: int, limit: int) -> int:
    """A slot after a bit: its probability (22 bits) nearer to it by 1 / (n + 1.5), its count n (10 bits) one more."""
    n, p = slot & 1023, slot >> 10
    p += ((bit << 22) - p) * _SHARE[n] >> 16
    return p << 10 | (n + 1 if n < limit else n)


def _level(x: int, fraction: int) -> int:
    """The logarithm of x to base 2 with so many bits after the point, linear between powers."""
    e = (x | 1).bit_length() - 1
    return (e << fraction) + (((x << fraction) >> e) & ((1 << fraction) - 1))


def _three(u: int) -> int:
    return 0 if u == 0 else 1 if u < 32 else 2


def _sign_of(v: int) -> int:
    return 0 if v == 0 else 1 if v > 0 else 2


def _sets(j: int, select: int) -> tuple[int, int]:
    """Which weights mix step ``j`` of the unary part."""
    part = min(j, 3)
    return part + 1, 4 * part + select


TWIN: Final = Twin()
