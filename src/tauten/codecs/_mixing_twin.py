"""The coder of ``_mixing.c`` in plain Python integers, for machines on which nothing was compiled, and as its check.

Function for function and name for name the same as there. A hundred thousand weights take seconds here.
"""

from __future__ import annotations

from math import isqrt
from typing import Final

import numpy as np

from tauten.codecs._native import SETTINGS, Float32, Int32, Settings, damaged
from tauten.codecs._range_coder import REACH, SHARE, SQUASH, STRETCH, Decoder, Encoder, Meter, bits_of

_STEPS: Final = 16
_SIGN: Final = 15
_UNARY: Final = 13
_LIGHT: Final = 5
_LIGHT_SIGN: Final = 3
_SIZES: Final = (0, 2, 128, 2048, 4096, 4096, 256, 256, 192, 2048, 64, 384)
_INPUTS: Final = len(_SIZES) + 1
_COLUMN_SLOTS: Final = 65536
_WEIGHT: Final = 1 << 20
_HALF: Final = 1 << 31
_BELL: Final = {-2: 2, -1: 3, 0: 4, 1: 3, 2: 2}
_WIDTHS: Final = (1, 5, 12, 12, 1, 1, 1, 2, 2, 1)
_USUAL: Final = (0, 0, 0, 0, 0, 0, 1, 0, 3, 1)
_LIMITS: Final = (255, 1020, 60, 127)
_RATES: Final = (3, 6, 12, 24)
_FLOORS: Final = (1, 2, 4, 8)

Contexts = list[tuple[list[int], int]]
"""A table and a place in it, for each context: its slots are the sixteen from there on."""


