"""Answers as bytes, and bytes that are none."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tauten.core.tensor import TensorSpec
from tauten.run.serve.cache.frames import Frames
from tauten.run.serve.protocol.elements import BytesSpec

SPECS = [
    TensorSpec(name="y", shape=("batch", "n")),
    TensorSpec(name="half", shape=("batch",), dtype="float16"),
    BytesSpec(name="label", shape=("batch",)),
    TensorSpec(name="is", shape=("batch", 2), dtype="bool"),
]
VALUE = (
    np.array([[1.5, np.nan, -0.0]], np.float32),
    np.array([2], np.float16),
    np.array([b"cat"], object),
    np.array([[True, False]]),
)
KEY = bytes(range(16))
FRAMES = Frames(b"secret", SPECS)
FRAME = FRAMES.encode(KEY, VALUE, 1_234)


def test_what_was_encoded_is_decoded() -> None:
    found = FRAMES.decode(KEY, FRAME)
    assert found is not None
    assert found.born_ms == 1_234
    for came, expected in zip(found.value, VALUE, strict=True):
        assert came.dtype == expected.dtype
        assert came.shape == expected.shape
        assert came.dtype == object or came.tobytes() == expected.tobytes()
        assert not came.flags.writeable
    assert found.value[2].tolist() == [b"cat"]


def test_another_keys_answer_is_none() -> None:
    assert FRAMES.decode(KEY[::-1], FRAME) is None


def test_who_does_not_know_the_secret_cannot_put_an_answer_there() -> None:
    assert Frames(b"other", SPECS).decode(KEY, FRAME) is None


def test_what_was_cut_or_lengthened_is_none() -> None:
    for size in range(len(FRAME)):
        assert FRAMES.decode(KEY, FRAME[:size]) is None
    assert FRAMES.decode(KEY, FRAME + b"\0") is None
    assert FRAMES.decode(KEY, b"\0" + FRAME) is None


def test_what_was_changed_is_none() -> None:
    for place in range(len(FRAME)):
        changed = bytearray(FRAME)
        changed[place] ^= 1
        assert FRAMES.decode(KEY, bytes(changed)) is None


def forged(body: bytes) -> bytes:
    """``body`` by one who knows the secret."""
    return body + FRAMES._tag(KEY, body)


def test_what_does_not_fit_the_model_is_none_even_with_a_tag() -> None:
    body = FRAME[:-16]
    assert FRAMES.decode(KEY, forged(body)) is not None
    for wrong in (
        b"",
        body[:-1],
        body + b"\0",
        b"tau2" + body[4:],
        body[:12] + b"\xff" + body[13:],
        body[:12] + b"\x02" + b"\xff" * 8 + body[21:],
        body[:21] + b"\xff" * 8 + body[29:],
        body[:-1] + b"\x02",  # a truth value of 2
        Frames(b"secret", SPECS[:3]).encode(KEY, VALUE[:3], 0)[:-16],
        FRAMES.encode(KEY, (*VALUE[:3], np.ones((1, 3), bool)), 0)[:-16],
        FRAMES.encode(KEY, (*VALUE[:3], np.ones((2, 2), bool).reshape(4)), 0)[:-16],
    ):
        assert FRAMES.decode(KEY, forged(wrong)) is None, wrong


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_none(body: bytes) -> None:
    assert FRAMES.decode(KEY, body) is None
    FRAMES.decode(KEY, forged(b"tau1" + body))
