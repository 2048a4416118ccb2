"""What is sent: arrays that fit a model's metadata, or a user's own."""

from __future__ import annotations

import os
import zipfile
from typing import Any

import numpy as np

from tauten.core.tensor import BATCH, Arrays, TensorSpec
from tauten.errors import ConfigError, ServeError
from tauten.run.serve.protocol.datatypes import DATATYPES

_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}


def read_specs(metadata: object) -> tuple[TensorSpec, ...]:
    """The inputs that a model's metadata declares; the first dimension, where variable, is taken for the batch.

    Raises ``ServeError`` for a document that is no metadata.
    """
    try:
        entries: list[dict[str, Any]] = metadata["inputs"]  # type: ignore[index]
        return tuple(
            TensorSpec(
                name=entry["name"], dtype=_DTYPES[entry["datatype"]], shape=_named(entry["name"], entry["shape"])
            )
            for entry in entries
        )
    except (TypeError, KeyError, ValueError) as fault:
        raise ServeError(f"the server's model metadata cannot be used: {type(fault).__name__}: {fault}") from None


def _named(name: str, shape: list[int]) -> tuple[int | str, ...]:
    """Variable dimensions by name: metadata does not say which are the same, so only the batch is shared."""
    return tuple(dim if dim >= 0 else BATCH if axis == 0 else f"dim_{axis}" for axis, dim in enumerate(map(int, shape)))


def random_inputs(specs: tuple[TensorSpec, ...], batch: int, seed: int) -> Arrays:
    """Standard normal floats; ones for integers and truth values, which index something in most models."""
    draw = np.random.default_rng(seed)
    return {
        spec.name: draw.standard_normal(spec.concrete(batch)).astype(spec.dtype)
        if "float" in spec.dtype
        else np.ones(spec.concrete(batch), spec.dtype)
        for spec in specs
    }


def load_npz(path: str | os.PathLike[str]) -> Arrays:
    """The arrays in a ``.npz`` file, by name. Raises ``ConfigError`` where it is none; pickled objects are refused."""
    try:
        with open(path, "rb") as opened:
            found = np.load(opened, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array without a name")
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as fault:
        raise ConfigError(f"{os.fspath(path)}: expected a .npz file of arrays: {fault}") from None


def rows(arrays: Arrays, specs: tuple[TensorSpec, ...]) -> int:
    """Samples in one request: the size of the batch dimension, 1 where there is none."""
    for spec in specs:
        if spec.batch_axis is not None:
            return int(arrays[spec.name].shape[spec.batch_axis])
    return 1
