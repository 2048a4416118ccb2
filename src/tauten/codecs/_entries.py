"""The head of one tensor in a container: its name, type, shape, and how its numbers follow from what is coded.

``docs/codec-format.md`` tells every byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np

from tauten.codecs._planes import decode_planes, encode_planes
from tauten.codecs._values import Kind, Values, matrix_shape
from tauten.codecs._wire import Reader, signed, varint
from tauten.core.tensor import DType
from tauten.errors import ArtifactError, ConfigError

DTYPES: Final[tuple[str, ...]] = get_args(DType)
"""A type is its place in here."""
MOST_NAME_BYTES: Final = 1024
MOST_DIMS: Final = 32
_MOST_ELEMENTS: Final = 2**48
_ESCAPE: Final = 15  # of four bits: the number goes on behind
_PARTS: Final = {
    0xC0: ".weight",
    0xC1: ".bias",
    0xF5: "_quantized",
    0xF6: "_scale",
    0xF7: "_zero_point",
    0xF8: ".running_mean",
    0xF9: ".running_var",
    0xFA: ".num_batches_tracked",
    0xFB: ".layers.",
    0xFC: ".layer.",
    0xFD: ".attention.",
    0xFE: "_packed",
    0xFF: ".conv",
}
"""What stands in many names, as one byte that UTF-8 has no use for."""
_TURNED: Final = 8
_CODER_SHIFT: Final = 4
_JOINED: Final = 64
_CHECKED: Final = 128


@dataclass(frozen=True)
class Head:
    """One tensor. ``values`` has no levels yet; ``coder`` packs them.

    ``joined``: its levels are the last column of the next tensor's matrix. ``checked``: a checksum follows.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    values: Values
    coder: int = 0
    joined: bool = False
    checked: bool = True

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes when decoded."""
        return self.size * self.dtype.itemsize


def has_room(shape: tuple[int, ...]) -> bool:
    """Whether an array may have that shape: sides count where another is zero, too."""
    return len(shape) <= MOST_DIMS and math.prod(max(1, side) for side in shape) <= _MOST_ELEMENTS


def write_head(head: Head, previous: bytes) -> bytes:
    """The head's bytes; ``previous`` is the name before it, as bytes."""
    found = bytearray(_write_name(_squeeze(head.name), previous))
    found += _halves(DTYPES.index(head.dtype.name), len(head.shape))
    for size in head.shape:
        found += varint(size)
    values = head.values
    found.append(
        int(values.kind)
        | (_TURNED if values.turned else 0)
        | (head.coder << _CODER_SHIFT)
        | (_JOINED if head.joined else 0)
        | (_CHECKED if head.checked else 0)
    )
    return bytes(found + _write_parameters(values))


def read_head(reader: Reader, previous: bytes, most_bytes: int) -> Head:
    """The next head, of a tensor of at most ``most_bytes``."""
    name = _read_name(reader, previous)
    start = reader.place
    kind_of, dims = _read_halves(reader)
    if kind_of >= len(DTYPES) or dims > MOST_DIMS:
        raise ArtifactError(f"weights: expected a type and at most {MOST_DIMS} dimensions at {start}")
    dtype = np.dtype(DTYPES[kind_of])
    shape = tuple(reader.varint() for _ in range(dims))
    size = math.prod(shape)
    if size * dtype.itemsize > most_bytes or not has_room(shape):
        raise ArtifactError(f"weights: {_short(name)}: expected at most {most_bytes} bytes, got shape {_short(shape)}")
    flags = reader.byte()
    kind, turned, coder = flags & 7, bool(flags & _TURNED), flags >> _CODER_SHIFT & 3
    joined, checked = bool(flags & _JOINED), bool(flags & _CHECKED)
    if kind > Kind.RAW or (turned and (kind != Kind.ROWS or dims < 2)) or (joined and (checked or coder)):
        raise ArtifactError(f"weights: {_short(name)}: expected a way to code it, got {flags}")
    if (joined and (dims != 1 or kind in (Kind.CONSTANT, Kind.RAW))) or (not size and kind != Kind.CONSTANT):
        raise ArtifactError(f"weights: {_short(name)}: shape {_short(shape)} cannot be coded by way {flags}")
    values = _read_parameters(reader, Kind(kind), turned, dtype, shape)
    return Head(_spell(name), dtype, shape, values, coder, joined, checked)


