"""The arithmetic coder: what it gives back, what it refuses, what it takes, and that its twin is one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tauten.codecs import _mixing, _native
from tauten.codecs._mixing import alternatives, costs, decode_matrix, encode_matrix
from tauten.codecs._mixing_settings import LAG, SHIFT, USUAL, arranged, chosen
from tauten.codecs._mixing_twin import TWIN
from tauten.errors import ArtifactError, ConfigError

NATIVE = _native.coder()
EXTREMES = (-(2**31), 2**31 - 1, -(2**31) + 1, 2**30, -1, 0, 1, 255, -256)
periods = st.sampled_from([1, 1, 2, 9, 25, 2**31 - 1])

VECTORS = json.loads((Path(__file__).parent / "mixing_vectors.json").read_text("utf-8"))

compiled = pytest.mark.skipif(NATIVE is TWIN, reason="no compiled coder here, and the twin takes long")


@st.composite
def matrices(draw: st.DrawFn, most: int = 24) -> np.ndarray:
    """Int32 matrices of every kind: empty, flat, sparse, dense, wide and of extreme values."""
    shape = draw(st.tuples(st.integers(0, most), st.integers(0, most)))
    kind = draw(st.sampled_from(["any", "small", "sparse", "middling", "extreme"]))
    if kind == "any":
        return draw(npst.arrays(np.int32, shape))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind == "extreme":
        return random.choice(np.array(EXTREMES, np.int64), shape).astype(np.int32)
    scale = {"small": 1.5, "sparse": 0.4, "middling": 60.0}[kind] * random.lognormal(0, 0.5, shape[1:])
    return np.rint(random.standard_normal(shape) * scale).astype(np.int32)


headers = st.tuples(
    st.integers(0, 1),
    st.sampled_from([0, 1, 2, 5, 31]),
    st.sampled_from([0, 1, 2, 5, 4095]),
    st.sampled_from([0, 3, 4095]),
    *[st.integers(0, 1)] * 3,
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 1),
)
"""Every setting that a header may hold, also those that no encoder of ours chooses."""


def lenet_like(rows: int = 100, columns: int = 400, seed: int = 0) -> np.ndarray:
    """A sparse matrix of unlike rows and columns, 4 % of it not zero."""
    random = np.random.default_rng(seed)
    weight = random.lognormal(0, 1.0, (rows, 1)) * random.lognormal(0, 1.2, columns)
    kept = random.random((rows, columns)) < np.minimum(0.04 * weight / weight.mean(), 0.9)
    return (kept * random.geometric(0.6, kept.shape) * random.choice((-1, 1), kept.shape)).astype(np.int32)


def entropy_bytes(q: np.ndarray) -> float:
    counts = np.unique(q, return_counts=True)[1]
    return float(-(counts * np.log2(counts / q.size)).sum() / 8)


@settings(deadline=None, max_examples=150)
@given(matrices(), periods)
def test_a_matrix_comes_back(q: np.ndarray, period: int) -> None:
    back = decode_matrix(encode_matrix(q, period), *q.shape, period)
    assert back.dtype == np.int32
    assert np.array_equal(back, q)


@compiled
@settings(deadline=None, max_examples=80)
@given(matrices(most=9), periods, headers)
def test_the_twin_gives_the_same_bits(q: np.ndarray, period: int, header: tuple[int, ...]) -> None:
    if not q.size:
        return
    laid = arranged(q, header)
    coded = NATIVE.encode(laid, q.shape, period, header)
    assert TWIN.encode(laid, q.shape, period, header) == coded
    for coder in (NATIVE, TWIN):
        back, found = coder.decode(coded, q.shape, period)
        assert found == header
        assert np.array_equal(back, laid.ravel())
    for width in (1, 3):
        told, twin_told = np.zeros((2, q.size, width), np.float32)
        whole = NATIVE.measure(laid, q.shape, period, header, told)
        assert TWIN.measure(laid, q.shape, period, header, twin_told) == whole
        assert np.array_equal(told, twin_told)


@compiled
def test_the_twin_reads_and_writes_a_layer() -> None:
    q = lenet_like(30, 100)
    header = tuple(10 if place == LAG else value for place, value in enumerate(USUAL))
    coded = NATIVE.encode(q, q.shape, 1, header)
    assert TWIN.encode(q, q.shape, 1, header) == coded
    assert np.array_equal(TWIN.decode(coded, q.shape, 1)[0].reshape(q.shape), q)


@compiled
@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60), st.integers(1, 9), st.integers(1, 9), periods)
def test_the_twin_refuses_what_the_library_refuses(data: bytes, rows: int, columns: int, period: int) -> None:
    def outcome(coder: _native.Coder) -> object:
        try:
            return coder.decode(data, (rows, columns), period)[0].tolist()
        except ArtifactError:
            return None

    assert outcome(TWIN) == outcome(NATIVE)


@pytest.mark.parametrize("coder", [pytest.param(NATIVE, id="as installed"), pytest.param(TWIN, id="twin")])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_vectors_of_the_format_hold(
    vector: dict[str, object], coder: _native.Coder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that were written once must be read for ever; this format is not changed, but followed by another."""
    monkeypatch.setattr(_mixing, "coder", lambda: coder)
    monkeypatch.setattr(_mixing, "BLOCK", vector["block"])
    q = np.array(vector["values"], np.int64).astype(np.int32).reshape(vector["shape"])
    data = bytes.fromhex(vector["data"])
    assert np.array_equal(decode_matrix(data, *q.shape, vector["period"]), q)
    if coder is NATIVE:
        assert encode_matrix(q, vector["period"]) == data


