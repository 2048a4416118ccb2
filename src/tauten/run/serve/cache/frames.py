"""An answer as bytes, for where others keep it.

All numbers are little-endian::

    "tau1"   4 bytes
    born     8 bytes   milliseconds since 1970
    outputs  for each of the model's, in its order:
             rank       1 byte
             dims       4 bytes each
             length     8 bytes
             elements   as many bytes, as the protocol's binary extension has them
    tag      16 bytes  BLAKE2b of the key and all before, keyed with the secret

The tag binds an answer to its key and to those who know the secret: what was cut, changed, mixed up on the way or put
there by a stranger is none. There is no pickle and nothing else that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from hmac import compare_digest
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from tauten.core.tensor import TensorSpec
from tauten.errors import InputError
from tauten.run.serve.cache.keys import derive
from tauten.run.serve.cache.memory import Value
from tauten.run.serve.protocol.datatypes import from_bytes, to_bytes

_MAGIC: Final = b"tau1"
_TAG_BYTES: Final = 16
_HEAD: Final = Struct("<4sQ")


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
            elements = to_bytes(array)
            parts.append(Struct(f"<B{array.ndim}IQ").pack(array.ndim, *array.shape, len(elements)))
            parts.append(bytes(elements))
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
                head = Struct(f"<{body[at]}IQ")
                *shape, length = head.unpack_from(body, at + 1)
                spec.sizes(shape)
                begin = at + 1 + head.size
                at = begin + length
                array = from_bytes(spec.name, spec.dtype, shape, body[begin:at])
                array.setflags(write=False)
                arrays.append(array)
        except (IndexError, StructError, InputError):
            return None
        return Remembered(tuple(arrays), born_ms) if at == len(body) else None

    def _tag(self, key: bytes, body: bytes | memoryview) -> bytes:
        state = self._state.copy()
        state.update(key)
        state.update(body)
        return state.digest()
