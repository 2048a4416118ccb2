"""Weights as they are: the safetensors format (Hugging Face, 2022), which any tool reads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from tauten.core.tensor import Array, Arrays
from tauten.errors import ArtifactError

__all__ = ["PLAIN"]


class Plain:
    """Uncoded little-endian arrays behind a JSON header."""

    suffix = ".safetensors"

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        # Sorted, so that equal weights are equal bytes whatever order they came in.
        return safetensors.numpy.save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})

    def decode(self, data: bytes) -> Arrays:
        try:
            return dict(safetensors.numpy.load(data))
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as fault:
            raise ArtifactError(f"weights: expected a safetensors file, got {type(fault).__name__}: {fault}") from None


PLAIN = Plain()
