"""Canonical Huffman codes over a matrix of whole numbers, dense or as runs of zeros between the others.

Sparse matrices are told by relative indices (Han, Mao and Dally, 2016): how many zeros stand before each other number,
with a filler where a run is longer than the alphabet. Codes (Huffman, 1952) are canonical (Schwartz and Kallick, 1964),
so that a table is the lengths alone; they are counted, as everything is that a reader needs. No code is longer than 16
bits: counts are halved until that holds.

What is changed: symbols stand in lanes, each with its length told, so that a vector of lanes is decoded at once.

Bytes: the longest run (0: dense), the number of run symbols, then for runs and for numbers their table and their lanes.
"""

from __future__ import annotations

import heapq
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tauten.codecs._values import Levels
from tauten.codecs._wire import Reader, signed, varint
from tauten.errors import ArtifactError

Whole = npt.NDArray[np.int64]

_LONGEST: Final = 16  # bits
_MOST_SYMBOLS: Final = 4096
_RUNS: Final = (15, 31, 63, 127, 255, 511)
_LANE: Final = 1024
_MOST_LANES: Final = 4096
_CHUNK: Final = 2**20


def encode_huffman(levels: Levels) -> bytes | None:
    """The matrix as bytes; ``None`` where it holds more than 4096 numbers that differ."""
    flat = levels.reshape(-1).astype(np.int64)
    if len(np.unique(flat)) > _MOST_SYMBOLS:
        return None
    found = [varint(0) + _encode(flat)]
    places = np.flatnonzero(flat)
    if 2 * len(places) < len(flat):
        gaps = np.diff(places, prepend=-1) - 1
        longest = min(_RUNS, key=lambda most: _cost(_runs(gaps, most)))
        runs = _runs(gaps, longest)
        found.append(varint(longest) + varint(len(runs)) + _encode(runs) + _encode(flat[places]))
    return min(found, key=len)


def decode_huffman(data: bytes | memoryview, rows: int, columns: int) -> Levels:
    """The matrix again. Raises ``ArtifactError`` for other bytes."""
    reader, size = Reader(data), rows * columns
    longest = reader.varint()
    if not longest:
        flat = _decode(reader, size)
    else:
        count = reader.varint()
        if longest > _RUNS[-1] or count > size:
            raise ArtifactError(f"weights: expected runs of zeros in {size} numbers, got {count} up to {longest}")
        runs = _decode(reader, count)
        filler = runs == longest + 1
        numbers = _decode(reader, int(count - filler.sum()))
        places = np.cumsum(np.where(filler, longest + 1, runs + 1))[~filler] - 1
        if count and (runs.min() < 0 or runs.max() > longest + 1 or (len(places) and places[-1] >= size)):
            raise ArtifactError("weights: runs of zeros that leave the matrix")
        flat = np.zeros(size, np.int64)
        flat[places] = numbers
    reader.end("Huffman codes")
    return flat.astype(np.int32).reshape(rows, columns)


def _runs(gaps: Whole, longest: int) -> Whole:
    """Zeros before each number, at most ``longest``; ``longest + 1`` stands for so many zeros and no number."""
    fillers = gaps // (longest + 1)
    found = np.full(int(fillers.sum()) + len(gaps), longest + 1, np.int64)
    found[np.cumsum(fillers + 1) - 1] = gaps - fillers * (longest + 1)
    return found


def _cost(symbols: Whole) -> float:
    """About how many bits they take: their entropy, and a byte for each in the table."""
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    if not len(counts):
        return 0.0
    return float((counts * np.log2(len(symbols) / counts)).sum() + 8 * len(counts))


def _encode(symbols: Whole) -> bytes:
    """A table and the codes of all symbols."""
    distinct, places, counts = np.unique(symbols, return_inverse=True, return_counts=True)
    lengths = _lengths(counts)
    table = varint(len(distinct))
    previous = None
    for symbol in distinct.tolist():
        table += signed(symbol) if previous is None else varint(symbol - previous - 1)
        previous = symbol
    if len(distinct) < 2:
        return table
    nibbles = np.append(lengths - 1, [0] * (len(lengths) % 2)).astype(np.uint8)
    table += (nibbles[0::2] | (nibbles[1::2] << 4)).tobytes()
    return table + _write(lengths[places], _codes(lengths)[places])


