"""The plain codec against the safetensors library, and against files that no writer of ours makes."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from tauten.codecs.plain import PLAIN
from tauten.errors import ArtifactError, ConfigError
from tauten.testing.codecs import same, weights


def file(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@settings(deadline=None)
@given(weights)
def test_the_library_reads_what_it_writes_and_the_other_way_round(arrays: dict[str, np.ndarray]) -> None:
    data = PLAIN.encode(arrays)
    assert same(safetensors.numpy.load(data), arrays)
    assert same(PLAIN.decode(safetensors.numpy.save(arrays, metadata={"made": "elsewhere"})), arrays)


@settings(deadline=None, max_examples=200)
@given(weights, st.data())
def test_what_the_library_refuses_it_refuses(arrays: dict[str, np.ndarray], data: st.DataObject) -> None:
    damaged = bytearray(PLAIN.encode(arrays))
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    try:
        found = PLAIN.decode(bytes(damaged))
    except ArtifactError:
        return
    assert same(found, safetensors.numpy.load(bytes(damaged)))


def test_a_bytearray_is_not_copied_and_bytes_are() -> None:
    given_away = bytearray(PLAIN.encode({"a": np.zeros(1000, np.float32)}))
    assert np.shares_memory(PLAIN.decode(given_away)["a"], np.frombuffer(given_away, np.uint8))
    kept = bytes(given_away)
    PLAIN.decode(kept)["a"].fill(1)
    assert kept == bytes(given_away)


def test_arrays_that_lie_askew_are_set_straight() -> None:
    header = {"a": entry("I8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}
    found = PLAIN.decode(file(header, b"\x05" + np.array([1, 2], "<f4").tobytes()))
    assert found["b"].flags.aligned
    np.testing.assert_array_equal(found["b"], [1, 2])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (file({"a": entry("F32", [1], 0, 4)}, b"123"), "ends at 4, beyond the file"),
        (file({"a": entry("F32", [1], 4, 8)}, b"12345678"), "expected its bytes at 0, found 4"),
        (file({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, b"123456"), "expected its bytes at 4"),
        (file({"a": entry("F32", [2], 0, 4)}, b"1234"), "differ in size"),
        (file({"a": entry("F32", [1], 0, 4)}, b"12345678"), "expected .* bytes, got"),
        (file({"a": entry("BOOL", [1], 0, 1)}, b"\x02"), "expected booleans"),
        (file({"a": entry("F32", [0, 2**62, 2**62], 0, 0)}), "no array can have the shape"),
        (file({"a": entry("F32", [1] * 40, 0, 4)}, b"1234"), "expected dtype, shape and data_offsets"),
        (file({"a": entry("F32", [True], 0, 4)}, b"1234"), "expected dtype, shape and data_offsets"),
        (file({"a": {**entry("F32", [1], 0, 4), "data_offsets": [0, 4, 4]}}, b"1234"), "expected dtype"),
        (file({"a": {**entry("F32", [1], 0, 4), "more": 1}}, b"1234"), "expected dtype"),
        (file({"a": {**entry("F32", [1], 0, 4), "dtype": ["F32"]}}, b"1234"), "expected a dtype of"),
        (file([]), "expected a header that is an object"),
        (struct.pack("<Q", 4) + b"\xff\xff\xff\xff", "expected a header of JSON"),
        (struct.pack("<Q", 2**40) + b"{}", "without a whole header"),
        (b"short", "without a whole header"),
    ],
)
def test_files_against_the_format_are_refused_with_the_reason(data: bytes, told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        PLAIN.decode(data)


def test_a_header_without_end_is_not_parsed() -> None:
    with pytest.raises(ArtifactError, match="without a whole header"):
        PLAIN.decode(struct.pack("<Q", 2**25) + b" " * 2**25)


@pytest.mark.parametrize(
    "arrays",
    [{"a": np.zeros(1, complex)}, {"a": np.array(["text"])}, {"a": np.array([{}])}, {"__metadata__": np.zeros(1)}],
)
def test_arrays_that_the_format_cannot_hold_are_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arrays))):
        PLAIN.encode(arrays)
