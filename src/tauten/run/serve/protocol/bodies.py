"""Large bodies, received straight into the memory in which they stay.

A parser hands out a body in pieces, each a copy of what was read, to be put together in one more copy. Where the head
says how long a body is, nothing needs parsing: the system writes what comes where the tensor will be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

DIRECT_BYTES: Final = 128 * 2**10
"""From so many missing bytes on it pays to change over to this and back."""

_HEADER_LENGTH: Final = b"inference-header-content-length"
_FIRST_BYTES: Final = 2**20
_AHEAD: Final = 8
_ALIGNMENT: Final = 64


class Receiver(Protocol):
    """The connection whose body comes. Its transport's other calls are handed on to it."""

    def body_came(self, body: memoryview) -> None: ...

    def connection_lost(self, fault: Exception | None) -> None: ...

    def eof_received(self) -> bool: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class LargeBody(asyncio.BufferedProtocol):
    """Takes a connection's place at its transport, from where a large body has begun to come until its last byte.

    ``begun`` is what has come of its ``length`` bytes. What stands behind its first ``lead`` bytes lies aligned for
    every type of tensor. Memory is taken as bytes come, at most eight times as much as came and 1 MiB: a client that
    only says that it will send much costs nothing.
    """

    def __init__(self, receiver: Receiver, length: int, begun: Iterable[bytes], lead: int = 0) -> None:
        self._receiver = receiver
        self._length = length
        self._lead = lead
        self._at = 0
        parts = list(begun)
        self._memory = self._room(sum(map(len, parts)))
        for part in parts:
            self.get_buffer(0)[: len(part)] = part
            self._at += len(part)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._memory.data[self._at :]

    def buffer_updated(self, count: int) -> None:
        """So many bytes have come."""
        self._at += count
        if self._at == self._length:
            # Read-only, as all that came: an engine must not write into a request.
            self._receiver.body_came(self._memory.data.toreadonly())
        elif self._at == len(self._memory):
            larger = self._room(self._at)
            larger[: self._at] = self._memory
            self._memory = larger

    def connection_lost(self, fault: Exception | None) -> None:
        self._receiver.connection_lost(fault)

    def eof_received(self) -> bool:
        return self._receiver.eof_received()

    def pause_writing(self) -> None:
        self._receiver.pause_writing()

    def resume_writing(self) -> None:
        self._receiver.resume_writing()

    def _room(self, came: int) -> npt.NDArray[np.uint8]:
        """Memory of its own for the body, or for as much of it as may be taken once ``came`` bytes are there."""
        size = min(self._length, max(_FIRST_BYTES, _AHEAD * came))
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        skip = -(memory.__array_interface__["data"][0] + self._lead) % _ALIGNMENT
        return memory[skip : skip + size]


def lead_of(headers: dict[bytes, bytes]) -> int:
    """How many bytes of a body stand before its first tensor, by what its head says; 0 for what is no number."""
    text = headers.get(_HEADER_LENGTH, b"")
    return int(text) if text.isdigit() and len(text) < 19 else 0
