"""What a server and its worker process say to each other: short messages over a socket that keeps them apart.

::

    server ── settings (JSON) ──────────────────────► worker
           ◄── ready: inputs, outputs, padding; or an error ──
           ── batch: number, slot, inputs ──────────►
           ◄── number, times, outputs; or a fault ───

Tensors lie in shared memory: a message says where, and how they are shaped. A slot is two regions of memory, one for
the inputs of a batch and one for its outputs. The descriptor of a region that is new travels with the message that
first needs it.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from tauten.errors import EngineError
from tauten.run.serve.instances._process_memory import Place

LONGEST: Final = 1 << 16
"""Bytes of a message at most."""
_LONGEST_FAULT: Final = 8_000  # characters, of a message and of a traceback each

_BATCH: Final = struct.Struct("<IIB")
_REPLY: Final = struct.Struct("<IBBqq")
_PLACES: Final = [struct.Struct(f"<QQB{rank}q") for rank in range(65)]
_RANK_AT: Final = 16
_ROOM: Final = socket.CMSG_LEN(struct.calcsize("i"))

ANSWER: Final = 0
FAULT: Final = 1


class BatchMessage(NamedTuple):
    """A batch to run. ``grown`` says that a new region for its inputs came along."""

    number: int
    slot: int
    grown: bool
    places: list[Place]

    def pack(self) -> bytes:
        """The bytes of the message. NumPy's arrays have 64 dimensions at most, and so has each place."""
        return _BATCH.pack(self.number, self.slot, self.grown) + _pack_places(self.places)

    @classmethod
    def unpack(cls, data: bytes) -> BatchMessage:
        number, slot, grown = _BATCH.unpack_from(data)
        return cls(number, slot, bool(grown), _unpack_places(data, _BATCH.size))


class Reply(NamedTuple):
    """What became of a batch, and when it began and ended by ``time.perf_counter_ns``, which all processes share.

    Outputs where ``fault`` is ``None``; ``grown`` says that a new region for them came along. A fault is a JSON object:
    the error's ``kind``, its ``message`` and its ``trace``.
    """

    number: int
    grown: bool
    started_ns: int
    ended_ns: int
    places: list[Place]
    fault: dict[str, str] | None = None

    def pack(self) -> bytes:
        kind = ANSWER if self.fault is None else FAULT
        head = _REPLY.pack(self.number, kind, self.grown, self.started_ns, self.ended_ns)
        if self.fault is None:
            return head + _pack_places(self.places)
        message, trace = self.fault["message"][:_LONGEST_FAULT], self.fault["trace"][-_LONGEST_FAULT:]
        return head + json.dumps({**self.fault, "message": message, "trace": trace}, ensure_ascii=False).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Reply:
        number, kind, grown, started_ns, ended_ns = _REPLY.unpack_from(data)
        if kind == FAULT:
            return cls(number, False, started_ns, ended_ns, [], json.loads(data[_REPLY.size :]))
        return cls(number, bool(grown), started_ns, ended_ns, _unpack_places(data, _REPLY.size))


def _pack_places(places: Iterable[Place]) -> bytes:
    return b"".join([_PLACES[len(shape)].pack(offset, size, len(shape), *shape) for offset, size, shape in places])


def _unpack_places(data: bytes, at: int) -> list[Place]:
    places = []
    while at < len(data):
        form = _PLACES[data[at + _RANK_AT]]
        offset, size, _, *shape = form.unpack_from(data, at)
        places.append(Place(offset, size, tuple(shape)))
        at += form.size
    return places


def send(channel: socket.socket, message: bytes, descriptor: int | None = None) -> None:
    """Send a message, and with it a descriptor, which is closed here.

    Raises ``OSError`` where that cannot be, ``EngineError`` for a message that is too long.
    """
    if descriptor is None:
        channel.send(_checked(message))
        return
    try:
        _checked(message)
        channel.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])
    finally:
        os.close(descriptor)


def _checked(message: bytes) -> bytes:
    if len(message) > LONGEST:
        raise EngineError(f"too many tensors for a worker process: to list them takes {len(message)} bytes")
    return message


class Receiver:
    """Takes messages from a socket. Its buffer is used again: a new one for each would cost as much as the rest."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._buffer = memoryview(bytearray(LONGEST))
        self._into = [self._buffer]

    def __call__(self) -> tuple[bytes, int | None]:
        """The next message, empty where the other side has ended, and the descriptor that came with it."""
        size, extra, flags, _ = self._channel.recvmsg_into(self._into, _ROOM)
        descriptor = struct.unpack("i", extra[0][2])[0] if extra else None
        if flags & socket.MSG_TRUNC:
            if descriptor is not None:
                os.close(descriptor)
            raise EngineError(f"expected messages of at most {LONGEST} bytes from a worker process, got a longer one")
        return bytes(self._buffer[:size]), descriptor