def _decode(reader: Reader, size: int) -> Whole:
    """``size`` symbols."""
    count = reader.varint()
    # Each symbol of a table takes at least one byte of it.
    if count > min(_MOST_SYMBOLS, reader.left) or (count == 0) != (size == 0):
        raise ArtifactError(f"weights: a table of {count} symbols for {size} numbers")
    symbols = np.zeros(count, np.int64)
    value = 0
    for index in range(count):
        value = value + reader.varint() + 1 if index else reader.signed()
        if abs(value) >= 2**31:
            raise ArtifactError(f"weights: expected whole numbers of 32 bits, got {value}")
        symbols[index] = value
    if count < 2:
        return np.repeat(symbols, size)
    packed = np.frombuffer(reader.take((count + 1) // 2), np.uint8)
    lengths = (np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count] + 1).astype(np.int64)
    if (count % 2 and packed[-1] >> 4) or (1 << (_LONGEST - lengths)).sum() != 1 << _LONGEST:
        raise ArtifactError("weights: the lengths of a table are those of no code")
    return symbols[_read(reader, size, lengths)]


def _lengths(counts: npt.NDArray[np.intp]) -> Whole:
    """Code lengths by Huffman's algorithm; ties by symbol, so that equal counts give equal bytes."""
    weights = counts.astype(np.int64)
    while True:
        found = _unbounded(weights.tolist())
        if found.max(initial=0) <= _LONGEST:
            return found
        weights = (weights + 1) >> 1


def _unbounded(weights: list[int]) -> Whole:
    count = len(weights)
    if count < 2:
        return np.zeros(count, np.int64)
    heap = [(weight, index) for index, weight in enumerate(weights)]
    heapq.heapify(heap)
    parents = [0] * (2 * count - 1)
    for index in range(count, 2 * count - 1):
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        parents[first[1]] = parents[second[1]] = index
        heapq.heappush(heap, (first[0] + second[0], index))
    depths = [0] * (2 * count - 1)
    for index in reversed(range(2 * count - 2)):
        depths[index] = depths[parents[index]] + 1
    return np.array(depths[:count], np.int64)


def _codes(lengths: Whole) -> Whole:
    """Canonical codes: shorter ones first, equal lengths in the order of symbols."""
    order = np.argsort(lengths, kind="stable")
    # Each code is where the ones before it end, counted in units of the longest possible.
    units = 1 << (_LONGEST - lengths[order])
    codes = np.empty_like(lengths)
    codes[order] = (np.cumsum(units) - units) >> (_LONGEST - lengths[order])
    return codes


def _lanes(size: int) -> tuple[int, int]:
    """How many symbols a lane holds, and how many lanes there are; the last may be shorter."""
    count = 1 if size < 2 * _LANE else min(_MOST_LANES, size // _LANE)
    each = -(-size // count)
    return each, -(-size // each)


def _write(lengths: Whole, codes: Whole) -> bytes:
    """Each lane's bits, the first symbol's first, and how many bits each lane has."""
    each, count = _lanes(len(lengths))
    bits = np.add.reduceat(lengths, np.arange(count) * each)
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    room = np.zeros((total + 7) // 8 + 3, np.uint8)
    for start in range(0, len(lengths), _CHUNK):
        part = slice(start, start + _CHUNK)
        begins = ends[part] - lengths[part]
        first = int(begins[0]) >> 3
        # A code of at most 16 bits lies in three bytes; bits of neighbours never meet, so that sums are unions.
        window = codes[part] << (24 - lengths[part] - (begins & 7))
        places = (begins >> 3) - first
        for byte in range(3):
            sums = np.bincount(places + byte, weights=(window >> (16 - 8 * byte)) & 255).astype(np.uint8)
            room[first : first + len(sums)] |= sums
    return _write_counts(bits) + room[: (total + 7) // 8].tobytes()


def _read(reader: Reader, size: int, lengths: Whole) -> Whole:
    """Places in the table of ``size`` symbols."""
    each, count = _lanes(size)
    bits = _read_counts(reader, count)
    ends = np.cumsum(bits)
    total = int(ends[-1])
    data = np.frombuffer(reader.take((total + 7) // 8), np.uint8)
    if total % 8 and int(data[-1]) & ((1 << (8 - total % 8)) - 1):
        raise ArtifactError("weights: expected zeros after the last code")
    whole = np.concatenate([data, np.zeros(3, np.uint8)]).astype(np.uint32)
    windows = (whole[:-2] << 16) | (whole[1:-1] << 8) | whole[2:]
    longest = int(lengths.max())
    table = _table(lengths, longest)
    out = np.empty((each, count), np.uint16)
    place, mask = ends - bits, (1 << longest) - 1
    last = size - (count - 1) * each
    for step in range(each):
        if step == last:
            place, out_ends = place[:-1], int(place[-1])
            if out_ends != total:
                raise ArtifactError("weights: a lane of codes ends elsewhere than told")
        # Damaged lanes may run over their end, and are found there: the window stays inside.
        window = windows.take(place >> 3, mode="clip").astype(np.int64)
        entry = table[(window >> (24 - longest - (place & 7))) & mask]
        out[step, : len(place)] = entry >> 5
        place = place + (entry & 31)
    if (place != ends[: len(place)]).any():
        raise ArtifactError("weights: a lane of codes ends elsewhere than told")
    return out.T.reshape(-1)[:size].astype(np.int64)


def _table(lengths: Whole, longest: int) -> Whole:
    """By the next ``longest`` bits: the symbol's place times 32, and its code's length."""
    order = np.argsort(lengths, kind="stable")
    return np.repeat(order * 32 + lengths[order], 1 << (longest - lengths[order]))


def _write_counts(counts: Whole) -> bytes:
    """Numbers that differ little: the least, the width of what the others have more, and that in as many bits."""
    least = int(counts.min())
    if len(counts) == 1:
        return varint(least)
    more = counts - least
    width = int(more.max()).bit_length()
    bits = (more[:, None] >> np.arange(width)[::-1]) & 1
    return varint(least) + bytes([width]) + np.packbits(bits.astype(np.uint8)).tobytes()


def _read_counts(reader: Reader, count: int) -> Whole:
    least = reader.varint()
    if least > 8 * reader.left:
        raise ArtifactError(f"weights: expected {least} bits of codes, found {8 * reader.left}")
    if count == 1:
        return np.array([least], np.int64)
    width = reader.byte()
    if width > 32:
        raise ArtifactError(f"weights: expected lanes of less than 2**32 bits, got {width}")
    packed: Any = np.frombuffer(reader.take((count * width + 7) // 8), np.uint8)
    bits = np.unpackbits(packed)[: count * width].reshape(count, width).astype(np.int64)
    counts: Whole = least + (bits << np.arange(width)[::-1]).sum(axis=1)
    return counts
