"""Weights as they are: the safetensors format (Hugging Face, 2022), which any tool reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, get_args

import numpy as np
import safetensors
import safetensors.numpy

from tauten.core.tensor import Array, Arrays, DType
from tauten.errors import ArtifactError, ConfigError

__all__ = ["PLAIN"]

_DTYPES: Final = frozenset(get_args(DType))
_RESERVED: Final = "__metadata__"


class Plain:
    """Uncoded little-endian arrays behind a JSON header."""

    suffix = ".safetensors"

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        for name, array in arrays.items():
            if array.dtype.name not in _DTYPES or name == _RESERVED:
                raise ConfigError(f"weights: {name!r} ({array.dtype.name}): safetensors has no such array")
        # Sorted, so that equal weights are equal bytes whatever order they came in. Little-endian here, because
        # safetensors would swap the caller's own bytes; asarray, because ascontiguousarray makes a scalar a vector.
        return safetensors.numpy.save(
            {
                name: np.asarray(arrays[name], dtype=arrays[name].dtype.newbyteorder("<"), order="C")
                for name in sorted(arrays)
            }
        )

    def decode(self, data: bytes) -> Arrays:
        try:
            return dict(safetensors.numpy.load(data))
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as fault:
            raise ArtifactError(f"weights: expected a safetensors file, got {type(fault).__name__}: {fault}") from None


PLAIN = Plain()
