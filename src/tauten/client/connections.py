"""A connection that waits in the thread that uses it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from time import monotonic
from typing import Final

from tauten.client.conversation import Url
from tauten.run.load.client import Answer, AnswerReader

_READ_BYTES: Final = 256 * 1024
_JOINED_BYTES: Final = 64 * 1024


class Connection:
    """One connection to ``url``, opened when it is first used. For one thread at a time."""

    def __init__(self, url: Url, tls: ssl.SSLContext | None) -> None:
        self._url = url
        self._tls = tls
        self._socket: socket.socket | None = None

    @property
    def open(self) -> bool:
        return self._socket is not None

    def send(self, head: bytes, body: Sequence[bytes | bytearray | memoryview], within_s: float) -> Answer:
        """The answer to a request. Raises ``OSError``, ``TimeoutError`` among them, and is closed then."""
        end = monotonic() + within_s
        try:
            if self._socket is None:
                self._socket = self._connect(within_s)
            if sum(len(part) for part in body) <= _JOINED_BYTES:
                # One piece: the server is woken once, and no second piece waits for an acknowledgement.
                head, body = b"".join([head, *body]), ()
            for part in (head, *body):
                self._socket.settimeout(_left_s(end))
                self._socket.sendall(part)
            return self._receive(self._socket, end)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self, within_s: float) -> socket.socket:
        opened = socket.create_connection((self._url.host, self._url.port), timeout=max(within_s, 1e-3))
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return opened
        try:
            return self._tls.wrap_socket(opened, server_hostname=self._url.host)
        except BaseException:
            opened.close()
            raise

    def _receive(self, opened: socket.socket, end: float) -> Answer:
        reader = AnswerReader()
        while reader.answer is None:
            opened.settimeout(_left_s(end))
            data = opened.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError("the server closed the connection before it had answered")
            reader.feed(data)
        if not reader.keep_alive:
            self.close()
        return reader.answer


def _left_s(end: float) -> float:
    """Seconds until ``end``, never none: a socket without them would not wait at all."""
    return max(end - monotonic(), 1e-3)


def tls_context(url: Url, tls: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """How to encrypt: as ``tls`` says, or with the system's certificates for ``https``."""
    if not url.tls:
        return None
    return tls or ssl.create_default_context()
