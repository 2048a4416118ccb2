"""An answer as bytes, for where others keep it.

All numbers are little-endian::

    "tau1"   4 bytes
    born     8 bytes   milliseconds since 1970
    outputs  for each of the model's, in its order:
             rank       1 byte
             dims       4 bytes each
             elements   as many bytes as the model's type and the dims say
    tag      16 bytes  BLAKE2b of the key and all before, keyed with the secret

The tag binds an answer to its key and to those who know the secret: what was cut, changed, mixed up on the way or put
there by a stranger is none. There is no pickle and nothing else that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from hmac import compare_digest
from math import prod
from struct import Struct
from typing import Final, NamedTuple

from tauten.core.tensor import TensorSpec
from tauten.errors import InputError
from tauten.run.serve.cache.keys import derive
from tauten.run.serve.cache.memory import Value
from tauten.run.serve.protocol.datatypes import from_bytes, item_bytes, to_bytes

_MAGIC: Final = b"tau1"
_TAG_BYTES: Final = 16
_HEAD: Final = Struct("<4sQ")
_MAX_DIM: Final = 2**32 - 1


class Remembered(NamedTuple):
    """An answer, and when it was computed in milliseconds since 1970."""

    value: Value
    born_ms: int


class Frames:
    """Encodes and decodes the answers of a model with these outputs."""

    def __init__(self, secret: bytes, outputs: Sequence[TensorSpec]) -> None:
        self._outputs = tuple(outputs)
        self._state = blake2b(digest_size=_TAG_BYTES, key=derive(secret, b"tauten-cache-tag"))

    def encode(self, key: bytes, value: Value, born_ms: int) -> bytes:
        """``value``, computed at ``born_ms``, to be kept under ``key``."""
        parts = [_HEAD.pack(_MAGIC, born_ms)]
        for array in value:
            parts.append(Struct(f"<B{array.ndim}I").pack(array.ndim, *array.shape))
            parts.append(bytes(to_bytes(array)))
        body = b"".join(parts)
        return body + self._tag(key, body)

    def decode(self, key: bytes, frame: bytes) -> Remembered | None:
        """What ``encode`` was given, or ``None`` for anything else, whatever the bytes."""
        if len(frame) < _HEAD.size + _TAG_BYTES:
            return None
        body = memoryview(frame)[:-_TAG_BYTES]
        if not compare_digest(self._tag(key, body), frame[-_TAG_BYTES:]):
            return None
        magic, born_ms = _HEAD.unpack_from(body)
        if magic != _MAGIC:
            return None
        at = _HEAD.size
        arrays = []
        try:
            for spec in self._outputs:
                end = at + 1 + 4 * body[at]
                shape = [int.from_bytes(body[dim : dim + 4], "little") for dim in range(at + 1, end, 4)]
                spec.sizes(shape)
                at = end + prod(shape) * item_bytes(spec.dtype)
                arrays.append(from_bytes(spec.name, spec.dtype, shape, body[end:at]))
        except (IndexError, InputError):
            return None
        return Remembered(tuple(arrays), born_ms) if at == len(body) else None

    def _tag(self, key: bytes, body: bytes | memoryview) -> bytes:
        state = self._state.copy()
        state.update(key)
        state.update(body)
        return state.digest()