def test_an_environment_variable_forces_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUTEN_NATIVE", "0")
    assert _native.coder.__wrapped__() is TWIN


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_a_matrix_without_elements_is_no_bytes(shape: tuple[int, int]) -> None:
    assert encode_matrix(np.zeros(shape, np.int32)) == b""
    assert decode_matrix(b"", *shape).shape == shape
    assert costs(np.zeros(shape, np.int32)).shape == shape
    with pytest.raises(ArtifactError, match="too late"):
        decode_matrix(b"\0", *shape)


@compiled
@pytest.mark.parametrize("kind", ["sparse", "dense", "extreme", "zeros", "flat"])
def test_bytes_cut_short_or_made_longer_are_refused(kind: str) -> None:
    random = np.random.default_rng(3)
    q = {
        "sparse": lenet_like(20, 60),
        "dense": np.rint(random.standard_normal((20, 30)) * 2).astype(np.int32),
        "extreme": random.choice(np.array(EXTREMES, np.int64), (9, 9)).astype(np.int32),
        "zeros": np.zeros((100, 100), np.int32),
        "flat": np.arange(40, dtype=np.int32).reshape(1, -1),
    }[kind]
    data = encode_matrix(q)
    for length in range(len(data)):
        with pytest.raises(ArtifactError):
            decode_matrix(data[:length], *q.shape)
    for more in (b"\0", b"\xff", data):
        assert not _gives(data + more, q)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300), st.integers(0, 40), st.integers(0, 40), periods)
def test_any_bytes_are_refused_or_are_a_matrix(data: bytes, rows: int, columns: int, period: int) -> None:
    try:
        q = decode_matrix(data, rows, columns, period)
    except ArtifactError:
        return
    assert q.shape == (rows, columns)
    assert np.array_equal(decode_matrix(encode_matrix(q, period), rows, columns, period), q)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_changed_byte_never_gives_the_same_matrix(data: st.DataObject) -> None:
    q = lenet_like(12, 30)
    coded = bytearray(encode_matrix(q))
    coded[data.draw(st.integers(0, len(coded) - 1))] ^= data.draw(st.integers(1, 255))
    assert not _gives(bytes(coded), q)


def _gives(data: bytes, q: np.ndarray) -> bool:
    """Other bytes are refused, or are the code of another matrix: a container's checksum tells them apart."""
    try:
        return np.array_equal(decode_matrix(data, *q.shape), q)
    except ArtifactError:
        return False


@compiled
def test_a_few_hostile_bytes_do_not_keep_a_processor_busy() -> None:
    started = time.process_time()
    for data in (b"", b"\0" * 8, b"\xff" * 8, b"\x55" * 64, bytes(range(40))):
        for shape in ((1, 2**21), (2**21, 1), (1500, 1500)):
            with pytest.raises(ArtifactError):
                decode_matrix(data, *shape)
    assert time.process_time() - started < 10


@pytest.mark.parametrize(("rows", "columns", "period"), [(-1, 3, 1), (3, -1, 1), (3, 3, 0), (3, 3, 2**31)])
def test_a_shape_or_period_that_cannot_be_is_refused(rows: int, columns: int, period: int) -> None:
    with pytest.raises(ArtifactError, match="shape and period"):
        decode_matrix(b"\0", rows, columns, period)


