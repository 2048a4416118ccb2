"""Elements of bytes: what was packed is unpacked, and what was not is refused."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauten.errors import InputError
from tauten.run.serve.protocol.datatypes import from_bytes, from_json, json_ready, to_bytes
from tauten.run.serve.protocol.elements import BYTES, Packed, bounds, pack_elements, to_objects, unpack_elements

elements = st.lists(st.binary(max_size=40), max_size=20)


@given(elements)
def test_what_was_packed_is_unpacked(items: list[bytes]) -> None:
    assert unpack_elements("t", (len(items),), pack_elements(items)) == items
    array = to_objects(items, (len(items),))
    assert bytes(to_bytes(array)) == pack_elements(items)
    assert from_bytes("t", BYTES, (len(items),), to_bytes(array)).tolist() == items


@given(st.binary(max_size=60), st.integers(0, 8))
def test_any_bytes_are_elements_or_an_error(data: bytes, count: int) -> None:
    try:
        items = unpack_elements("t", (count,), data)
    except InputError:
        return
    assert len(items) == count
    assert pack_elements(items) == data


@given(st.integers(1, 6), st.integers(1, 3), st.data())
def test_rows_are_cut_where_elements_end(rows: int, each: int, data: st.DataObject) -> None:
    items = data.draw(st.lists(st.binary(max_size=9), min_size=rows * each, max_size=rows * each))
    packed = Packed(pack_elements(items))
    ends = bounds(packed, rows)
    assert len(ends) == rows + 1
    cut = [packed[begin:end] for begin, end in pairwise(ends)]
    assert [unpack_elements("t", (each,), part) for part in cut] == [
        items[row * each : (row + 1) * each] for row in range(rows)
    ]


@pytest.mark.parametrize(
    ("data", "shape", "says"),
    [
        ("0300000061", (1,), "t: element 0 should have 3 bytes, 2 of them are missing"),
        ("0100", (1,), "t: expected 4 bytes of length at byte 0, only 2 are left"),
        ("0000000000000000", (1,), "t: expected 1 elements for shape [1], got more"),
        ("00000000", (2,), "t: expected 2 elements for shape [2], got 1"),
        ("ffffffff00", (1,), "t: element 0 should have 4294967295 bytes, 4294967294 of them are missing"),
    ],
)
def test_what_is_wrong_is_said(data: str, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(InputError) as caught:
        unpack_elements("t", shape, bytes.fromhex(data))
    assert str(caught.value) == says


def test_json_has_texts_alone() -> None:
    array = from_json("t", BYTES, (2, 1), [["ä"], ["b"]])
    assert array.tolist() == [["ä".encode()], [b"b"]]
    assert json_ready("t", array) == ["ä", "b"]
    with pytest.raises(InputError, match="expected BYTES as strings, got int"):
        from_json("t", BYTES, (1,), [1])
    with pytest.raises(InputError, match="ask for it with 'binary_data': true"):
        json_ready("t", to_objects([b"\xff"], (1,)))


def test_an_array_of_objects_keeps_what_numpy_would_change() -> None:
    array = to_objects([b"a\0\0", b""], (2,))
    assert array.tolist() == [b"a\0\0", b""]
    assert array.dtype == np.dtype(object)
