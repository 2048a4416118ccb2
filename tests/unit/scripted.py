"""A server that answers as a test says, connection by connection."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress


def answer(status: int, body: bytes = b"{}", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


DROP = b""
"""In place of an answer: the connection is closed."""
SILENCE = b"silence"
"""In place of an answer: nothing, for ever."""


class Scripted:
    """Gives the answers of ``script`` in turn, the last one again and again; keeps what was asked."""

    def __init__(self, script: Sequence[bytes], tls: ssl.SSLContext | None) -> None:
        self.asked: list[bytes] = []
        self.connections = 0
        self._script = list(script)
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for opened in self._open:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)

    def _accept(self) -> None:
        while True:
            try:
                opened, _ = self._listener.accept()
                if self._tls is not None:
                    opened = self._tls.wrap_socket(opened, server_side=True)
            except OSError:
                if self._listener.fileno() < 0:
                    return
                with suppress(OSError):
                    self._listener.getsockname()
                    continue
                return
            self.connections += 1
            self._open.append(opened)
            thread = threading.Thread(target=self._serve, args=(opened,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, opened: socket.socket) -> None:
        with opened, suppress(OSError):
            while (request := _read_request(opened)) is not None:
                self.asked.append(request)
                said = self._script.pop(0) if len(self._script) > 1 else self._script[0]
                if said == DROP:
                    return
                if said != SILENCE:
                    opened.sendall(said)


def _read_request(opened: socket.socket) -> bytes | None:
    data = b""
    while b"\r\n\r\n" not in data:
        part = opened.recv(65536)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    while len(body) < length:
        body += opened.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def scripted(*script: bytes, tls: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    server = Scripted(script, tls)
    try:
        yield server
    finally:
        server.close()
