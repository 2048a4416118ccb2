"""MNIST and Fashion-MNIST, for the examples and the benchmarks. Needs no PyTorch."""

from __future__ import annotations

import gzip
import importlib.util
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from tauten.errors import ExtraMissing, TaskError

Name = Literal["mnist", "fashion-mnist"]
Split = Literal["train", "test"]
Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

FOLDER = "TAUTEN_DATA"
"""The environment variable with the folder that holds ``mnist/`` and ``fashion-mnist/``."""

_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
_OPENML: dict[Name, str] = {"mnist": "mnist_784", "fashion-mnist": "Fashion-MNIST"}
_TRAIN = 60_000
_SIDE = 28
_CLASSES = 10

_UNSIGNED_BYTE = 0x08
_MAX_DIMS = 4
_MAX_BYTES = 1 << 30


def mnist(split: Split, name: Name = "mnist") -> tuple[Images, Labels]:
    """Images ``(samples, 1, 28, 28)`` from 0 to 1, and labels ``(samples,)`` from 0 to 9.

    MNIST is of LeCun, Cortes, Burges (1998), Fashion-MNIST of Xiao, Rasul, Vollgraf (2017). Read from
    ``$TAUTEN_DATA/<name>/*-ubyte.gz`` where that is set, fetched from OpenML through scikit-learn (and kept in its
    cache) where not. Raises ``TaskError`` where they cannot be had.
    """
    if split not in get_args(Split) or name not in get_args(Name):
        raise TaskError(
            f"expected a split of {get_args(Split)} and a name of {get_args(Name)}, got {split!r}, {name!r}"
        )
    folder = os.environ.get(FOLDER)
    pixels, labels = _read(Path(folder) / name, split) if folder else _fetch(name, split)
    images = pixels.astype(np.float32)[:, np.newaxis] / np.float32(255)
    return images, labels.astype(np.int64)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array in a gzipped IDX file of unsigned bytes.

    Raises ``TaskError`` where the file is missing, damaged, of another type, over 1 GiB, or shorter or longer than its
    header says.
    """
    try:
        with gzip.open(path, "rb") as stream:
            shape = _shape(path, stream.read(4), stream)
            size = math.prod(shape)
            if size > _MAX_BYTES:
                raise TaskError(f"{path}: its header says {size} bytes, and more than {_MAX_BYTES} are not read")
            payload = stream.read(size + 1)
    except FileNotFoundError:
        raise TaskError(f"{path}: no such file; {FOLDER} is the folder that holds {path.parent.name}/") from None
    except (OSError, EOFError, zlib.error) as fault:
        raise TaskError(f"{path}: expected a gzipped IDX file: {fault}") from fault
    if len(payload) != size:
        more = "more" if len(payload) > size else f"{len(payload)}"
        raise TaskError(f"{path}: expected {size} bytes after the header, for {shape}, got {more}")
    return np.frombuffer(payload, np.uint8).reshape(shape)


def _shape(path: Path, magic: bytes, stream: gzip.GzipFile) -> tuple[int, ...]:
    if len(magic) != 4 or magic[:3] != bytes([0, 0, _UNSIGNED_BYTE]) or not 1 <= magic[3] <= _MAX_DIMS:
        raise TaskError(
            f"{path}: expected an IDX file of unsigned bytes (it starts with 00 00 08), got {magic.hex(' ')}"
        )
    header = stream.read(4 * magic[3])
    if len(header) != 4 * magic[3]:
        raise TaskError(f"{path}: ends inside its header")
    return struct.unpack(f">{magic[3]}I", header)


def _read(folder: Path, split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    prefix = _PREFIX[split]
    pixels = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    if pixels.shape[1:] != (_SIDE, _SIDE) or labels.shape != pixels.shape[:1] or not len(labels):
        raise TaskError(
            f"{folder}: expected {split} images of shape (samples, {_SIDE}, {_SIDE}) and as many labels, "
            f"got {pixels.shape} and {labels.shape}"
        )
    if labels.max() >= _CLASSES:
        raise TaskError(f"{folder}: expected {split} labels from 0 to {_CLASSES - 1}, got {labels.max()}")
    return pixels, labels


def _fetch(name: Name, split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    try:
        from sklearn.datasets import fetch_openml  # type: ignore[import-untyped]
    except ModuleNotFoundError as fault:
        raise ExtraMissing(f"fetching {name} ({fault.name} is not installed)", "demo") from fault
    # scikit-learn parses fast with pandas, and without it where that is not installed.
    parser = "pandas" if importlib.util.find_spec("pandas") else "liac-arff"
    try:
        pixels, labels = fetch_openml(_OPENML[name], version=1, return_X_y=True, as_frame=False, parser=parser)
    except (OSError, ValueError) as fault:
        raise TaskError(
            f"{name} could not be fetched from OpenML ({type(fault).__name__}: {fault}); set {FOLDER} to a folder that "
            f"holds {name}/train-images-idx3-ubyte.gz and its three siblings"
        ) from fault
    part = slice(0, _TRAIN) if split == "train" else slice(_TRAIN, None)
    return pixels[part].reshape(-1, _SIDE, _SIDE).astype(np.uint8), labels[part].astype(np.uint8)