def _write_parameters(values: Values) -> bytes:
    parameters = values.parameters
    if values.kind is Kind.INTEGERS:
        return signed(values.offset)
    if values.kind is Kind.CONSTANT:
        return parameters.astype(parameters.dtype.newbyteorder("<")).tobytes()
    if values.kind is Kind.GRID:
        # An odd whole number and a power of two: short steps are short here.
        fraction, exponent = math.frexp(float(parameters[0]))
        whole = int(fraction * 2**53)
        zeros = (whole & -whole).bit_length() - 1
        return varint(whole >> zeros) + signed(exponent - 53 + zeros)
    if values.kind is Kind.ROWS:
        return encode_planes(parameters)
    if values.kind is Kind.PALETTE:
        return varint(len(parameters)) + signed(values.offset) + encode_planes(parameters)
    return b""


def _read_parameters(reader: Reader, kind: Kind, turned: bool, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Values:
    nothing = np.zeros((0, 0), np.int32)
    size = math.prod(shape)
    if kind in (Kind.GRID, Kind.ROWS) and dtype.kind != "f":
        raise ArtifactError(f"weights: expected steps of floats, got those of {dtype.name}")
    if kind is Kind.INTEGERS:
        if dtype.kind not in "biu":
            raise ArtifactError(f"weights: expected whole numbers, got those of {dtype.name}")
        return Values(kind, nothing, np.zeros(0, dtype), reader.signed())
    if kind is Kind.CONSTANT:
        data = bytes(reader.take(dtype.itemsize if size else 0))
        if dtype.kind == "b" and data not in (b"", b"\0", b"\1"):
            raise ArtifactError("weights: expected a boolean, found another byte")
        return Values(kind, nothing, np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype))
    if kind is Kind.GRID:
        whole, exponent = reader.varint(), reader.signed()
        if not 0 < whole < 2**53 or not whole & 1 or not -1100 < exponent < 1024:
            raise ArtifactError(f"weights: expected an odd whole number times a power of two, got {whole}, {exponent}")
        with np.errstate(all="ignore"):
            step = np.ldexp(np.float64(whole), exponent).reshape(1).astype(dtype)
        return Values(kind, nothing, step)
    if kind is Kind.ROWS:
        rows = matrix_shape(shape, turned)[0]
        return Values(kind, nothing, decode_planes(reader, dtype, (rows,)), turned=turned)
    if kind is Kind.PALETTE:
        count, offset = reader.varint(), reader.signed()
        if not 0 < count <= size:
            raise ArtifactError(f"weights: a palette of {count} values for {size} numbers")
        return Values(kind, nothing, decode_planes(reader, dtype, (count,)), offset)
    return Values(kind, nothing, np.zeros(0, dtype))


def _squeeze(name: str) -> bytes:
    """A name as bytes, its common parts as one each."""
    try:
        plain = name.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(f"weights: {name!r}: no UTF-8 can hold this name") from None
    for byte, part in _PARTS.items():
        plain = plain.replace(part.encode(), bytes([byte]))
    if len(plain) > MOST_NAME_BYTES:
        raise ConfigError(f"weights: {_short(name)}: expected a name of at most {MOST_NAME_BYTES} bytes")
    return plain


def _spell(plain: bytes) -> str:
    spelled = b"".join(_PARTS[byte].encode() if byte in _PARTS else bytes([byte]) for byte in plain)
    try:
        name = spelled.decode("utf-8")
    except UnicodeDecodeError:
        raise ArtifactError(f"weights: expected a name in UTF-8, got {_short(spelled)}") from None
    if _squeeze(name) != plain:
        raise ArtifactError(f"weights: {_short(name)}: a name spelled in another way than the shortest")
    return name


def squeezed(name: str) -> bytes:
    """A name's bytes, which the next name shares the beginning of."""
    return _squeeze(name)


def _write_name(plain: bytes, previous: bytes) -> bytes:
    shared = 0
    while shared < min(len(plain), len(previous)) and plain[shared] == previous[shared]:
        shared += 1
    return _halves(shared, len(plain) - shared) + plain[shared:]


def _read_name(reader: Reader, previous: bytes) -> bytes:
    start = reader.place
    shared, count = _read_halves(reader)
    if shared > len(previous) or shared + count > MOST_NAME_BYTES:
        raise ArtifactError(f"weights: expected a name of at most {MOST_NAME_BYTES} bytes at {start}")
    return previous[:shared] + bytes(reader.take(count))


def _halves(first: int, second: int) -> bytes:
    """Two small numbers in one byte; what does not fit in four bits follows."""
    found = bytes([(min(first, _ESCAPE) << 4) | min(second, _ESCAPE)])
    for number in (first, second):
        if number >= _ESCAPE:
            found += varint(number - _ESCAPE)
    return found


def _read_halves(reader: Reader) -> tuple[int, int]:
    both = reader.byte()
    first, second = both >> 4, both & 15
    if first == _ESCAPE:
        first += reader.varint()
    if second == _ESCAPE:
        second += reader.varint()
    return first, second


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