class _Model:
    """All that is learnt while one matrix is coded, and the matrix itself (flat, as it is scanned)."""

    def __init__(self, coder: Encoder | Decoder | Meter, q: list[int], shape: tuple[int, int], period: int) -> None:
        self.coder, self.q, self.period = coder, q, period
        self.rows, self.columns = shape

    def run(self, settings: list[int], told: Float32 | None) -> None:
        """Code the whole matrix; ``told`` as ``Coder.measure`` has it."""
        self.header(settings)
        transposed, self.shift, self.lag, self.far, row_flags, column_flags, self.signs, *_ = self.settings
        self.rise, self.lag = 2, self.lag if self.lag > 1 else 0
        if transposed:
            self.rows, self.columns = self.columns, self.rows
            self.rise = self.period if self.period > 1 else 2
            self.period = 1
        elif self.period > 1:
            root = isqrt(self.period)
            if not self.lag and root * root == self.period and root <= 64:
                self.lag = root
            self.far = self.far or self.period
        self.start()
        rows, columns, q = range(self.rows), range(self.columns), self.q
        live_rows, live_columns = [1] * self.rows, [1] * self.columns
        if row_flags and not self.coder.decodes:
            live_rows = [int(any(q[r * self.columns : (r + 1) * self.columns])) for r in rows]
        if column_flags and not self.coder.decodes:
            live_columns = [int(any(q[c :: self.columns])) for c in columns]
        if row_flags:
            self.flags(live_rows, self.rise if self.rise > 2 else 0, 0)
        if column_flags:
            self.flags(live_columns, self.lag, 8)
        for r in (r for r in rows if live_rows[r]):
            self.scan(r, [c for c in columns if live_columns[c]], told)

    def header(self, settings: list[int]) -> None:
        """Each setting: whether it is the usual one, and if not, its bits; of a setting that has one bit, none."""
        coder = self.coder
        for i, (width, usual) in enumerate(zip(_WIDTHS, _USUAL, strict=True)):
            differs = coder.bit(8192, int(settings[i] != usual))
            found = 0 if width > 1 else 1 - usual
            for j in range(width - 1 if differs and width > 1 else -1, -1, -1):
                found |= coder.bit(32768, settings[i] >> j & 1) << j
            if coder.decodes:
                settings[i] = found if differs else usual
                if differs and found == usual:
                    raise damaged()
        self.settings = settings[: len(_WIDTHS)]

    def start(self) -> None:
        """Everything as it is before the first element."""
        lag, period = self.lag, self.period
        self.coarse, self.fine = [], []
        for c in range(self.columns):
            x, y = (c % lag, c // lag) if lag else (0, c)
            if period > 1:
                places = c // period % 2048, c % period % 4096
            elif lag:
                places = x // 2 % 32 * 64 + y // 8 % 64, (x + 1) // 2 % 64 * 64 + (y + 1) // 2 % 64
            else:
                places = y // 16 % 2048, (y + 1) // 2 % 4096
            self.coarse.append(places[0])
            self.fine.append(places[1])
        sizes = (2 * min(self.columns, _COLUMN_SLOTS), *_SIZES[1:])
        self.tables = [[0] * (size * _STEPS) for size in sizes]
        self.mean, self.smooth = [0] * self.columns, [0] * self.columns
        self.row_mean = self.row_count = self.rows_seen = 0
        self.base = [_HALF] * _STEPS
        self.base[0] = 1000 << 20
        self.flag, self.low, self.tail = [_HALF] * 16, [_HALF] * 32, [_HALF] * 96
        self.first = [[65536, 0, *[8000] * (_INPUTS - 2)] for _ in range(5)]
        self.second = [[[0] * _INPUTS for _ in range(8)] for _ in range(5)]
        self.seen = [0] * 5
        _, limit, rate, self.rich = self.settings[6:]
        self.limit = _LIMITS[limit]
        self.rate = [_FLOORS[rate] * 40 + _RATES[rate] * 1600 // (k + 32) for k in range(256)]

    def plain_bit(self, slots: list[int], place: int, bit: int) -> int:
        """A bit by one adaptive probability."""
        bit = self.coder.bit(_clamp(slots[place] >> 16), bit)
        slots[place] = _learnt(slots[place], bit, 254)
        return bit

    def guess(self, contexts: Contexts, step: int, kind: int) -> tuple[list[int], list[int], list[int], int]:
        """The inputs, the weights of both sets, and the probability that they give."""
        origin = STRETCH[self.base[step] >> 20]
        inputs = [origin, 256]
        for table, place in contexts:
            slot = table[place + step]
            inputs.append(STRETCH[slot >> 20] - origin if slot else 0)
        first, second = self.first[kind], self.second[kind][self.select]
        dot = sum((first[i] + (second[i] if self.rich else 0)) * value for i, value in enumerate(inputs)) >> 16
        return inputs, first, second, SQUASH[REACH + min(max(dot, 1 - REACH), REACH - 1)]

    def mixed_bit(self, contexts: Contexts, step: int, kind: int, bit: int) -> int:
        """A bit by all its contexts, which learn from it."""
        inputs, first, second, mixed = self.guess(contexts, step, kind)
        bit = self.coder.bit(_clamp(mixed), bit)
        seen = self.seen[kind]
        error = ((bit << 16) - mixed) * self.rate[seen >> 2]
        self.seen[kind] = min(seen + 1, 1023)
        for i, value in enumerate(inputs):
            change = (error * value + (1 << 23)) >> 24
            first[i] = min(max(first[i] + change, -_WEIGHT), _WEIGHT)
            if self.rich:
                second[i] = min(max(second[i] + (change >> 1), -_WEIGHT), _WEIGHT)
        fresh = self.base[step] & ~1023 | 1
        for table, place in contexts:
            table[place + step] = _learnt(table[place + step] or fresh, bit, self.limit)
        self.base[step] = _learnt(self.base[step], bit, self.limit)
        return bit

    def scaled(self, v: int) -> int:
        """A magnitude in sixteenths of a step of the unary part; at least 1 where it is not 0."""
        return min(max((abs(v) << 4) >> self.shift, 1), 4095) if v else 0

    def look(self, r: int, c: int) -> None:
        """Find the contexts of the element in row r and column c."""
        q, width, scaled, tables = self.q, self.columns, self.scaled, self.tables
        here = r * width + c

        def left(n: int) -> int:
            return q[here - n] if c >= n else 0

        l1, l2, u1 = left(1), left(2), q[here - width] if r else 0
        ul, ur = q[here - width - 1] if r and c else 0, q[here - width + 1] if r and c + 1 < width else 0
        uv = q[here - self.rise * width] if r >= self.rise else 0
        a1, a2, b1, bl, br, bv = (scaled(v) for v in (l1, l2, u1, ul, ur, uv))
        marks = [
            c % _COLUMN_SLOTS * 2,
            0,
            _level(2 * a1 + a2 + 2 * b1 + bl + br + bv, 2),
            self.coarse[c],
            _level(self.mean[c], 1) * 64 + _level(self.row_mean, 1),
        ]
        sign_marks = [(_sign(l1) * 3 + _sign(u1)) * 3 + _sign(l2)]
        self.select = 0
        if self.rich:
            lag = self.lag
            g0 = left(self.far) if self.far else 0
            h0, hm, hp = (left(lag), left(lag + 1), left(lag - 1)) if lag else (0, 0, 0)
            density = min(max(_level(self.smooth[c], 2) + 12 - _level(self.rows_seen + 1, 2), 0), 63)
            e0, em, ep, f0 = (scaled(v) for v in (h0, hm, hp, g0))
            weighed = ((2 * a1, l1), (2 * e0, h0), (2 * f0, g0), (a2, l2), (em, hm), (ep, hp))
            self.lean = sum(-u if v < 0 else u for u, v in weighed)
            leaning = _level(abs(self.lean), 1)
            marks += [
                self.fine[c],
                ((((_three(a1) * 2 + (a2 > 0)) * 3 + _three(b1)) * 2 + (bl > 0)) * 2 + (br > 0)) * 2 + (bv > 0),
                (((_three(e0) * 2 + (em > 0)) * 2 + (ep > 0)) * 3 + _three(a1)) * 3 + _three(f0),
                leaning,
                density * 32 + _level(2 * (a1 + e0 + f0) + a2 + em + ep, 1),
                density,
            ]
            sign_marks += [
                32 + ((_sign(h0) * 3 + _sign(hm)) * 3 + _sign(hp)) * 3 + _sign(l1),
                128 + ((_sign(uv) * 3 + _sign(ul)) * 3 + _sign(ur)) * 3 + _sign(g0),
                256 + leaning * 2 + (self.lean < 0),
            ]
            self.select = (a1 > 0) * 4 + (b1 > 0) * 2 + (e0 > 0)
        self.contexts = [(tables[i], mark * _STEPS) for i, mark in enumerate(marks)]
        self.sign_contexts = self.contexts[:2] + [(tables[-1], mark * _STEPS) for mark in sign_marks]

    def turned(self, negative: int) -> Contexts:
        """The contexts of a magnitude, some of which know the sign."""
        found = list(self.contexts)
        for i in (0, 1):
            found[i] = found[i][0], found[i][1] + negative * _STEPS
        if self.rich:
            found[8] = found[8][0], found[8][1] + (64 if negative == (self.lean < 0) else 128) * _STEPS
        return found

    def element(self, v: int) -> int:
        """Code one element, whose contexts were looked for; what it is."""
        shift = self.shift
        if not self.mixed_bit(self.contexts, 0, 0, int(v != 0)):
            return 0
        if self.signs:
            negative = self.mixed_bit(self.sign_contexts, _SIGN, 1, int(v < 0))
        else:
            negative = self.coder.bit(32768, int(v < 0))
        contexts, rest, step = self.turned(negative), abs(v) - 1, 1
        high = rest >> shift
        while step <= _UNARY and self.mixed_bit(contexts, step, _kind(step), int(high >= step)):
            step += 1
        whole = step - 1
        if step > _UNARY:
            whole += self.escape(high - _UNARY + 1) - 1
        lows, near = 0, min(whole, 3) * 8
        for i in range(shift - 1, -1, -1):
            bit = rest >> i & 1
            if i >= shift - 2:
                bit = self.plain_bit(self.low, near if i == shift - 1 else near + 1 + lows, bit)
            else:
                bit = self.plain_bit(self.tail, 64 + i, bit)
            lows = lows << 1 | bit
        whole = (whole << shift | lows) + 1
        if whole > 2**31 - 1 + negative:
            raise damaged()
        return -whole if negative else whole

    def escape(self, e: int) -> int:
        """A number of at least 1 by its length and its bits (Elias 1975), the length and the first bit adaptively."""
        length, n, found = max(e, 1).bit_length() - 1, 0, 1
        while n < 31 and self.plain_bit(self.tail, n, int(n < length)):
            n += 1
        for k in range(n, 0, -1):
            bit = e >> (k - 1) & 1
            bit = self.plain_bit(self.tail, 31 + k, bit) if k == n else self.coder.bit(32768, bit)
            found = found << 1 | bit
        return found

    def price(self, v: int) -> int:
        """What ``element`` would take, in 2^-16 bits, without learning from it."""

        def bits(contexts: Contexts, step: int, kind: int, bit: bool) -> int:
            p = _clamp(self.guess(contexts, step, kind)[3])
            return bits_of(p if bit else 65536 - p)

        found = bits(self.contexts, 0, 0, v != 0)
        if not v:
            return found
        found += bits(self.sign_contexts, _SIGN, 1, v < 0) if self.signs else 1 << 16
        contexts, high = self.turned(int(v < 0)), (abs(v) - 1) >> self.shift
        for step in range(1, min(_UNARY, high + 1) + 1):
            found += bits(contexts, step, _kind(step), high >= step)
        if high >= _UNARY:
            found += (2 * (high - _UNARY + 1).bit_length() - 1) << 16
        return found + (self.shift << 16)

    def flags(self, live: list[int], lag: int, first: int) -> None:
        """Which rows or columns hold anything, each by the two before it and the one that lies ``lag`` before."""
        for i in range(len(live)):
            before = live[i - 1] if i else 1, live[i - 2] if i > 1 else 1, live[i - lag] if lag and i >= lag else 1
            live[i] = self.plain_bit(self.flag, first + before[0] * 4 + before[1] * 2 + before[2], live[i])

    def spread(self, c: int) -> None:
        """Let the columns around c, in a picture or a row, know of an element that is not 0."""
        if self.lag:
            reach = [(dx + dy * self.lag, 16 * _BELL[dx] * _BELL[dy]) for dy in range(-2, 3) for dx in range(-2, 3)]
        else:
            reach = [(dx, 64 * (5 - abs(dx))) for dx in range(-4, 5)]
        for offset, more in reach:
            to = c + offset
            if 0 <= to < self.columns and self.smooth[to] < _HALF:
                self.smooth[to] += more

    def learn(self, c: int, v: int) -> None:
        """What column and row have come to hold: in a rich model how often, in a light one how much."""
        size = self.scaled(v)
        if self.rich and size:
            size = min(size, 16)
            self.spread(c)
        u = size << 8
        self.mean[c] += ((u - self.mean[c]) * SHARE[min(self.rows_seen, 255)]) >> 16
        self.row_mean += ((u - self.row_mean) * SHARE[self.row_count]) >> 16
        self.row_count = min(self.row_count + 1, 255)

    def scan(self, r: int, columns: list[int], told: Float32 | None) -> None:
        """The elements of a live row."""
        coder, row = self.coder, self.tables[1]
        self.row_count = min(self.row_count, 10)
        row[:] = [slot - max((slot & 1023) - 10, 0) for slot in row]
        for c in columns:
            place = r * self.columns + c
            v = self.q[place]
            self.look(r, c)
            before = coder.bits if isinstance(coder, Meter) else 0
            if told is not None and told.shape[-1] == 3:
                told[place] = [np.float32(self.price(x)) / np.float32(65536) for x in (0, v - (v > 0) + (v < 0), v)]
            v = self.q[place] = self.element(v)
            if told is not None and told.shape[-1] == 1 and isinstance(coder, Meter):
                told[place] = np.float32(coder.bits - before) / np.float32(65536)
            self.learn(c, v)
        self.rows_seen += 1


class Twin:
    """The coder, as ``_native.Coder`` has it."""

    def encode(self, q: Int32, shape: tuple[int, int], period: int, settings: Settings) -> bytes:
        coder = Encoder()
        _Model(coder, q.ravel().tolist(), shape, period).run(list(settings), None)
        return coder.finish()

    def decode(self, data: bytes, shape: tuple[int, int], period: int) -> tuple[Int32, Settings]:
        coder = Decoder(data)
        model = _Model(coder, [0] * (shape[0] * shape[1]), shape, period)
        model.run([0] * SETTINGS, None)
        coder.finish()
        return np.array(model.q, np.int32), tuple(model.settings)

    def measure(self, q: Int32, shape: tuple[int, int], period: int, settings: Settings, costs: Float32 | None) -> int:
        coder = Meter()
        _Model(coder, q.ravel().tolist(), shape, period).run(list(settings), costs)
        return coder.bits


def _clamp(p: int) -> int:
    return min(max(p, 16), 65520)


def _learnt(slot: int, bit: int, limit: int) -> int:
    """A slot after a bit: its probability (22 bits) nearer to it by 1 / (n + 1.5), its count n (10 bits) one more."""
    n, p = slot & 1023, slot >> 10
    p += ((bit << 22) - p) * SHARE[n] >> 16
    return p << 10 | (n + 1 if n < limit else n)


def _level(x: int, fraction: int) -> int:
    """The logarithm of x to base 2 with so many bits after the point, linear between powers."""
    e = (x | 1).bit_length() - 1
    return (e << fraction) + (((x << fraction) >> e) & ((1 << fraction) - 1))


def _three(u: int) -> int:
    return 0 if u == 0 else 1 if u < 32 else 2


def _sign(v: int) -> int:
    return 0 if v == 0 else 1 if v > 0 else 2


def _kind(step: int) -> int:
    """What the mixer takes a step of the unary part for."""
    return step + 1 if step < 3 else 4


TWIN: Final = Twin()
