"""What an answer is remembered under: 128 bits that nobody can aim at without the secret."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from math import prod
from struct import pack
from typing import Final

import numpy as np

from tauten.core.tensor import TensorSpec
from tauten.run.serve.call import Call
from tauten.run.serve.protocol.buffer import Buffer
from tauten.run.serve.protocol.elements import BytesSpec, Packed, bounds

KEY_BYTES: Final = 16


class Keys:
    """The keys of one model's answers: BLAKE2b (Aumasson and others, 2013), keyed with all that is not in a request.

    ``secret`` makes keys unpredictable: who does not know it cannot make two requests that share one. ``identity`` is
    what tells this model from any other: name, version, a digest of its artifact, whatever else changes its answers.
    Names and types of the inputs go in as well, so that a key has to hold only shapes and bytes.

    Where each input and output has its batch first, each row of a request has a key of its own (``by_row``).
    """

    def __init__(
        self, secret: bytes, identity: Sequence[bytes], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self.by_row = all(spec.batch_axis == 0 for spec in (*inputs, *outputs))
        tensors = [f"{spec.name}\0{spec.dtype}\0{spec.shape_text}".encode() for spec in (*inputs, *outputs)]
        about = _framed([*identity, b"inputs", *tensors[: len(inputs)], b"outputs", *tensors[len(inputs) :]])
        self._row = _keyed(secret, b"row", about)
        self._whole = _keyed(secret, b"whole", about)
        # Where no dimension but the batch varies, the model itself says a row's shape.
        self._shaped = any(isinstance(dim, str) for spec in inputs for dim in spec.shape[1:])
        self.row_bytes = 0
        """Bytes of a row of all inputs, 0 where they vary."""
        if self.by_row and not self._shaped and not any(isinstance(spec, BytesSpec) for spec in inputs):
            self.row_bytes = sum(prod(spec.concrete()) * np.dtype(spec.dtype).itemsize for spec in inputs)

    def of_row(self, call: Call) -> bytes:
        """The key of a call of one row."""
        state = self._row.copy()
        for buffer in call.buffers:
            state.update(buffer)
        if self._shaped:
            state.update(_dims([shape[1:] for shape in call.shapes]))
        return state.digest()

    def of_rows(self, call: Call) -> list[bytes]:
        """The keys of a call's rows, each equal to that of a call which holds the row alone."""
        tail = _dims([shape[1:] for shape in call.shapes]) if self._shaped else b""
        found = []
        for row in zip(*(rows_of(buffer, call.rows) for buffer in call.buffers), strict=True):
            state = self._row.copy()
            for part in row:
                state.update(part)
            if tail:
                state.update(tail)
            found.append(state.digest())
        return found

    def of_call(self, call: Call) -> bytes:
        """The key of a call as a whole, which no row's can equal."""
        state = self._whole.copy()
        for buffer in call.buffers:
            state.update(buffer)
        state.update(_dims(call.shapes))
        return state.digest()


def derive(secret: bytes, purpose: bytes) -> bytes:
    """A key of 32 bytes for one purpose, from a secret of any length."""
    return blake2b(secret, digest_size=32, person=purpose).digest()


def rows_of(buffer: Buffer, rows: int) -> list[memoryview]:
    """The bytes of each row of a buffer, without a copy."""
    view = memoryview(buffer)
    # A view without elements has no strides to cast by.
    data = view.cast("B") if view.nbytes else memoryview(b"")
    if isinstance(buffer, Packed):
        return [data[begin:end] for begin, end in pairwise(bounds(buffer, rows))]
    size = len(data) // rows
    return [data[row * size : (row + 1) * size] for row in range(rows)]


def _keyed(secret: bytes, kind: bytes, about: bytes) -> blake2b:
    """A state of the hash that a request's bytes go into: copying it costs less than making it."""
    model = blake2b(about, digest_size=32, key=derive(secret, b"tauten-cache-key")).digest()
    return blake2b(digest_size=KEY_BYTES, key=model, person=kind)


def _framed(fields: Sequence[bytes]) -> bytes:
    """Fields one after the other, so that no two lists of them give the same bytes."""
    return b"".join(pack("<Q", len(field)) + field for field in fields)


def _dims(shapes: Sequence[tuple[int, ...]]) -> bytes:
    """Shapes as bytes. A model's ranks are fixed, so these are as many for each request, and stand at its end: with
    them the bytes before can be divided in one way only (elements of bytes say their lengths themselves)."""
    dims = [dim for shape in shapes for dim in shape]
    return pack(f"<{len(dims)}Q", *dims)