@pytest.mark.parametrize("q", [np.zeros(3, np.int32), np.zeros((3, 3), np.int64), np.zeros((3, 3, 3), np.int32)])
def test_what_is_no_int32_matrix_is_refused(q: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="int32 matrix"):
        encode_matrix(q)


def test_views_of_any_layout_are_coded_and_left_alone() -> None:
    q = lenet_like(40, 60)
    before = q.copy()
    assert encode_matrix(np.asfortranarray(q)) == encode_matrix(q)
    assert np.array_equal(decode_matrix(encode_matrix(q[::2, ::-1]), 20, 60), q[::2, ::-1])
    assert np.array_equal(q, before)


@compiled
def test_blocks_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mixing, "BLOCK", 1000)
    q = lenet_like(100, 60)
    data = encode_matrix(q)
    assert np.array_equal(decode_matrix(data, *q.shape), q)
    assert costs(q).sum() / 8 == pytest.approx(len(data), rel=0.05)
    for length in (0, 1, 2, len(data) // 2, len(data) - 1):
        with pytest.raises(ArtifactError):
            decode_matrix(data[:length], *q.shape)


@compiled
@pytest.mark.parametrize(("share", "most"), [(0.5, 1.01), (0.1, 1.02), (0.01, 1.05)])
def test_independent_bits_take_little_more_than_their_entropy(share: float, most: float) -> None:
    q = (np.random.default_rng(1).random((300, 300)) < share).astype(np.int32)
    assert len(encode_matrix(q)) < most * entropy_bytes(q)


@compiled
def test_independent_gaussians_take_little_more_than_their_entropy() -> None:
    q = np.rint(np.random.default_rng(1).standard_normal((300, 300)) * 1.7).astype(np.int32)
    assert len(encode_matrix(q)) < 1.01 * entropy_bytes(q)
    wide = np.rint(np.random.default_rng(1).standard_normal((300, 300)) * 40).astype(np.int32)
    assert chosen(wide, 1)[SHIFT] > 1
    assert len(encode_matrix(wide)) < 1.02 * (np.log2(40) + 2.0471) * wide.size / 8


@compiled
def test_a_sparse_layer_takes_less_than_zstandard_and_than_its_entropy() -> None:
    q = lenet_like(300, 784)
    size = len(encode_matrix(q))
    assert size < 0.9 * entropy_bytes(q)
    assert size < 0.75 * len(zstandard.ZstdCompressor(level=22).compress(q.astype(np.int8).tobytes()))


@compiled
def test_a_picture_is_found_in_the_rows() -> None:
    """Weights on pixels: what is large lies together in two dimensions, which columns in one do not tell."""
    random = np.random.default_rng(5)
    field = random.standard_normal((60, 24 + 4, 24 + 4))
    field = sum(field[:, i : i + 24, j : j + 24] for i in range(4) for j in range(4)) / 4
    q = (np.rint(np.where(np.abs(field) > 1.6, field, 0))).astype(np.int32).reshape(60, -1)
    header = chosen(q, 1)
    assert header[LAG] == 24
    flat = NATIVE.measure(q, q.shape, 1, USUAL, None) / 2**19
    assert len(encode_matrix(q)) < 0.88 * flat


@compiled
def test_costs_add_up_to_the_size() -> None:
    q = lenet_like()
    told = costs(q)
    assert told.dtype == np.float32
    assert told.shape == q.shape
    assert told.sum() / 8 == pytest.approx(len(encode_matrix(q)), rel=0.03)
    assert (told[:, ~q.any(0)] == 0).all() or (told >= 0).all()
    assert told[q != 0].mean() > 5 * told[q == 0].mean()


@compiled
def test_alternatives_price_zero_the_nearer_value_and_the_value() -> None:
    q = lenet_like()
    found = alternatives(q)
    zero, nearer, same = np.moveaxis(found, 2, 0)
    assert found.shape == (*q.shape, 3)
    assert np.array_equal(zero[q == 0], same[q == 0])
    assert np.array_equal(zero[np.abs(q) == 1], nearer[np.abs(q) == 1])
    large = np.abs(q) > 2
    assert zero[large].mean() < nearer[large].mean() < same[large].mean()
    assert same.sum() == pytest.approx(costs(q).sum(), rel=0.01)
