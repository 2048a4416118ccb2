"""A client that sends what no client should, and sees what comes."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Final

LIMIT_S: Final = 10.0
CLOSED: Final = 0
"""In place of a status: the server closed without a word, which it may where no request could be read."""


class MalformedClient:
    """Sends spoilt copies of ``good``, each on a fresh or a used connection, and counts the answers by status."""

    def __init__(self, port: int, good: bytes, path: str, seed: int) -> None:
        self._port = port
        self._good = good
        self._path = path
        self._draw = Random(seed)
        self._connection: socket.socket | None = None
        self.hung = 0

    def run(self, count: int) -> Counter[int]:
        """Answers to ``count`` requests, by status."""
        found: Counter[int] = Counter()
        for _ in range(count):
            found[self._send(self._draw.choice(_KINDS)(self))] += 1
        self._leave()
        return found

    def _send(self, data: bytes) -> int:
        fresh = self._connection is None
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._port), timeout=LIMIT_S)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._connection.sendall(data)
            # A request that is cut off would be waited for; the end of all says that no more comes.
            self._connection.settimeout(0.02)
            try:
                answer = self._connection.recv(65536)
            except TimeoutError:
                self._connection.shutdown(socket.SHUT_WR)
                self._connection.settimeout(LIMIT_S)
                answer = self._connection.recv(65536)
        except TimeoutError:
            self.hung += 1
            self._leave()
            return CLOSED
        except OSError:
            self._leave()
            # On a used connection the last answer may have been its end.
            return CLOSED if fresh else self._send(data)
        status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") and answer[9:12].isdigit() else CLOSED
        if status != 200 or self._draw.random() < 0.02:
            self._leave()
        return status

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Kinds of what is wrong.

    def bytes_changed(self) -> bytes:
        data = bytearray(self._good)
        for _ in range(self._draw.randrange(1, 8)):
            data[self._draw.randrange(len(data))] = self._draw.randrange(256)
        return bytes(data)

    def head_changed(self) -> bytes:
        data = bytearray(self._good)
        end = data.index(b"\r\n\r\n")
        for _ in range(self._draw.randrange(1, 4)):
            data[self._draw.randrange(end)] = self._draw.choice(b" \t\r\n:/0\x00\xff,;abc")
        return bytes(data)

    def cut_off(self) -> bytes:
        return self._good[: self._draw.randrange(1, len(self._good))]

    def noise(self) -> bytes:
        return self._draw.randbytes(self._draw.randrange(1, 400))

    def lengths(self) -> bytes:
        draw = self._draw
        lie = draw.choice(
            ("0", "-1", "1", "99999999999", "1e3", "0x10", "", " 5", "5, 5", "18446744073709551616", "\uff17")
        )
        name = draw.choice(("Content-Length", "Inference-Header-Content-Length", "Transfer-Encoding"))
        head = f"POST {self._path} HTTP/1.1\r\nHost: t\r\n{name}: {lie}\r\n"
        if name != "Content-Length":
            head += "Content-Length: 40\r\n"
        return head.encode("utf-8") + b"\r\n" + draw.randbytes(40)

    def chunks(self) -> bytes:
        draw = self._draw
        head = f"POST {self._path} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        return head + b"".join(
            draw.choice(
                (b"5\r\nhello\r\n", b"ffffffffff\r\n", b"-1\r\n\r\n", b"zz\r\n", b"0\r\n\r\n", b"1;a=b\r\nx\r\n")
            )
            for _ in range(draw.randrange(1, 6))
        )

    def json_of_anything(self) -> bytes:
        return self._post(json.dumps(self._value(4)).encode())

    def json_broken(self) -> bytes:
        text = bytearray(json.dumps({"inputs": [self._tensor()]}).encode())
        for _ in range(self._draw.randrange(1, 4)):
            text[self._draw.randrange(len(text))] = self._draw.choice(b'{}[]",:0 \\nte\xff')
        return self._post(bytes(text))

    def tensors(self) -> bytes:
        document: dict[str, object] = {"inputs": [self._tensor() for _ in range(self._draw.randrange(3))]}
        if self._draw.random() < 0.3:
            document["outputs"] = self._value(3)
        if self._draw.random() < 0.3:
            document["parameters"] = self._value(2)
        return self._post(json.dumps(document).encode())

    def binary(self) -> bytes:
        entry = self._tensor()
        entry.pop("data", None)
        entry["parameters"] = {"binary_data_size": self._draw.choice((0, 1, -1, 3136, 2**40, "4", None, 1.5))}
        head = json.dumps({"inputs": [entry]}).encode()
        length = self._draw.choice((len(head), len(head) - 1, 0, 10**6))
        extra = f"Inference-Header-Content-Length: {length}\r\n"
        return self._post(head + self._draw.randbytes(self._draw.choice((0, 4, 3136))), extra)

    def paths(self) -> bytes:
        draw = self._draw
        method = draw.choice(("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"))
        parts = ("v2", "models", "held", "..", "%2e%2e", "versions", "1", "-1", "infer", "", "%00", "repository", "%zz")
        path = "/" + "/".join(draw.choice(parts) for _ in range(draw.randrange(6)))
        return (
            f"{method} {path}{draw.choice(('', '?a=b', '?'))} HTTP/1.{draw.choice('0129')}\r\nHost: t\r\n\r\n".encode()
        )

    def many_headers(self) -> bytes:
        draw = self._draw
        count = draw.choice((1, 50, 3000))
        lines = "".join(f"X-{draw.randrange(99)}: {'a' * draw.randrange(40)}\r\n" for _ in range(count))
        return f"GET /v2 HTTP/1.1\r\nHost: t\r\n{lines}\r\n".encode()

    def _post(self, body: bytes, extra: str = "") -> bytes:
        return f"POST {self._path} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body

    def _tensor(self) -> dict[str, object]:
        draw = self._draw
        entry: dict[str, object] = {
            "name": draw.choice(("image", "x", "", 3)),
            "datatype": draw.choice(("FP32", "INT64", "BYTES", "FP16", "fp32", None, 7)),
            "shape": draw.choice(([1, 1, 28, 28], [0], [-1], [2**40], [1] * 70, "1", [1.5], None, [2**31 - 1] * 4)),
            "data": self._value(3),
        }
        if draw.random() < 0.2:
            entry.pop(draw.choice(tuple(entry)))
        return entry

    def _value(self, depth: int) -> object:
        draw = self._draw
        if not depth or draw.random() < 0.4:
            return draw.choice((None, True, 0, -1, 2**70, 1e308, "", "text", "\ud800", 0.5, [], {}))
        if draw.random() < 0.5:
            return [self._value(depth - 1) for _ in range(draw.randrange(5))]
        names = ("inputs", "outputs", "name", "parameters", "id", "data", "binary_data", "timeout", "priority")
        return {draw.choice(names): self._value(depth - 1) for _ in range(draw.randrange(5))}


_KINDS: Final[tuple[Callable[[MalformedClient], bytes], ...]] = (
    MalformedClient.bytes_changed,
    MalformedClient.head_changed,
    MalformedClient.cut_off,
    MalformedClient.noise,
    MalformedClient.lengths,
    MalformedClient.chunks,
    MalformedClient.json_of_anything,
    MalformedClient.json_broken,
    MalformedClient.tensors,
    MalformedClient.binary,
    MalformedClient.paths,
    MalformedClient.many_headers,
)
