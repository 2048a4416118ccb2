from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given
from hypothesis import strategies as st

from tauten.errors import TaskError
from tauten.make.datasets import FOLDER, mnist, read_idx


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three training images and two test images."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for prefix, samples in (("train", 3), ("t10k", 2)):
        pixels = np.arange(samples * 784).reshape(samples, 28, 28) % 256
        write(tmp_path / "mnist" / f"{prefix}-images-idx3-ubyte.gz", idx(pixels))
        write(tmp_path / "mnist" / f"{prefix}-labels-idx1-ubyte.gz", idx(np.array([7, 0, 9][:samples])))
    return tmp_path / "mnist"


def test_images_and_labels_are_read(folder: Path) -> None:
    images, labels = mnist("train")
    assert images.shape == (3, 1, 28, 28)
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    assert labels.tolist() == [7, 0, 9]
    assert images[0, 0, 0, :3].tolist() == [0, np.float32(1 / 255), np.float32(2 / 255)]
    assert images.max() == 1
    assert len(mnist("test")[1]) == 2


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"fashion-mnist.train-images-idx3-ubyte.gz: no such file; TAUTEN_DATA is the"):
        mnist("train", "fashion-mnist")


def test_unknown_names_are_refused(folder: Path) -> None:
    with pytest.raises(TaskError, match="got 'validate', 'mnist'"):
        mnist("validate")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match=r"got 'train', '\.\./mnist'"):
        mnist("train", "../mnist")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        (
            "train-images-idx3-ubyte.gz",
            np.zeros((3, 28, 27)),
            r"\(samples, 28, 28\) and as many labels, got \(3, 28, 27\)",
        ),
        ("train-labels-idx1-ubyte.gz", np.zeros(2), r"got \(3, 28, 28\) and \(2,\)"),
        ("train-labels-idx1-ubyte.gz", np.full(3, 10), "labels from 0 to 9, got 10"),
    ],
)
def test_files_that_do_not_fit_are_refused(folder: Path, file: str, array: np.ndarray, message: str) -> None:
    write(folder / file, idx(array))
    with pytest.raises(TaskError, match=message):
        mnist("train")


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape)
    path = write(tmp_path_factory.getbasetemp() / "array.gz", idx(array))
    assert np.array_equal(read_idx(path), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an IDX file of unsigned bytes"),
        (idx(np.zeros(3), kind=0x0D), "expected an IDX file of unsigned bytes"),
        (b"\x00\x00\x08\x00", "expected an IDX file of unsigned bytes"),
        (b"\x00\x00\x08\x09" + b"\x00" * 40, "expected an IDX file of unsigned bytes"),
        (b"\x00\x00\x08\x03\x00\x00", "ends inside its header"),
        (idx(np.zeros(9))[:-1], r"expected 9 bytes after the header, for \(9,\), got 8"),
        (idx(np.zeros(9)) + b"!", "expected 9 bytes after the header, for .* got more"),
        (b"\x00\x00\x08\x02" + b"\xff" * 8, "and more than 1073741824 are not read"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read_idx(write(tmp_path / "file.gz", content))


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "file.gz", idx(np.zeros(1)) + bytes(1 << 26))
    assert path.stat().st_size < 1 << 17
    with pytest.raises(TaskError, match="expected 1 bytes after the header"):
        read_idx(path)


def test_what_is_no_gzip_or_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(b"not gzip at all")
    with pytest.raises(TaskError, match="expected a gzipped IDX file"):
        read_idx(path)
    write(path, idx(np.arange(200)))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(TaskError, match="expected a gzipped IDX file"):
        read_idx(path)


def test_without_a_folder_a_failed_fetch_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionRefusedError("no network")

    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", unreachable)
    with pytest.raises(TaskError, match=r"OpenML \(ConnectionRefusedError: no network\); set TAUTEN_DATA to a folder"):
        mnist("train")


def test_without_a_folder_the_fetched_rows_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetched(name: str, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
        asked.update(settings, name=name)
        pixels = np.zeros((60_002, 784), np.uint8)
        pixels[60_000:] = 255
        return pixels, np.array(["1"] * 60_000 + ["2"] * 2, object)

    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetched)
    images, labels = mnist("test", "fashion-mnist")
    assert asked["name"] == "Fashion-MNIST"
    assert images.shape == (2, 1, 28, 28)
    assert images.min() == 1
    assert labels.tolist() == [2, 2]


@pytest.mark.skipif(FOLDER not in os.environ, reason=f"{FOLDER} names no folder with the real files")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_files_are_read(name: Any) -> None:
    for split, samples in (("train", 60_000), ("test", 10_000)):
        images, labels = mnist(split, name)  # type: ignore[arg-type]
        assert images.shape == (samples, 1, 28, 28)
        assert (np.bincount(labels, minlength=10) > samples / 20).all()
        assert 0.1 < images.mean() < 0.4
