"""The container of coded weights: what it costs, what it refuses, and that it is read a tensor at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tauten.codecs import CODECS, container
from tauten.codecs._huffman import decode_huffman, encode_huffman
from tauten.codecs._mixing import decode_matrix, encode_matrix
from tauten.codecs._planes import decode_planes, pack, unpack
from tauten.codecs._wire import Reader, signed, varint
from tauten.core.tensor import Array
from tauten.errors import ArtifactError, ConfigError
from tauten.testing.codecs import same

CODED = ("zstd", "huffman", "arithmetic")
DRAW = np.random.default_rng(0)


def sparse(rows: int, columns: int, share: float, step: float = 0.043) -> Array:
    levels = np.rint(DRAW.laplace(0, 1.5, (rows, columns))) * (DRAW.random((rows, columns)) < share)
    return (levels.astype(np.float32) * np.float32(round(step * 4096) / 4096)) + np.float32(0)


def lenet() -> dict[str, Array]:
    """Six tensors as LeNet-300-100 has them after training for a budget."""
    found = {}
    for index, (out, into) in enumerate([(60, 400), (40, 60), (10, 40)]):
        found[f"fc{index + 1}.weight"] = sparse(out, into, 0.05)
        found[f"fc{index + 1}.bias"] = sparse(1, out, 0.9)[0]
    return found


MIXED = {
    "conv.weight": sparse(8, 27, 0.3).reshape(8, 3, 3, 3),
    "conv.bias": sparse(1, 8, 1)[0],
    "codes": DRAW.integers(-8, 8, (16, 20)).astype(np.int8),
    "scale": DRAW.normal(0, 1, 16).astype(np.float32),
    "shared": DRAW.normal(0, 1, 9).astype(np.float32)[DRAW.integers(0, 9, (30, 20))],
    "raw": DRAW.normal(0, 1, (20, 30)).astype(np.float32),
    "half": DRAW.normal(0, 1, (20, 30)).astype(np.float16),
    "ones": np.ones(300, np.float32),
    "none": np.zeros((3, 0)),
    "flag": np.array(True),
    "index": np.arange(40, dtype=np.int64),
}


@pytest.mark.parametrize("codec", CODED)
def test_every_kind_comes_back(codec: str) -> None:
    data = CODECS.get(codec).encode(MIXED)
    assert same(CODECS.get(codec).decode(data), MIXED)
    # One format: whichever wrote it, each reads it.
    assert all(same(CODECS.get(other).decode(data), MIXED) for other in CODED)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(CODED))
def test_layers_of_any_shape_come_back(data: st.DataObject, codec: str) -> None:
    """Grids, steps a row and palettes with biases beside them, which the arithmetic coder may join."""
    weights: dict[str, Array] = {}
    for place in range(data.draw(st.integers(1, 3))):
        shape = data.draw(npst.array_shapes(min_dims=1, max_dims=4, max_side=9))
        levels = data.draw(npst.arrays(np.int8, shape, elements=st.integers(-6, 6), fill=st.just(0)))
        step = data.draw(st.sampled_from([0.25, 0.1, 3e-5]))
        way = data.draw(st.sampled_from(["grid", "rows", "codes", "float64"]))
        array = levels.astype("f4") * np.float32(step)
        if way == "rows":
            array *= np.arange(1, shape[0] + 1, dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
        kind = {"codes": np.int8, "float64": np.float64}.get(way, np.float32)
        weights[f"{place}.weight"] = levels if way == "codes" else array.astype(kind) + kind(0)
        weights[f"{place}.bias"] = weights[f"{place}.weight"].reshape(shape[0], -1)[:, 0].copy()
    assert same(CODECS.get(codec).decode(CODECS.get(codec).encode(weights)), weights)


def test_names_shapes_and_checksums_take_about_a_hundred_bytes() -> None:
    data = CODECS.get("arithmetic").encode(lenet())
    streams = sum(len(stored.payload) for stored in container.entries(data))
    assert len(data) - streams <= 110


def test_the_smallest_of_what_was_tried_is_kept() -> None:
    sizes = {codec: len(CODECS.get(codec).encode(lenet())) for codec in CODED}
    assert sizes["arithmetic"] < sizes["huffman"]
    assert sizes["arithmetic"] < sizes["zstd"]


def test_what_tensors_take_adds_up_to_the_file() -> None:
    data = CODECS.get("arithmetic").encode(MIXED)
    told = container.coded_bytes(data)
    assert set(told) == set(MIXED)
    head = len(container.MAGIC) + 1 + len(varint(sum(a.nbytes for a in MIXED.values()))) + len(varint(len(MIXED)))
    assert sum(told.values()) == len(data) - head


def test_tensors_are_written_and_read_one_by_one() -> None:
    plan = container.Plan((container.MIXING,), every=True, joins=True)
    parts = list(container.iter_encode(MIXED, plan))
    assert b"".join(parts) == container.encode(MIXED, plan)
    assert len(parts) == len(MIXED) + 1
    reading = container.iter_decode(b"".join(parts))
    assert next(reading)[0] == "codes"
    assert [name for name, _ in reading] == sorted(MIXED)[1:]


def test_large_weights_come_back_in_order_from_several_threads() -> None:
    weights = {f"{place:02d}": DRAW.integers(-3, 4, 400_000).astype(np.float32) for place in range(4)}
    data = container.encode(weights, container.Plan((container.HUFFMAN,)))
    parts = list(container.iter_decode(data))
    assert [name for name, _ in parts] == list(weights)
    assert same(dict(parts), weights)
    with pytest.raises(ArtifactError):
        container.decode(data[:-1] + b"!")


def test_a_damaged_tensor_does_not_hide_those_before_it() -> None:
    data = bytearray(CODECS.get("zstd").encode({"a": sparse(9, 9, 1), "b": sparse(9, 9, 1)}))
    data[-1] ^= 1
    reading = container.iter_decode(data)
    assert next(reading)[0] == "a"
    with pytest.raises(ArtifactError, match="damaged"):
        next(reading)


@pytest.mark.parametrize("codec", CODED)
def test_every_cut_and_every_flip_is_found(codec: str) -> None:
    data = CODECS.get(codec).encode({"a.weight": sparse(6, 9, 0.5), "a.bias": sparse(1, 6, 1)[0], "z": np.ones(3)})
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        for bad in (data[:place], bytes(flipped)):
            with pytest.raises(ArtifactError):
                CODECS.get(codec).decode(bad)
    with pytest.raises(ArtifactError, match="after its end"):
        CODECS.get(codec).decode(data + b"\0")


def head(*entries: bytes, total: int = 0, count: int | None = None) -> bytes:
    found = container.MAGIC + bytes([1]) + varint(total) + varint(len(entries) if count is None else count)
    return found + b"".join(entries)


def tensor(*after_name: bytes | int, name: bytes = b"a") -> bytes:
    """An entry that is whole, whatever it claims: its name, then the rest, and a checksum."""
    rest = b"".join(part if isinstance(part, bytes) else bytes([part]) for part in after_name)
    return bytes([len(name)]) + name + rest + bytes(4)


FLOAT, BOOL, CHECKED, COLUMN, GRID, STEP = 0xA0, 0x00, 128, 64, 2, bytes([1, 0])
EMPTY = bytes([FLOAT + 1, 0, CHECKED])
HOSTILE = {
    "no bytes": (b"", "begin with"),
    "half a magic number": (b"TT", "begin with"),
    "another version": (container.MAGIC + bytes([2, 0, 0]), "expected format 1, got 2"),
    "more than the limit": (head(total=2**40), "at most 67108864 bytes, got 1099511627776"),
    "tensors without end": (head(count=2**40), "1 more bytes"),
    "a number without end": (container.MAGIC + b"\1" + b"\xff" * 20, "whole number"),
    "a number told at length": (container.MAGIC + b"\1\x80\0\0", "whole number"),
    "a name that goes on elsewhere": (head(bytes([0x51]) + b"a" + EMPTY), "a name of at most"),
    "a name spelled at length": (head(tensor(EMPTY, name=b".bias")), "another way than the shortest"),
    "a name that is no text": (head(tensor(EMPTY, name=b"\xd0")), "UTF-8"),
    "a type that there is not": (head(tensor(0xC0, CHECKED)), "a type and at most"),
    "dimensions without end": (head(bytes([1]) + b"a" + bytes([0xAF]) + varint(2**30)), "32 dimensions"),
    "a shape of more than is left": (
        head(tensor(FLOAT + 1, varint(2**25), CHECKED, bytes(4)), total=4),
        "at most 4 bytes",
    ),
    "a side that no array has": (head(tensor(FLOAT + 2, 0, varint(2**60), CHECKED)), "got shape"),
    "a way that there is not": (head(tensor(FLOAT + 1, 1, CHECKED + 6), total=4), "a way to code it"),
    "rows of a vector": (head(tensor(FLOAT + 1, 1, CHECKED + 8 + 3), total=4), "a way to code it"),
    "a grid that is turned": (head(tensor(FLOAT + 2, 1, 1, CHECKED + 8 + GRID), total=4), "a way to code it"),
    "a column with a coder": (head(tensor(FLOAT + 1, 1, COLUMN + 16 + GRID), total=4), "a way to code it"),
    "a boolean of two": (head(tensor(BOOL + 1, 1, CHECKED, 2), total=1), "a boolean"),
    "no checksum at the end": (head(tensor(FLOAT + 1, 1, 0, bytes(4)), total=4), "a checksum after the last"),
    "a column of nothing": (head(tensor(FLOAT + 1, 1, COLUMN + GRID, STEP), total=4), "a checksum after the last"),
    "a column of a vector": (
        head(
            tensor(FLOAT + 1, 1, COLUMN + GRID, STEP)[:-4],
            tensor(FLOAT + 1, 1, CHECKED + GRID, STEP, bytes([3, 1, 0, 0]), name=b"b"),
            total=8,
        ),
        "no room for it as its last column",
    ),
    "a palette of more than there is": (head(tensor(FLOAT + 1, 2, CHECKED + 4, 3, 0), total=8), "a palette of 3"),
    "less than was said": (head(tensor(FLOAT + 1, 1, CHECKED, bytes(4)), total=400), "396 more bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_crafted_heads_are_refused(name: str) -> None:
    data, why = HOSTILE[name]
    with pytest.raises(ArtifactError, match=why):
        list(container.entries(data))
    with pytest.raises(ArtifactError):
        container.decode(data)


def bomb(way: int, parameters: bytes, payload: bytes) -> bytes:
    """A megabyte of numbers, of which a few bytes are said to tell all."""
    side = 2**20
    return head(tensor(0x11, varint(side), CHECKED + way, parameters, varint(len(payload)), payload), total=side)


BOMBS = {
    "huffman": bomb(16 + 1, b"\0", bytes([0, 1, 0])),  # dense; a table of one symbol, which is 0
    "arithmetic": bomb(32 + 1, b"\0", bytes(8)),
    "planes": bomb(1, b"\0", bytes([1, 2, 3, 4])),
    "a plane by itself": bomb(5, b"", varint(2 * 64) + bytes(8)),
    "a modelled plane": bomb(5, b"", varint(2 * 64 + 1) + bytes(64)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bytes_that_cannot_hold_so_much_are_refused_before_they_are_decoded(name: str) -> None:
    with pytest.raises(ArtifactError, match="cannot hold"):
        container.decode(BOMBS[name])


def test_packed_bytes_are_held_to_their_size_and_their_window() -> None:
    with pytest.raises(ArtifactError, match="cannot hold"):
        unpack(bytes(4), 2**20)
    packed = bytearray(pack(b"xy" * 2000, 3))
    assert unpack(bytes(packed), 4000) == b"xy" * 2000
    packed[0] = (24 - 10) << 3  # a window of 2**24 bytes, which a reader would have to hold
    with pytest.raises(ArtifactError, match="too much memory"):
        unpack(bytes(packed), 4000)


def test_planes_hold_bytes_and_booleans() -> None:
    modelled = encode_matrix(np.array([[3, 300]], np.int32))
    planes = varint(2 * len(modelled) + 1) + modelled
    with pytest.raises(ArtifactError, match="bytes in a plane"):
        decode_planes(
            Reader(planes), np.dtype("u1"), (2,), lambda data, rows, columns: decode_matrix(bytes(data), rows, columns)
        )
    with pytest.raises(ArtifactError, match="booleans"):
        decode_planes(Reader(bytes([0, 1, 2])), np.dtype(bool), (2,))


def test_names_come_in_order_and_once() -> None:
    one = container.encode({"b": np.ones(2)}, container.Plan((container.PLANES,)))
    entry = one[len(head(total=16, count=1)) :]
    twice = head(entry, entry, total=32)
    with pytest.raises(ArtifactError, match="in order"):
        container.decode(twice)


def test_what_has_no_room_is_refused_at_once() -> None:
    for arrays in ({"a" * 2000: np.ones(1)}, {"x": np.ones(2, np.complex64)}, {"\ud800": np.ones(1)}):
        with pytest.raises(ConfigError):
            CODECS.get("zstd").encode(arrays)


def test_a_bias_is_a_column_of_its_matrix() -> None:
    weights = lenet()
    live = DRAW.random(300) < 0.1
    weights["fc1.weight"] = sparse(300, 40, 0.5) * live[:, None]
    weights["fc1.bias"] = sparse(1, 300, 1)[0] * live
    stored = {one.head.name: one.head.joined for one in container.entries(CODECS.get("arithmetic").encode(weights))}
    assert stored["fc1.bias"]
    assert not stored["fc1.weight"]


def test_whole_numbers_are_read_as_written() -> None:
    for value in (0, 1, 127, 128, 300, 2**60):
        assert Reader(varint(value)).varint() == value
        assert Reader(signed(-value)).signed() == -value
        assert Reader(signed(value)).signed() == value


@pytest.mark.parametrize(
    "levels",
    [
        DRAW.integers(-5, 6, (3, 5)),
        np.zeros((4, 7)),
        np.full((2, 2), -9),
        np.eye(300),
        DRAW.integers(-1000, 1000, (50, 90)),
        np.where(DRAW.random((200, 400)) < 0.01, DRAW.integers(-3, 4, (200, 400)), 0),
        np.rint(DRAW.normal(0, 3, (130, 100))),
        np.minimum(DRAW.geometric(0.5, (250, 400)), 30),
    ],
    ids=lambda levels: f"{levels.shape}",
)
def test_huffman_gives_back(levels: Array) -> None:
    whole = levels.astype(np.int32)
    coded = encode_huffman(whole)
    assert coded is not None
    assert (decode_huffman(memoryview(coded), *whole.shape) == whole).all()


ONE_BIT_EACH = bytes([0, 2, 0, 0, 0])  # dense; a table of 0 and 1, whose codes have a bit
CODES = {
    "no table": (bytes([0, 0]), 5, "a table of 0 symbols for 5"),
    "a table without end": (bytes([0]) + varint(2**40), 5, "a table of"),
    "a symbol too large": (bytes([0, 1]) + signed(2**31), 5, "32 bits"),
    "runs too long": (varint(600) + bytes([1]), 5, "runs of zeros in 5 numbers"),
    "more runs than numbers": (bytes([15, 100]), 5, "runs of zeros in 5 numbers"),
    "a run that leaves the matrix": (bytes([15, 1, 1, 24, 1, 6]), 5, "leave the matrix"),
    "lengths of no code": (bytes([0, 2, 0, 0, 0x11, 5, 0]), 5, "no code"),
    "more bits than there are": (ONE_BIT_EACH + varint(1000), 5, "1000 bits of codes"),
    "lanes too long": (ONE_BIT_EACH + bytes([0, 40]) + bytes(99), 2048, "less than 2"),
    "a bit after the last": (ONE_BIT_EACH + bytes([5, 7]), 5, "zeros after the last"),
    "a lane that ends elsewhere": (ONE_BIT_EACH + bytes([6, 0]), 5, "elsewhere"),
    "a short lane that ends elsewhere": (ONE_BIT_EACH + varint(1025) + bytes(1 + 257), 2049, "elsewhere"),
    "a byte after the last": (ONE_BIT_EACH + bytes([5, 0, 0]), 5, "after its end"),
}


@pytest.mark.parametrize("name", CODES)
def test_crafted_codes_are_refused(name: str) -> None:
    data, size, why = CODES[name]
    with pytest.raises(ArtifactError, match=why):
        decode_huffman(data, 1, size)


def test_huffman_comes_close_to_the_entropy() -> None:
    whole = np.rint(DRAW.normal(0, 3, (500, 400))).astype(np.int32)
    counts = np.unique(whole, return_counts=True)[1]
    entropy = float((counts * np.log2(whole.size / counts)).sum()) / 8
    coded = encode_huffman(whole)
    assert coded is not None
    assert entropy <= len(coded) <= 1.03 * entropy


def test_codes_of_extreme_counts_stay_within_sixteen_bits() -> None:
    counts = np.minimum(2 ** np.arange(24, dtype=np.int64), 2**16)
    whole = np.repeat(np.arange(24), counts).astype(np.int32).reshape(1, -1)
    coded = encode_huffman(whole)
    assert coded is not None
    assert (decode_huffman(memoryview(coded), *whole.shape) == whole).all()


def test_more_values_than_a_table_holds_are_left_to_planes() -> None:
    assert encode_huffman(np.arange(5000, dtype=np.int32).reshape(1, -1)) is None
    array = DRAW.permutation(5000).astype(np.int32)
    assert same(CODECS.get("huffman").decode(CODECS.get("huffman").encode({"x": array})), {"x": array})
